"""A fleet that Ray Serve steers, in Chromium: looked at first, attached, allowed, resized, put back, and let go."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, expect

from control.client import Attachment
from tests.browser.conftest import LIMIT_MS, PRESS_MS, keep_picture
from tests.browser.processes import Stack
from tests.control.attached.fake_controllers import FakeRay, served
from tests.control.attached.fake_engines import FakeEngine, engines
from tests.control.attached.pages_of import text_of

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
expect.set_options(timeout=LIMIT_MS)
SEEN_MS = 60_000


@dataclass(slots=True)
class Theirs:
    """What somebody else runs: a Ray dashboard with one prefill and two decode replicas, and a pair of engines."""

    ray: FakeRay = field(default_factory=FakeRay)
    prefill: FakeEngine = field(default_factory=lambda: FakeEngine(text_of("prefill-1")))
    decode: FakeEngine = field(default_factory=lambda: FakeEngine(text_of("decode-1")))


@pytest.fixture(scope="module")
def theirs() -> Iterator[Theirs]:
    """On an event loop of its own, until the end."""
    found, loop, ready, stop = Theirs(), asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def live() -> None:
        async with served(found.ray), engines(found.prefill, found.decode):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    assert ready.wait(20)
    yield found
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def press(page: Page, name: str) -> None:
    button = page.get_by_role("button", name=name, exact=True)
    expect(button).to_be_enabled()
    button.click(delay=PRESS_MS)


def fill(page: Page, label: str, value: str) -> None:
    field = page.get_by_role("textbox", name=label, exact=True)
    field.fill(value)
    field.press("Tab")


def test_a_steered_fleet_from_its_first_look_to_its_last(page: Page, stack: Stack, theirs: Theirs) -> None:
    ray = theirs.ray
    page.goto(stack.login_url("fleets"))
    expect(page.get_by_text("No fleet is attached")).to_be_visible()
    page.get_by_role("combobox", name="Kind").click(delay=PRESS_MS)
    page.get_by_role("option", name="Ray Serve").click(delay=PRESS_MS)
    fill(page, "Its address", f"{ray.url}/pd")
    fill(page, "Name", "app")
    press(page, "Look first")
    expect(page.get_by_text("3 of 3 workers answer. Nothing was attached or changed.")).to_be_visible()
    expect(page.get_by_role("table", name="Series missing or off")).to_contain_text("not exported")
    keep_picture(page, "fleets-first-look")
    press(page, "Attach")
    expect(page.get_by_text("app is attached; choose it under Fleet.")).to_be_visible()

    switch = page.get_by_role("switch", name="Resize")
    page.locator("label", has=switch).click(delay=PRESS_MS)
    expect(page.get_by_text("app may now be changed so: resize.")).to_be_visible()
    keep_picture(page, "fleets-allowed")
    page.goto(f"{stack.console_url}/pools?fleet=app")
    decode = page.get_by_role("spinbutton", name="Decode workers")
    expect(decode).to_have_value("2", timeout=SEEN_MS)
    decode.fill("4")
    decode.press("Enter")
    press(page, "Preview resize")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("scale decode 2 -> 4 workers")).to_be_visible()
    press(page, "Apply")
    card = page.locator("section", has_text="resize: 4 decode")
    expect(card).to_contain_text("the decode pool has 4 workers", timeout=SEEN_MS)
    assert ray.targets["Decode:m"] == 4
    keep_picture(page, "pools-resized")

    page.get_by_role("button", name=re.compile(r"^Undo command \d+")).click(delay=PRESS_MS)
    press(page, "Apply")
    expect(page.locator("section", has_text="undo command")).to_contain_text("done", timeout=SEEN_MS)
    assert ray.targets["Decode:m"] == 2

    page.get_by_role("link", name="Fleets").click(delay=PRESS_MS)
    press(page, "Detach")
    expect(page.get_by_role("dialog")).to_contain_text("Nothing of theirs changes")
    press(page, "Detach app")
    expect(page.get_by_text("app is detached. Its engines did not notice.")).to_be_visible()
    page.goto(f"{stack.console_url}/pools?fleet=app")
    expect(page.get_by_text("There is no fleet named app here")).to_be_visible(timeout=SEEN_MS)
    assert ray.targets == {"Prefill:m": 1, "Decode:m": 2, "Ingress": 1}


def test_every_page_of_an_observed_fleet_says_what_is_not_known(page: Page, stack: Stack, theirs: Theirs) -> None:
    targets = (f"prefill:p0={theirs.prefill.url}", f"decode:d0={theirs.decode.url}", "decode:gone=http://127.0.0.1:9")
    with stack.client() as client:
        client.attach(Attachment(name="bare", kind="vllm", targets=targets))
    page.goto(stack.login_url("", "fleet=bare"))
    expect(page.get_by_label("Goodput: n/a")).to_contain_text("not seen", timeout=SEEN_MS)
    said = {
        "": "attach it with its model",
        "pools": "This fleet is observed only",
        "workers": "What is not known of this fleet",
        "explore": "This window",
        "roofline": "not exported",
        "requests": "Requests are seen where they pass our gateway",
        "audit": "No command",
        "fleets": "2 of 3 workers answer",
    }
    for path, words in said.items():
        window = "&from=1780000000&to=1780000600" if path == "explore" else ""
        page.goto(f"{stack.console_url}/{path}?fleet=bare{window}")
        expect(page.get_by_text(words).first).to_be_visible()
        expect(page.get_by_text("could not be drawn")).to_have_count(0)
        keep_picture(page, f"bare-{path or 'overview'}")
