"""Chromium, a plane and a console for the browser tests. What a test starts is ended here, by pid."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.processes import Stack

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LIMIT_MS = 60_000  # of a busy machine
PRESS_MS = 60  # a hand's press, not a machine's: the console holds its own reruns back while somebody presses


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(run_dir=Path(tmp_path_factory.mktemp("run")))
    try:
        found.start_plane()
        found.start_console()
        yield found
    finally:
        found.end_all()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab that fails the test when it asks anything outside loopback, or when the page reports an error."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, timezone_id="Europe/Berlin")
    context.set_default_timeout(LIMIT_MS)
    tab = context.new_page()
    outside: list[str] = []
    tab.on("request", lambda request: outside.append(request.url) if not is_local(request.url) else None)
    yield tab
    context.close()
    assert outside == [], f"the console asked outside loopback: {outside[:3]}"


def keep_picture(page: Page, name: str) -> None:
    """For one's own eyes, dark and light and whole, where PHASELINE_PICTURES names a folder."""
    folder = os.environ.get("PHASELINE_PICTURES")
    if not folder:
        return
    page.wait_for_load_state("networkidle")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(folder) / f"{name}-{scheme}.png"))


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
