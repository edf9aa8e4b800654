"""What an engine's counters say of KV that a canary should have fetched: only what is certain counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from control.bridge.fetches import Fetches, fetches_of, why_not_fetched

PAGES = Path(__file__).parents[1] / "attached" / "pages"
BEFORE = Fetches(computed_tokens=1000.0, fetched_tokens=500.0, num_transfers=3.0)


def test_a_page_of_vllm_has_what_was_computed_fetched_and_transferred():
    found = fetches_of((PAGES / "vllm-0.32.0-decode-1.txt").read_text())
    assert found == Fetches(computed_tokens=300.0, fetched_tokens=14600.0, num_transfers=21.0)


@pytest.mark.parametrize("page", ["", "vllm:num_requests_running 1\n", "not a page {{{"])
def test_a_page_that_does_not_say_is_not_zero(page: str):
    assert fetches_of(page) is None


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (replace(BEFORE, computed_tokens=1165.0), "it computed 165 prompt tokens and fetched none"),
        (replace(BEFORE, computed_tokens=1005.0, fetched_tokens=660.0), "no KV was transferred to it"),
        (replace(BEFORE, computed_tokens=1005.0, fetched_tokens=660.0, num_transfers=4.0), ""),
        # Somebody else's request was fetched meanwhile: what became of ours is not known.
        (Fetches(computed_tokens=1165.0, fetched_tokens=700.0, num_transfers=4.0), ""),
        # The engine was started again.
        (Fetches(computed_tokens=0.0, fetched_tokens=0.0, num_transfers=0.0), ""),
        (None, ""),
    ],
)
def test_only_where_nothing_was_fetched_by_anybody_is_it_certain(after: Fetches | None, words: str):
    assert why_not_fetched(BEFORE, after, 165) == words


def test_a_counter_of_transfers_that_never_moved_may_be_switched_off():
    never = replace(BEFORE, num_transfers=0.0)
    assert why_not_fetched(never, replace(never, fetched_tokens=660.0), 165) == ""
    assert why_not_fetched(None, BEFORE, 165) == ""
