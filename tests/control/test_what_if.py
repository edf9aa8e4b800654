from __future__ import annotations

from dataclasses import replace

import pytest

from control.routing import FleetView, RouteRequest, WorkerView, route
from control.types.requests import RequestRecord
from control.types.routing import RouteRule, RoutingPolicy
from control.what_if import what_if
from tests.control.builders import NOW, desired, record

POLICY = RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=512, max_local_output_tokens=256)
HASHES = tuple(range(100))  # of a prompt of 1600 tokens


def served(held: dict[int, int], **changes: object) -> RequestRecord:
    """The record of a request that was routed by POLICY while workers held `held` of its blocks: w0 is slot 0."""
    workers = [WorkerView(f"w{slot}", slot, 1.0, 0, 0, 100_000) for slot in range(4)]
    prefixes: dict[int, int] = {}
    for slot, num_blocks in held.items():
        for block in range(num_blocks):
            prefixes[block] = prefixes.get(block, 0) | 1 << slot
    view = FleetView(4, 8192, 16, 300, prefill=(workers[0],), decode=tuple(workers[1:]), prefixes=prefixes)
    decision = route(RouteRequest("r1", 1600, 400, HASHES), view, POLICY)
    values = {
        "rule": decision.rule.value,
        "prefill_worker": decision.prefill_worker or decision.decode_worker,
        "decode_worker": decision.decode_worker,
        "prompt_tokens": 1600,
        "max_tokens": 400,
        "cached_tokens": 16 * held.get(0, 0) if decision.prefill_worker else decision.cached_tokens,
        "decode_cached_tokens": decision.decode_cached_tokens,
    }
    return record("r1", **{**values, **changes})


def replayed(one: RequestRecord, policy: RoutingPolicy) -> tuple[dict[str, int], int]:
    found = what_if([one], policy, desired(1, 3), 300, NOW, NOW + 1)
    return found.after, found.num_changed


@pytest.mark.parametrize("held", [{}, {0: 95}, {1: 40}, {1: 95}, {0: 95, 1: 40}, {2: 80, 3: 60}])
def test_an_unchanged_policy_changes_nothing(held: dict[int, int]) -> None:
    one = served(held)
    assert replayed(one, POLICY) == ({one.rule: 1}, 0)


def test_what_the_prefill_worker_held_says_nothing_about_the_decode_workers() -> None:
    half = replace(POLICY, local_cache_ratio=0.3)
    assert replayed(served({0: 95}), half) == ({RouteRule.REMOTE: 1}, 0)
    assert replayed(served({0: 95, 1: 40}), half) == ({RouteRule.CACHED_LOCAL: 1}, 1)


def test_a_record_that_does_not_say_what_decode_workers_held_is_not_guessed_from_the_other_pool() -> None:
    assert replayed(served({0: 95}, decode_cached_tokens=None), POLICY) == ({RouteRule.REMOTE: 1}, 0)
    assert replayed(served({1: 95}, decode_cached_tokens=None), POLICY) == ({RouteRule.CACHED_LOCAL: 1}, 0)
