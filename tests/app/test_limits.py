"""The card that says what limits now."""

from __future__ import annotations

from typing import Any

import pytest

from app.limits import card, headline
from control.types.bottleneck import Bottleneck, Resource


def found(**changes: Any) -> Bottleneck:
    values: dict[str, Any] = {
        "kind": "prefill",
        "resources": (Resource.PREFILL,),
        "text": "Prefill is the bottleneck: 30% of requests are refused for want of it, 99% busy",
        "at_unix_s": 0.0,
        "since_unix_s": 0.0,
        "window_s": 60.0,
        "gains": {each.value: 0.25 if each is Resource.PREFILL else 0.0 for each in Resource},
    }
    return Bottleneck(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Prefill is the bottleneck"),
        ({"kind": "none", "resources": (), "text": "No bottleneck: 99% of requests are good"},
         "No bottleneck: 99% of requests are good"),
        ({"kind": "unknown", "resources": (), "text": "Unknown: no gateway is heard"}, "Unknown: no gateway is heard"),
    ],
)  # fmt: skip
def test_the_card_says_the_verdict_without_the_numbers_that_stand_elsewhere(
    changes: dict[str, Any], words: str
) -> None:
    assert headline(found(**changes)) == words


def test_each_resource_that_would_help_has_its_estimate_and_what_limits_stands_out() -> None:
    markup = card(found(gains={"prefill": 0.25, "kv_room": 0.04, "gateway": 0.001}))
    assert "<b>Prefill worker</b></span><b>25" in markup
    assert "KV room</span><b>4" in markup
    assert "Gateway" not in markup
    assert ">derived<" in markup
    assert ">simulated<" in card(found(simulated=True))


def test_without_estimates_there_are_no_bars_and_without_a_verdict_no_card() -> None:
    assert "pl-bar" not in card(found(gains={}))
    assert card(None) == ""
