"""Which records are kept: the slow, the failed, the moved, and a random share of the rest, with weights that add up."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from control.routing import share_of
from control.sampling import TOP_WINDOW, Sampler, first_of_top, places, share_for
from control.types.requests import RequestMove, RequestRecord
from tests.control.records import record

LATE = RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=1.0)


def judged(sampler: Sampler, records: list[RequestRecord], per_s: float) -> list[RequestRecord]:
    return [sampler.judge(each, index / per_s) for index, each in enumerate(records)]


def ordinary(count: int) -> list[RequestRecord]:
    return [record(request_id=f"r{index}") for index in range(count)]


def test_everything_is_kept_while_there_is_little() -> None:
    found = judged(Sampler(20.0), ordinary(1000), per_s=19.0)
    assert {(each.kept, each.weight) for each in found} == {("share", 1.0)}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"broken": ("ttft",), "good": False}, "slow"),
        ({"status": 503, "finish_reason": "error", "good": False}, "failed"),
        ({"moves": (LATE,)}, "moved"),
    ],
)
def test_what_matters_is_kept_however_much_there_is(changes: dict[str, object], kept: str) -> None:
    sampler = Sampler(1.0)
    judged(sampler, ordinary(5000), per_s=1000.0)
    found = [sampler.judge(record(request_id=f"x{i}", **changes), 5.0) for i in range(50)]
    assert {(each.kept, each.weight) for each in found} == {(kept, 1.0)}


def test_the_slowest_of_lately_are_kept_though_every_bound_held() -> None:
    sampler, chance = Sampler(0.1), random.Random(7)
    times = [chance.lognormvariate(0.0, 0.5) for _ in range(2 * TOP_WINDOW)]
    rows = [record(request_id=f"r{i}", e2e_s=e2e_s) for i, e2e_s in enumerate(times)]
    found = judged(sampler, rows, per_s=1000.0)
    slow = [each.e2e_s for each in found[TOP_WINDOW:] if each.kept == "slow"]
    assert 0.003 * TOP_WINDOW < len(slow) < 0.02 * TOP_WINDOW
    assert min(each for each in slow if each is not None) > sorted(times)[int(0.97 * len(times))]


def test_times_that_are_all_the_same_have_no_slowest() -> None:
    assert first_of_top([{100: 1000}], 0.01) is None
    assert first_of_top([{100: 990, 101: 10}], 0.01) == 101
    assert first_of_top([{100: 989, 101: 11}], 0.01) is None


@pytest.mark.parametrize(
    ("num", "share"), [(0, 1.0), (200, 1.0), (201, 0.5), (400, 0.5), (401, 0.25), (20_000, 1 / 128)]
)
def test_the_share_is_a_power_of_two_within_the_limit(num: int, share: float) -> None:
    assert share_for(num, 10.0, 20.0) == share


def test_about_as_many_as_allowed_are_kept_and_their_weights_count_all() -> None:
    found = judged(Sampler(20.0), ordinary(60_000), per_s=1000.0)
    kept = [each for each in found if each.kept == "share"]
    assert len(kept) < 2 * 20.0 * 60
    assert sum(each.weight for each in kept) == pytest.approx(60_000, rel=0.1)


def test_weights_count_each_kind_of_request_whatever_share_held_when() -> None:
    """Rates that change all the time: a request of a slow minute is kept for certain, one of a busy minute rarely."""
    sampler, chance, at_s = Sampler(10.0), random.Random(3), 0.0
    found: list[RequestRecord] = []
    for index in range(60_000):
        at_s += 1.0 / (1500.0 if int(at_s / 15) % 2 else 30.0)
        rule = chance.choice(("remote", "remote", "remote", "short_local"))
        found.append(sampler.judge(record(request_id=f"r{index}", rule=rule), at_s))
    weights: Counter[str] = Counter()
    for each in found:
        weights[each.rule] += each.weight if each.kept == "share" else 0.0
    num = Counter(each.rule for each in found)
    assert {rule: weights[rule] / num[rule] for rule in num} == pytest.approx(dict.fromkeys(num, 1.0), abs=0.1)


def test_a_burst_lowers_the_share_at_once() -> None:
    sampler = Sampler(20.0)
    found = [sampler.judge(each, 100.0) for each in ordinary(20_000)]
    assert sum(each.kept == "share" for each in found) < 200 * 8


def test_the_place_of_an_id_says_nothing_about_its_other_places() -> None:
    """Else the control arm of the routing would be kept, and the others not."""
    ids = [f"r{index}" for index in range(4000)]
    low = [each for each in ids if share_of(each) < 0.1]
    assert sum(places(each)[0] < 0.5 for each in low) == pytest.approx(len(low) / 2, rel=0.2)
    kept = [each for each in ids if places(each)[0] < 0.1]
    assert sum(places(each)[1] < 0.5 for each in kept) == pytest.approx(len(kept) / 2, rel=0.2)


def test_the_judgement_does_not_depend_on_what_a_record_said_before() -> None:
    """A write that failed is judged anew."""
    dropped = replace(record(), kept="dropped", weight=64.0)
    assert (Sampler(1.0).judge(dropped, 0.0).kept, Sampler(1.0).judge(dropped, 0.0).weight) == ("share", 1.0)
