"""An engine's own estimate beside ours, as the worker's facts word it."""

from __future__ import annotations

from app import estimates
from control.types.workers import WorkEstimates


def test_both_accounts_and_their_difference_are_told() -> None:
    found = WorkEstimates(since_unix_s=1.0, exported_flops=9.27e9, derived_flops=6.77e9, exported_bytes=2.84e11)
    assert estimates.pairs(found) == [
        ("Its own FLOPs", "9.27 GFLOP as exported; 6.77 GFLOP derived; difference 2.50 GFLOP (+37%)"),
        (
            "Its own bytes",
            "284 GB as exported; nothing derived: its model's shape or its steps are not known",
        ),
    ]


def test_an_engine_that_exports_none_has_no_such_rows() -> None:
    assert estimates.pairs(None) == []
