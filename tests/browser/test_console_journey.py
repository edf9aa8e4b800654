"""The operator's day in Chromium on a real plane with simulated workers: look, resize, undo, explore, trouble."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from control.types.commands import Action, CommandRequest, Verb
from tests.browser.conftest import LIMIT_MS, PRESS_MS
from tests.browser.processes import Stack

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]
expect.set_options(timeout=LIMIT_MS)
DRAIN_LIMIT_MS = 60_000  # a flip waits for the longest running answer


def opened(page: Page, stack: Stack, title: str, query: str = "") -> None:
    """Log in by a one-time link and go to a page."""
    paths = {"Overview": "", "Pools & routing": "pools", "Workers": "workers", "Explore": "explore"}
    paths |= {"Requests": "requests", "Audit log": "audit"}
    page.goto(stack.login_url(paths[title], query))
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()


def set_size(page: Page, role: str, size: int) -> None:
    field = page.get_by_role("spinbutton", name=f"{role} workers")
    field.fill(str(size))
    field.press("Enter")
    expect(field).to_have_value(str(size))


def preview_resize(page: Page, prefill: int, decode: int) -> None:
    set_size(page, "Prefill", prefill)
    set_size(page, "Decode", decode)
    button = page.get_by_role("button", name="Preview resize")
    expect(button).to_be_enabled()
    button.click(delay=PRESS_MS)


def pools(stack: Stack) -> tuple[int, int]:
    with stack.client() as client:
        desired = client.desired()
    return desired.pool_size("prefill"), desired.pool_size("decode")  # type: ignore[arg-type]


def test_nobody_gets_in_without_a_token(page: Page, stack: Stack) -> None:
    page.goto(stack.console_url)
    page.get_by_role("textbox", name="Token").fill("not a token")
    page.get_by_role("button", name="Log in").click(delay=PRESS_MS)
    expect(page.get_by_text("The plane does not know this token.")).to_be_visible()
    page.get_by_role("textbox", name="Token").fill((stack.run_dir / "secrets" / "operator_token").read_text().strip())
    page.get_by_role("button", name="Log in").click(delay=PRESS_MS)
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def test_a_reload_stays_logged_in_and_logging_out_ends_it_in_every_tab(page: Page, stack: Stack) -> None:
    opened(page, stack, "Explore", "range=15m")
    page.reload()
    expect(page.get_by_role("radio", name="15 min")).to_be_checked()
    other = page.context.new_page()
    other.goto(f"{stack.console_url}/pools")
    expect(other.get_by_role("spinbutton", name="Prefill workers")).to_be_visible()
    assert page.evaluate("document.cookie").find("phaseline") < 0
    page.get_by_role("button", name="Log out").click(delay=PRESS_MS)
    expect(page.get_by_text("You have logged out.")).to_be_visible()
    expect(other.get_by_role("textbox", name="Token")).to_be_visible()
    page.goto(f"{stack.console_url}/explore?range=15m")
    page.get_by_role("textbox", name="Token").fill((stack.run_dir / "secrets" / "operator_token").read_text().strip())
    page.get_by_role("button", name="Log in").click(delay=PRESS_MS)
    expect(page).to_have_url(re.compile("explore.range=15m"))
    expect(page.get_by_role("radio", name="15 min")).to_be_checked()


def test_the_lines_move_and_the_login_code_has_left_the_address(page: Page, stack: Stack) -> None:
    opened(page, stack, "Overview")
    assert "code=" not in page.url
    chart = page.get_by_label(re.compile("^Wall utilization: Prefill compute, Decode bandwidth"))
    expect(chart).to_be_visible()
    moment = page.get_by_text(re.compile(r"as of \d\d:\d\d:\d\d"))
    first = moment.inner_text()
    drawn = chart.locator("svg").element_handle()
    before = drawn.inner_html()
    expect(moment).not_to_have_text(first)
    expect(page.get_by_text("Simulated workers")).to_be_visible()
    page.wait_for_function("([chart, old]) => chart.innerHTML !== old", arg=[drawn, before])


def test_a_resize_is_previewed_applied_watched_annotated_and_undone(page: Page, stack: Stack) -> None:
    opened(page, stack, "Pools & routing")
    assert pools(stack) == (2, 6)
    preview_resize(page, 3, 5)
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("2 prefill, 6 decode")).to_be_visible()
    expect(dialog.get_by_role("listitem").first).to_contain_text("prefill")
    dialog.get_by_role("textbox", name="Why").fill("long prompts at noon")
    dialog.get_by_role("button", name="Apply").click(delay=PRESS_MS)
    expect(dialog).to_be_hidden()
    card = page.locator("section", has_text="resize: 3 prefill, 5 decode")
    expect(card).to_contain_text("long prompts at noon")
    expect(card).to_contain_text("done in", timeout=DRAIN_LIMIT_MS)
    assert pools(stack) == (3, 5)
    page.get_by_role("link", name="Overview").click(delay=PRESS_MS)
    expect(page.get_by_text("3 of 3 ready")).to_be_visible()
    expect(page.get_by_role("table", name="Latest commands")).to_contain_text("long prompts at noon")
    page.get_by_role("link", name="Pools & routing").click(delay=PRESS_MS)
    page.get_by_role("button", name=re.compile(r"^Undo command \d+ \(resize: 3 prefill, 5 decode\)")).click(
        delay=PRESS_MS
    )
    page.get_by_role("dialog").get_by_role("button", name="Apply").click(delay=PRESS_MS)
    expect(page.locator("section", has_text=re.compile("undo command"))).to_contain_text(
        "done in", timeout=DRAIN_LIMIT_MS
    )
    assert pools(stack) == (2, 6)


def test_a_stale_form_says_what_changed_by_whom_and_offers_to_look_again(page: Page, stack: Stack) -> None:
    opened(page, stack, "Pools & routing")
    expect(page.get_by_role("spinbutton", name="Prefill workers")).to_have_value("2")
    with stack.client() as other:
        action = Action(verb=Verb.SET_ROUTING, weights={"w1": 0.5})
        command = other.submit(CommandRequest(action=action, why="w1 runs hot"))
        other.wait(command.command_id, 20)
        count = len(other.commands())
    expect(page.get_by_text("the desired state is at version")).to_be_visible()
    preview_resize(page, 3, 5)
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Not applied")).to_be_visible()
    expect(dialog.get_by_text("w1 runs hot")).to_be_visible()
    dialog.get_by_role("button", name="Look again").click(delay=PRESS_MS)
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("spinbutton", name="Prefill workers")).to_have_value("2")
    with stack.client() as other:
        assert len(other.commands()) == count
    page.get_by_role("tab", name="Weights").click(delay=PRESS_MS)
    expect(page.get_by_role("spinbutton", name="Weight of w1", exact=True)).to_have_value("0.50")


def test_a_link_to_explore_restores_the_view(page: Page, stack: Stack) -> None:
    opened(page, stack, "Explore")
    page.get_by_role("combobox", name="Group by").click(delay=PRESS_MS)
    page.get_by_role("option", name="Role", exact=True).click(delay=PRESS_MS)
    page.get_by_role("radio", name="15 min").click(delay=PRESS_MS)
    expect(page).to_have_url(re.compile("by=role"))
    expect(page).to_have_url(re.compile("range=15m"))
    query = page.url.partition("?")[2]
    opened(page, stack, "Explore", query)
    expect(page.get_by_role("radio", name="15 min")).to_be_checked()
    expect(page.get_by_role("table", name=re.compile("by role"))).to_contain_text("decode")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click(delay=PRESS_MS)
    assert download.value.path().read_text().startswith('"fleet_id","metric","unit","provenance","group"')
    with page.expect_download() as parquet:
        page.get_by_role("button", name="Download Parquet").click()
    assert parquet.value.path().read_bytes().startswith(b"PAR1")


def dragged(page: Page, label: str, begin: float, end: float) -> None:
    """Drag over a chart, between two parts of its width."""
    chart = page.get_by_label(re.compile(label))
    chart.scroll_into_view_if_needed()
    expect(chart.locator("svg")).to_be_visible()
    box = chart.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + begin * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (begin + end) / 2 * box["width"], y, steps=4)
    page.mouse.move(box["x"] + end * box["width"], y, steps=4)
    page.mouse.up()


def window_of(page: Page) -> tuple[float, float]:
    expect(page).to_have_url(re.compile("from=.*to="))
    found = re.search(r"from=(\d+)&to=(\d+)", page.url)
    assert found is not None
    return float(found[1]), float(found[2])


def test_a_brushed_day_is_zoomed_linked_to_and_left_for_live(page: Page, stack: Stack) -> None:
    opened(page, stack, "Overview")
    expect(page.get_by_label(re.compile("^Routing settings over the same time"))).to_be_visible()
    dragged(page, "^The same two lines over the last 24 hours", 0.7, 0.98)
    expect(page.get_by_role("button", name="Back to live")).to_be_visible()
    begin, end = window_of(page)
    assert 300 < end - begin < 1000
    expect(page.get_by_text(re.compile("^Commands and events from"))).to_be_visible()
    dragged(page, "^Wall utilization, mean of .* Drag to zoom", 0.6, 0.8)
    page.wait_for_function("old => !location.search.includes(old)", arg=f"from={begin:.0f}")
    closer = window_of(page)
    assert begin <= closer[0] < closer[1] <= end + 1
    assert closer[1] - closer[0] < (end - begin) / 2
    opened(page, stack, "Overview", page.url.partition("?")[2])
    assert window_of(page) == closer
    page.get_by_role("button", name="Back to live").click()
    expect(page).not_to_have_url(re.compile("from="))
    expect(page.get_by_role("button", name="Back to live")).to_be_hidden()


def test_a_chart_is_taken_away_as_svg_png_and_parquet(page: Page, stack: Stack) -> None:
    opened(page, stack, "Explore", "metric=num_workers&by=role&range=15m")
    chart = page.get_by_label(re.compile("^num_workers by .* Drag to zoom"))
    expect(chart.locator("svg")).to_be_visible()
    with page.expect_download() as svg:
        page.get_by_role("button", name="Download SVG").click()
    drawn = svg.value.path().read_text()
    assert drawn.startswith("<svg")
    assert "decode" in drawn
    chart.hover()
    with page.expect_download() as png:
        page.get_by_role("button", name="Download as PNG").first.click()
    assert png.value.path().read_bytes().startswith(b"\x89PNG")
    with page.expect_download() as parquet:
        page.get_by_role("button", name="Download Parquet").click()
    assert parquet.value.path().read_bytes().startswith(b"PAR1")


def test_a_lost_plane_is_said_to_be_lost_and_comes_back(page: Page, stack: Stack) -> None:
    opened(page, stack, "Pools & routing")
    expect(page.get_by_role("spinbutton", name="Prefill workers")).to_be_enabled()
    stack.end("plane")
    expect(page.get_by_text(re.compile("The plane has not answered for .*; this is the state of"))).to_be_visible()
    expect(page.get_by_role("table", name="Pools: desired beside observed")).to_be_visible()
    expect(page.get_by_role("spinbutton", name="Prefill workers")).to_be_disabled()
    stack.start_plane()
    expect(page.get_by_text("The plane has not answered")).to_be_hidden()
    expect(page.get_by_role("spinbutton", name="Prefill workers")).to_be_enabled()


def test_a_wall_display_moves_without_reruns_and_comes_back_with_the_plane(page: Page, stack: Stack) -> None:
    asked: list[str | bytes] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: asked.append(frame)))
    page.goto(stack.login_url("", "view=wall"))
    status = page.get_by_role("status")
    expect(
        page.get_by_role("img", name=re.compile("^Wall utilization over 15 minutes: Prefill compute"))
    ).to_be_visible()
    expect(page.get_by_text("simulated workers: no model is computed")).to_be_visible()
    reruns = len(asked)
    moves(status, 3)
    assert len(asked) == reruns
    assert page.get_by_role("button").count() == 0
    stack.end("plane")
    expect(status).to_contain_text(re.compile("The plane has not answered for .*; this is the state of"))
    stack.start_plane()
    expect(status).not_to_contain_text("The plane has not answered")
    moves(status, 1)
    assert len(asked) == reruns


def test_a_tab_that_nobody_sees_asks_for_nothing_until_it_is_seen_again(page: Page, stack: Stack) -> None:
    asked: list[str | bytes] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: asked.append(frame)))
    opened(page, stack, "Overview")
    seen = page.context.new_page()
    seen.goto(f"{stack.console_url}/?view=wall")
    health, wall = (each.locator("[data-at]") for each in (page, seen))
    moves(health, 1)
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => window.unseen ?? true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    moves(wall, 1)  # what was under way has come
    kept, asks = health.get_attribute("data-at"), len(asked)
    moves(wall, 3)
    assert (health.get_attribute("data-at"), len(asked)) == (kept, asks)
    page.evaluate("window.unseen = false; document.dispatchEvent(new Event('visibilitychange'))")
    moves(health, 1)


def moves(line: Locator, times: int) -> None:
    """The plane's time in a health line moves on."""
    for _ in range(times):
        expect(line).not_to_have_attribute("data-at", str(line.get_attribute("data-at")))
