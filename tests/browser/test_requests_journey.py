"""From a slow cell of the heatmap to the life of a request in it: Chromium on a real plane with simulated workers."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import LIMIT_MS, PRESS_MS
from tests.browser.processes import Stack
from tests.browser.test_console_journey import opened

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
expect.set_options(timeout=LIMIT_MS)
ENOUGH = 40
POLL_S = 0.2


def wait_for_requests(stack: Stack) -> None:
    until = time.monotonic() + LIMIT_MS / 1000
    with stack.client() as plane:
        while len(plane.requests()) < ENOUGH and time.monotonic() < until:
            time.sleep(POLL_S)


def topmost(cells: Locator) -> Locator:
    """The slowest cell: the one that is drawn highest."""
    boxes = [cell.bounding_box() for cell in cells.all()]
    tops = [box["y"] if box else float("inf") for box in boxes]
    return cells.nth(tops.index(min(tops)))


def test_a_click_on_a_cell_lists_its_requests_and_one_of_them_opens(page: Page, stack: Stack) -> None:
    wait_for_requests(stack)
    opened(page, stack, "Requests", "arrived=15m")
    chart = page.get_by_label(re.compile("^Heatmap of requests by arrival and first token"))
    cells = chart.locator("svg .mark-rect path")
    expect(cells.first).to_be_visible()
    expect(page.get_by_text("requests arrived in this time")).to_be_visible()

    topmost(cells).click(delay=PRESS_MS)
    expect(page.get_by_text("What is different about these")).to_be_visible()
    said = page.get_by_text(re.compile(r"Listed: \d+ of \d+ requests of this cell, arrived"))
    expect(said).to_be_visible()
    expect(page).to_have_url(re.compile(r"cell=\d+"))

    address = page.url
    page.goto(address)
    expect(said).to_be_visible()
    with stack.client() as plane:
        since, until, above_s, up_to_s = (float(part) for part in cell_in(address))
        found = plane.requests(10, since, until_unix_s=until, metric="ttft", above_s=above_s, up_to_s=up_to_s)
    assert found
    page.goto(f"{address}&request={found[0].request_id}")
    expect(page.get_by_label(re.compile(f"^Request {found[0].request_id}: "))).to_be_visible()
    page.get_by_role("button", name="Leave the cell").click(delay=PRESS_MS)
    expect(said).to_be_hidden()
    expect(page).not_to_have_url(re.compile("cell="))


def cell_in(address: str) -> list[str]:
    match = re.search(r"cell=([^&]+)", address)
    assert match is not None
    return re.split("%2C|,", match[1])
