"""A request past a bound of its own is bad now: of its first token by its uncached prompt, afterwards by its gap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from control.gateway.admission import is_overdue
from control.types.requests import Slo

SLO = Slo(ttft_base_s=1.0, ttft_per_token_s=0.01, tpot_s=0.1, max_gap_s=0.5)


def relay(*, tokens: int = 0, last_s: float = 100.0, cached: int = 0) -> Any:
    """100 prompt tokens, arrived at 100 s."""
    return SimpleNamespace(
        tokens=[1] * tokens,
        timeline=SimpleNamespace(last_s=last_s),
        job=SimpleNamespace(prompt=[0] * 100, arrival_s=100.0),
        served=SimpleNamespace(cached_tokens=cached),
    )


@pytest.mark.parametrize(("now_s", "cached", "late"), [(101.9, 0, False), (102.1, 0, True), (101.3, 80, True)])
def test_without_a_token_the_bound_grows_with_the_uncached_prompt(now_s: float, cached: int, late: bool) -> None:
    assert is_overdue(relay(cached=cached), SLO, now_s) is late


@pytest.mark.parametrize(("now_s", "late"), [(110.4, False), (110.6, True)])
def test_with_tokens_it_is_the_gap_since_the_last_one(now_s: float, late: bool) -> None:
    assert is_overdue(relay(tokens=3, last_s=110.0), SLO, now_s) is late
