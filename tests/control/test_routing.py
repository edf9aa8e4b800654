"""Every rule of DESIGN section 6 with numbers that can be checked in the head, and what always holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.routing import (
    FleetView,
    RouteRequest,
    RuleFacts,
    WorkerView,
    cached_tokens,
    choose_rule,
    route,
    share_of,
)
from control.types.bottleneck import Resource
from control.types.routing import RouteRule, RoutingPolicy

POLICY = RoutingPolicy(min_fleet_devices=4, min_remote_prefill_tokens=512, max_local_output_tokens=256)


def worker(name: str, slot: int, **fields: Any) -> WorkerView:
    """Idle, weight 1, room for 100,000 tokens."""
    shape = {"weight": 1.0, "queued_prefill_tokens": 0, "kv_used_tokens": 0, "kv_total_tokens": 100_000, **fields}
    return WorkerView(name, slot, **shape)


def view(**fields: Any) -> FleetView:
    """Two prefill and two decode workers of 16-token blocks."""
    shape: dict[str, Any] = {
        "num_devices": 12,
        "max_context": 8192,
        "block_tokens": 16,
        "expected_output_tokens": 300,
        "prefill": (worker("p0", 0), worker("p1", 1)),
        "decode": (worker("d0", 2), worker("d1", 3)),
        **fields,
    }
    return FleetView(**shape)


def request(name: str = "r", prompt: int = 1600, max_tokens: int = 400, **fields: Any) -> RouteRequest:
    return RouteRequest(name, prompt, max_tokens, **fields)


def held_by(slot: int, num_blocks: int) -> dict[int, int]:
    return dict.fromkeys(range(num_blocks), 1 << slot)


HASHES = tuple(range(100))  # of a prompt of 1600 tokens

CASES = [
    ("the prompt and answer are longer than the context", {"prompt": 8000}, {}, RouteRule.CANNOT_FIT),
    (
        "no worker's KV pool could ever hold it",
        {},
        {"decode": (worker("d0", 2, kv_total_tokens=1999),)},
        RouteRule.CANNOT_FIT,
    ),
    ("nobody decodes", {}, {"decode": ()}, RouteRule.NO_CAPACITY),
    ("all decode workers have weight 0", {}, {"decode": (worker("d0", 2, weight=0.0),)}, RouteRule.NO_CAPACITY),
    (
        "no decode worker has room now",
        {},
        {"decode": (worker("d0", 2, kv_used_tokens=98_001),)},
        RouteRule.NO_CAPACITY,
    ),
    ("there is no prefill worker", {}, {"prefill": ()}, RouteRule.EMPTY_POOL),
    (
        "there is no decode worker, but a mixed one",
        {},
        {"decode": (), "mixed": (worker("m", 4),)},
        RouteRule.EMPTY_POOL,
    ),
    ("the fleet is small", {}, {"num_devices": 3}, RouteRule.SMALL_FLEET),
    (
        "80% of the prompt is on a decode worker",
        {"block_hashes": HASHES},
        {"prefixes": held_by(3, 80)},
        RouteRule.CACHED_LOCAL,
    ),
    ("79% is not enough", {"block_hashes": HASHES}, {"prefixes": held_by(3, 79)}, RouteRule.REMOTE),
    (
        "what a prefill worker holds does not make it local",
        {"block_hashes": HASHES},
        {"prefixes": held_by(0, 100)},
        RouteRule.REMOTE,
    ),
    ("511 tokens and 255 of output are short", {"prompt": 511, "max_tokens": 255}, {}, RouteRule.SHORT_LOCAL),
    ("512 tokens are not short", {"prompt": 512, "max_tokens": 255}, {}, RouteRule.REMOTE),
    ("256 tokens of output are not short", {"prompt": 511, "max_tokens": 256}, {}, RouteRule.REMOTE),
    (
        "the median output counts where it is below max_tokens",
        {"prompt": 511, "max_tokens": 4000},
        {"expected_output_tokens": 255},
        RouteRule.SHORT_LOCAL,
    ),
    ("anything else is split", {}, {}, RouteRule.REMOTE),
]


@pytest.mark.parametrize(("asked", "fleet", "rule"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_first_rule_that_holds_decides(asked: dict[str, Any], fleet: dict[str, Any], rule: RouteRule) -> None:
    decision = route(request(**asked), view(**fleet), POLICY)
    assert decision.rule is rule
    assert decision.reason
    if rule in (RouteRule.CANNOT_FIT, RouteRule.NO_CAPACITY):
        assert decision.decode_worker is None
        assert (decision.retry_after_s > 0) is (rule is RouteRule.NO_CAPACITY)
    else:
        assert decision.decode_worker is not None
        assert (decision.prefill_worker is not None) is (rule is RouteRule.REMOTE)


@pytest.mark.parametrize(
    ("fleet", "lacks"),
    [
        ({"decode": (worker("d0", 2, kv_used_tokens=98_001),)}, Resource.KV_ROOM),
        ({"decode": (worker("d0", 2, num_free_slots=0),)}, Resource.DECODE_BANDWIDTH),
        ({"prefill": (worker("p0", 0, is_backlogged=True),)}, Resource.PREFILL),
        ({"decode": ()}, None),
    ],
)
def test_who_finds_no_room_is_told_what_there_is_too_little_of(fleet: dict[str, Any], lacks: Resource | None) -> None:
    assert route(request(), view(**fleet), RoutingPolicy()).lacks is lacks


def test_a_cached_prompt_stays_on_the_worker_that_holds_it() -> None:
    decision = route(request(block_hashes=HASHES), view(prefixes=held_by(3, 90)), POLICY)
    assert decision.decode_worker == "d1"
    assert decision.cached_tokens == 1440
    assert "0.90 of the prompt" in decision.reason


def test_a_split_decision_says_what_the_prefill_worker_holds_too() -> None:
    busy = view(prefill=(worker("p0", 0), worker("p1", 1, queued_prefill_tokens=5000)), prefixes=held_by(0, 90))
    decision = route(request(block_hashes=HASHES), busy, POLICY)
    assert decision.prefill_worker == "p0"
    assert (decision.computing_cached_tokens, decision.cached_tokens) == (1440, 0)


def test_prefill_goes_to_the_shortest_queue_and_decode_to_the_emptiest_pool() -> None:
    busy = view(
        prefill=(worker("p0", 0, queued_prefill_tokens=5000), worker("p1", 1, queued_prefill_tokens=4000)),
        decode=(worker("d0", 2, kv_used_tokens=10_000), worker("d1", 3, kv_used_tokens=20_000)),
    )
    decision = route(request(), busy, POLICY)
    assert (decision.prefill_worker, decision.decode_worker) == ("p1", "d0")


def test_a_prefix_hit_outweighs_a_queue_that_is_shorter_by_less() -> None:
    queues = {"prefill": (worker("p0", 0, queued_prefill_tokens=1000), worker("p1", 1, queued_prefill_tokens=0))}
    hit = view(**queues, prefixes=held_by(0, 64))  # saves 1024 tokens
    assert route(request(block_hashes=HASHES), hit, POLICY).prefill_worker == "p0"
    smaller = view(**queues, prefixes=held_by(0, 62))  # saves 992
    assert route(request(block_hashes=HASHES), smaller, POLICY).prefill_worker == "p1"


def test_a_worker_of_weight_three_takes_three_times_the_queue() -> None:
    def choose(first: int) -> str | None:
        queues = (worker("p0", 0, weight=3.0, queued_prefill_tokens=first), worker("p1", 1, queued_prefill_tokens=1000))
        return route(request(), view(prefill=queues), POLICY).prefill_worker

    assert choose(2999) == "p0"
    assert choose(3001) == "p1"


def test_an_idle_fleet_shares_requests_in_the_ratio_of_the_weights() -> None:
    idle = view(decode=(worker("d0", 2, weight=1.0), worker("d1", 3, weight=3.0)))
    chosen = Counter(route(request(f"r{at}"), idle, POLICY).decode_worker for at in range(4000))
    assert 2850 <= chosen["d1"] <= 3150


def test_a_burst_spreads_when_what_was_sent_is_counted() -> None:
    used = {"d0": 0, "d1": 0}
    for at in range(40):
        rows = tuple(worker(name, 2 + slot, kv_used_tokens=used[name]) for slot, name in enumerate(used))
        used[str(route(request(f"r{at}"), view(decode=rows), POLICY).decode_worker)] += 2000
    assert used == {"d0": 40_000, "d1": 40_000}


def test_remote_share_splits_that_share_and_always_the_same_requests() -> None:
    def remote(share: float) -> set[int]:
        policy = RoutingPolicy(min_fleet_devices=0, remote_share=share)
        return {at for at in range(4000) if route(request(f"r{at}"), view(), policy).rule is RouteRule.REMOTE}

    assert remote(0.0) == set()
    assert len(remote(1.0)) == 4000
    assert 900 <= len(remote(0.25)) <= 1100
    assert remote(0.25) < remote(0.5)


def test_the_control_arm_is_named() -> None:
    decision = route(request(), view(), RoutingPolicy(min_fleet_devices=0, remote_share=0.0))
    assert decision.rule is RouteRule.CONTROL_ARM
    assert decision.reason == "outside remote_share 0"


def test_workers_that_refused_are_not_asked_again() -> None:
    decision = route(request(excluded=frozenset({"d0", "p1"})), view(), POLICY)
    assert (decision.prefill_worker, decision.decode_worker) == ("p0", "d1")
    assert route(request(excluded=frozenset({"d0", "d1"})), view(), POLICY).rule is RouteRule.NO_CAPACITY


def test_a_walk_over_the_blocks_ends_for_a_worker_at_its_first_miss() -> None:
    holders = {0: 0b111, 1: 0b110, 2: 0b010, 3: 0b001}
    found = cached_tokens(request(prompt=64, block_hashes=(0, 1, 2, 3)), view(prefixes=holders))
    assert found == {0: 16, 2: 32, 1: 48}


def test_of_a_wholly_cached_prompt_one_token_is_still_computed() -> None:
    found = cached_tokens(request(prompt=32, block_hashes=(0, 1)), view(prefixes={0: 1, 1: 1}))
    assert found == {0: 31}


def test_rules_can_be_replayed_without_workers() -> None:
    facts = RuleFacts("r", 12, 100, 50, 300, 0, 1, 1)
    assert choose_rule(facts, POLICY)[0] is RouteRule.SHORT_LOCAL


# --- what always holds -------------------------------------------------------------------------------------------

WORKERS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 4.0]), st.integers(0, 9000), st.integers(0, 30_000), st.integers(1, 30_000)
    ),
    max_size=5,
)


def pool(prefix: str, first_slot: int, rows: list[tuple[float, int, int, int]]) -> tuple[WorkerView, ...]:
    return tuple(WorkerView(f"{prefix}{at}", first_slot + at, *row) for at, row in enumerate(rows))


@given(
    prefill=WORKERS,
    decode=WORKERS,
    mixed=WORKERS,
    prompt=st.integers(1, 9000),
    max_tokens=st.integers(1, 2000),
    devices=st.integers(0, 20),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    held=st.dictionaries(st.integers(0, 20), st.integers(0, 2**15 - 1), max_size=20),
    excluded=st.frozensets(st.sampled_from(["p0", "d0", "m0", "d1"])),
)
def test_every_decision_has_a_reason_and_names_workers_that_may_serve(
    prefill: list[Any],
    decode: list[Any],
    mixed: list[Any],
    prompt: int,
    max_tokens: int,
    devices: int,
    share: float,
    held: dict[int, int],
    excluded: frozenset[str],
) -> None:
    fleet = view(
        num_devices=devices,
        prefill=pool("p", 0, prefill),
        decode=pool("d", 5, decode),
        mixed=pool("m", 10, mixed),
        prefixes=held,
    )
    asked = request("r", prompt, max_tokens, block_hashes=tuple(range(prompt // 16))[:20], excluded=excluded)
    policy = RoutingPolicy(min_fleet_devices=4, remote_share=share)
    decision = route(asked, fleet, policy)
    assert decision == route(asked, fleet, policy)
    assert decision.reason
    assert "\n" not in decision.reason
    by_name = {each.worker_id: each for each in (*fleet.prefill, *fleet.decode, *fleet.mixed)}
    for name in (decision.prefill_worker, decision.decode_worker):
        if name is not None:
            assert by_name[name].weight > 0
            assert name not in excluded
    if decision.decode_worker is not None:
        assert decision.decode_worker[0] in "dm"
        assert by_name[decision.decode_worker].kv_total_tokens >= prompt + max_tokens
        assert 0 <= decision.cached_tokens < prompt
    if decision.rule is RouteRule.REMOTE:
        assert share > 0
        assert str(decision.prefill_worker)[0] == "p"
        assert str(decision.decode_worker)[0] == "d"
        target = by_name[str(decision.decode_worker)]
        assert target.kv_total_tokens - target.kv_used_tokens >= prompt + max_tokens


@given(st.text(min_size=1, max_size=40))
def test_the_place_of_a_request_is_in_the_unit_interval(name: str) -> None:
    assert 0.0 <= share_of(name) < 1.0


def test_with_no_worker_connected_the_context_is_unknown_and_nothing_is_refused_for_its_length() -> None:
    decision = route(RouteRequest("r", 100, 20, [], frozenset()), FleetView(4, 0, 0, 20), POLICY)
    assert decision.rule is RouteRule.NO_CAPACITY
