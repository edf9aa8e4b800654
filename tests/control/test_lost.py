"""Where one request that was not good lost its time."""

from __future__ import annotations

from typing import Any

import pytest

from control.lost import Loss, Tally, lost_to
from control.types.bottleneck import Resource
from control.types.requests import RequestMove, Slo
from tests.control.records import record

SLO = Slo(ttft_base_s=1.0, ttft_per_token_s=0.001, tpot_s=0.1, max_gap_s=1.0)


def served(**changes: Any) -> Any:
    """100 prompt tokens, so 1.1 s are allowed to the first of 21 tokens; all is told."""
    told = {"line_s": 0.0, "queue_s": 0.0, "prefill_s": 0.1, "ttft_s": 0.1, "handoff_s": 0.0, "decode_s": 1.0}
    return record(**{**told, "e2e_s": 1.1, "output_tokens": 21, "tpot_s": 0.05, "max_gap_s": 0.1, **changes})


LATE_TO_BEGIN = [
    ("it stood in the line for prefill", {"line_s": 2.0, "waited_for": "prefill"}, Resource.PREFILL),
    ("it stood in the line for KV", {"line_s": 2.0, "waited_for": "kv_room"}, Resource.KV_ROOM),
    ("it stood in the line for a slot", {"line_s": 2.0, "waited_for": "decode_bandwidth"}, Resource.DECODE_BANDWIDTH),
    ("it was queued on a worker", {"queue_s": 2.0}, Resource.PREFILL),
    ("no worker knows of the time", {}, Resource.GATEWAY),
]


@pytest.mark.parametrize(("why", "changes", "resource"), LATE_TO_BEGIN)
def test_a_late_first_token_is_lost_where_most_of_the_way_to_it_was(
    why: str, changes: dict[str, Any], resource: Resource
) -> None:
    assert lost_to(served(ttft_s=2.2, **changes), SLO) == Loss("late", resource), why


IN_THE_STREAM = [
    ("its steps were too slow", {"decode_s": 3.0, "e2e_s": 3.1, "tpot_s": 0.15}, Resource.DECODE_BANDWIDTH),
    ("its KV came late", {"handoff_s": 2.0, "e2e_s": 3.1, "tpot_s": 0.15}, Resource.HANDOFF),
    ("its tokens were passed on late", {"e2e_s": 3.1, "tpot_s": 0.15}, Resource.GATEWAY),
    ("one gap was its handoff", {"handoff_s": 1.1, "e2e_s": 2.2, "max_gap_s": 1.2}, Resource.HANDOFF),
    ("one gap was the gateway's", {"e2e_s": 2.3, "max_gap_s": 1.2}, Resource.GATEWAY),
    ("one gap was a step", {"decode_s": 1.9, "e2e_s": 2.0, "max_gap_s": 1.2}, Resource.DECODE_BANDWIDTH),
]


@pytest.mark.parametrize(("why", "changes", "resource"), IN_THE_STREAM)
def test_late_tokens_are_lost_at_what_made_them_late(why: str, changes: dict[str, Any], resource: Resource) -> None:
    assert lost_to(served(**changes), SLO) == Loss("late", resource), why


def test_a_refusal_is_lost_to_what_it_lacked() -> None:
    assert lost_to(record(status=429, waited_for="kv_room"), SLO) == Loss("refused", Resource.KV_ROOM)
    assert lost_to(record(status=429), SLO) == Loss("unknown")


def test_a_prompt_that_is_late_by_itself_is_no_resources_loss() -> None:
    assert lost_to(served(ttft_s=2.2, prefill_s=1.5, queue_s=0.7), SLO) == Loss("alone")


def test_errors_and_stalls_of_lost_workers_are_no_resources_loss() -> None:
    move = RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=0.5, stall_s=1.2)
    assert lost_to(record(status=502), SLO) == Loss("failed")
    assert lost_to(served(max_gap_s=1.2, e2e_s=2.3, moves=(move,)), SLO) == Loss("failed")


def test_a_record_that_does_not_say_where_its_time_went_is_unknown() -> None:
    assert lost_to(served(ttft_s=2.2, line_s=None), SLO) == Loss("unknown")
    assert lost_to(served(tpot_s=0.15, decode_s=None), SLO) == Loss("unknown")


def test_a_tally_adds_up_and_means_are_over_those_that_say_it() -> None:
    first, second = Tally(), Tally()
    first.add(served(line_s=0.4), SLO, is_good=True)
    second.add(served(line_s=None), SLO, is_good=True)
    second.add(record(status=429, waited_for="prefill"), SLO, is_good=False)
    first.merge(second)
    assert (first.num_good, first.num_decided) == (2, 3)
    assert first.mean_s("line_s") == pytest.approx(0.4)
    assert first.share([Loss("refused", Resource.PREFILL)]) == pytest.approx(1 / 3)
    assert Tally().mean_s("line_s") is None
