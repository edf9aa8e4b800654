"""The tables in the documentation are those that the code prints."""

from __future__ import annotations

import pytest

from control.reference import PAGES, ROOT, TABLES, rendered


@pytest.mark.parametrize("page", PAGES)
def test_the_page_shows_what_the_code_says(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert rendered(text) == text, f"{page} is stale: run python -m control.reference"


def test_every_table_stands_on_a_page() -> None:
    pages = "".join((ROOT / page).read_text("utf-8") for page in PAGES)
    assert [name for name in TABLES if f"<!-- begin {name} -->" not in pages] == []
