"""The engine's own estimate beside ours, as `phaseline status` words it."""

from __future__ import annotations

import pytest

from control.cli.estimates import estimate_lines
from control.types.workers import WorkEstimates
from tests.control.builders import worker_status


@pytest.mark.parametrize(
    ("estimates", "words"),
    [
        (
            WorkEstimates(since_unix_s=1.0, exported_flops=9.27e9, derived_flops=6.77e9),
            "9.27 GFLOP as exported, 6.77 GFLOP derived, difference 2.5 GFLOP (+37%)",
        ),
        (
            WorkEstimates(since_unix_s=1.0, exported_flops=5e15, exported_bytes=2e3, derived_bytes=4e3),
            "5 PFLOP as exported, nothing derived: its model's shape or its steps are not known; 2 kB as exported, "
            "4 kB derived, difference -2 kB (-50%)",
        ),
    ],
)
def test_both_numbers_and_their_difference_are_told(estimates: WorkEstimates, words: str) -> None:
    (line,) = estimate_lines([worker_status("v0", estimates=estimates), worker_status("ours")])
    assert line == f"- v0, the engine's own estimate: {words}"
