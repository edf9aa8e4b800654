"""A person at the console, for a benchmark: Chromium logged in by a one-time link. Needs Debian's chromium."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from _deployment import Deployment

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
LIMIT_MS = 60_000
COMMAND_LIMIT_MS = 180_000
DRAWN_MS = 4_000  # a chart draws its first data


@contextlib.contextmanager
def console(fleet: Deployment, *, width: int = 1440, height: int = 1000, light: bool = False) -> Iterator[Page]:
    """A tab of the console, logged in, in dark or light."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="light" if light else "dark"
        )
        context.set_default_timeout(LIMIT_MS)
        page = context.new_page()
        page.goto(f"{fleet.console_url}/?code={fleet.client.create_login_code()}")
        page.get_by_role("heading", name="Overview", exact=True).wait_for()
        yield page
        browser.close()


def overview(page: Page, fleet: Deployment, path: Path, query: str = "") -> None:
    """A picture of the Overview with its charts drawn."""
    page.goto(f"{fleet.console_url}/?{query}")
    page.locator('[role="graphics-document"][aria-label^="Workers per role"]').wait_for()
    page.wait_for_timeout(DRAWN_MS)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(path))


def resize(page: Page, why: str, prefill: int, decode: int) -> str:
    """As an operator does it: set the numbers, preview, type the word if one is asked for, apply, watch it end."""
    page.get_by_role("link", name="Pools & routing").click()
    for role, size in (("Prefill", prefill), ("Decode", decode)):
        field = page.get_by_role("spinbutton", name=f"{role} workers")
        field.fill(str(size))
        field.press("Enter")
        page.get_by_text("Press Enter to apply").wait_for(state="hidden")
    page.get_by_role("button", name="Preview resize", disabled=False).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox", name="Why").fill(why)
    asked = dialog.get_by_label("Type ", exact=False)
    if asked.count():
        word = (asked.get_attribute("aria-label") or "").removeprefix("Type ").removesuffix(" to confirm")
        asked.fill(word)
        asked.press("Enter")
    dialog.get_by_role("button", name="Apply", disabled=False).click()
    dialog.wait_for(state="hidden")
    card = page.locator("section", has_text=f"resize: {prefill} prefill, {decode} decode").first
    ended = card.get_by_text("done in")
    ended.wait_for(timeout=COMMAND_LIMIT_MS)
    return ended.inner_text()
