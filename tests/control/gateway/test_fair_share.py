"""Between API keys: who has had less for its weight goes first, and nobody saves up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.gateway.fair_share import MAX_KEYS, FairShare
from control.gateway.turns import turn_of
from control.gateway.usage import MAX_TOLD_KEYS


def come(shares: FairShare, key: str, device_s: float = 1.0) -> float:
    tag = shares.tag(key)
    shares.charge(key, device_s)
    return tag


def test_a_flooding_key_stands_behind_a_modest_one():
    shares = FairShare()
    flood = [come(shares, "flood") for _ in range(10)]
    assert flood == [float(n) for n in range(10)]
    shares.serve(flood[0])
    shares.serve(flood[1])
    assert come(shares, "modest") == 1.0, "as if it had come when the one served last did"


def test_a_key_that_was_idle_has_saved_up_nothing():
    shares = FairShare()
    for _ in range(100):
        shares.serve(come(shares, "busy"))
    assert [come(shares, "idle") for _ in range(3)] == [99.0, 100.0, 101.0]


def test_a_weight_makes_virtual_time_run_slower():
    shares = FairShare({"paying": 4.0, "default": 0.5})
    assert [come(shares, "paying") for _ in range(3)] == [0.0, 0.25, 0.5]
    assert [come(shares, "other") for _ in range(3)] == [0.0, 2.0, 4.0]


def test_what_was_charged_in_advance_is_put_right_at_the_end():
    shares = FairShare()
    shares.charge("a", 5.0)
    shares.settle("a", 5.0, 2.0)
    assert shares.tag("a") == 2.0
    assert shares.used_s == {"a": 2.0}


def test_what_a_key_uses_at_other_gateways_counts_here():
    shares = FairShare({"a": 2.0})
    shares.learn_elsewhere({"a": 3.0})
    assert shares.tag("a") == 1.5
    assert shares.take_used() == {}, "it was used elsewhere, so elsewhere tells it"


def test_what_was_used_is_told_once():
    shares = FairShare()
    shares.settle("a", 0.0, 2.0)
    assert shares.take_used() == {"a": 2.0}
    assert shares.take_used() == {}


def test_two_gateways_that_tell_each_other_keep_a_key_to_its_share():
    """The flood is split over two gateways, the modest key uses one: it waits there behind one request, not two."""
    one, two = FairShare(), FairShare()
    for _ in range(49):
        for here, there in ((one, two), (two, one)):
            here.serve(come(here, "flood"))
            here.settle("flood", 1.0, 1.0)
            there.learn_elsewhere(here.take_used())
    assert one.tag("flood") == pytest.approx(2 * 49, abs=2.0)
    assert come(one, "modest") < one.tag("flood")


def test_the_number_of_keys_that_are_remembered_is_bounded():
    shares = FairShare()
    for n in range(MAX_KEYS + 100):
        shares.charge(f"key-{n}", 1.0 + n)
        shares.settle(f"key-{n}", 1.0 + n, 1.0 + n)
    assert len(shares._finish) <= MAX_KEYS
    assert len(shares.used_s) <= MAX_KEYS
    assert shares.tag(f"key-{MAX_KEYS + 99}") > 0, "those that owe most are remembered"
    assert len(shares.take_used()) == MAX_TOLD_KEYS


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 3.0)), min_size=30, max_size=120))
def test_keys_that_always_wait_get_equal_device_seconds(asks: list[tuple[str, float]]):
    """Served by lowest tag, two keys that both have work all the time differ by at most two requests of the largest."""
    shares, waiting, served = FairShare(), [], dict.fromkeys("abc", 0.0)
    for key, device_s in asks:
        waiting.append((come(shares, key, device_s), key, device_s))
    left = {key: sum(1 for each in waiting if each[1] == key) for key in "abc"}
    for tag, key, device_s in sorted(waiting):
        if min(left.values()) == 0:
            break
        shares.serve(tag)
        served[key] += device_s
        left[key] -= 1
        assert max(served.values()) - min(served.values()) <= 2 * 3.0 + 1e-9


def turn(**changes):
    fields = {"has_begun": False, "priority": 0, "start_tag": 0.0, "arrival_s": 0.0}
    return turn_of(**{**fields, **changes})


def test_the_order_is_begun_then_class_then_share_then_priority_then_arrival():
    in_order = [
        turn(has_begun=True, priority=10, start_tag=9.0, arrival_s=9.0),
        turn(start_tag=1.0, arrival_s=9.0),
        turn(start_tag=2.0, priority=-5, arrival_s=8.0),
        turn(start_tag=2.0, priority=0, arrival_s=1.0),
        turn(start_tag=2.0, priority=0, arrival_s=2.0),
        turn(priority=1, start_tag=0.0),
        turn(priority=1, start_tag=5.0),
    ]
    assert sorted(in_order) == in_order
