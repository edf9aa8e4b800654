"""One Chromium tab of the console, for a benchmark: tick to screen, first paint, change of page."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from playwright.async_api import Browser, Page, async_playwright

from _console import CHROMIUM, FLAGS

LIMIT_MS = 90_000
PLOT = '[role="graphics-document"], [role="img"][aria-label^="Wall utilization"]'
WATCH = """() => {
  window.delays = [];
  const now = () => Number(deep('[data-at]')?.dataset.at ?? 0);
  const deep = (selector) => {
    const roots = [document, ...[...document.querySelectorAll('*')].map((each) => each.shadowRoot).filter(Boolean)];
    return roots.map((each) => each.querySelector(selector)).find(Boolean);
  };
  let last = now();
  const look = () => {
    const at = now();
    if (at > last) { last = at; window.delays.push(Date.now() / 1000 - at); }
  };
  const place = deep('[data-at]').getRootNode();
  const root = place === document ? document.body : place;
  new MutationObserver(look).observe(root, {subtree: true, childList: true, attributes: true});
}"""


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


async def opened(browser: Browser, url: str) -> tuple[Page, float, float]:
    """A fresh tab with nothing cached, and the seconds from the address to words on the screen, and to a chart."""
    context = await browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(LIMIT_MS)
    page = await context.new_page()
    began = time.monotonic()
    await page.goto(url)
    await page.locator("[data-at]").first.wait_for()
    worded_s = time.monotonic() - began
    await page.locator(PLOT).first.wait_for()
    return page, worded_s, time.monotonic() - began


async def changed_s(page: Page, link: str, shown: str) -> float:
    """From the click on a page's link to what it is for on the screen."""
    began = time.monotonic()
    await page.get_by_role("link", name=link, exact=True).click()
    await page.locator(shown).first.wait_for()
    return time.monotonic() - began


async def watch(page: Page) -> None:
    await page.evaluate(WATCH)


async def delays_s(page: Page) -> list[float]:
    found: list[float] = await page.evaluate("window.delays")
    return found
