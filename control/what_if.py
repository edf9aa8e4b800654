"""What another routing policy would have decided over requests that were served. Pure; every result is derived.

The rules are the gateways' own (`control.routing.choose_rule`), on what a record keeps: prompt, cached tokens,
max_tokens. Not knowable from a record, so taken as now: the pools, the fleet's size, the expected output.
"""

from __future__ import annotations

from collections.abc import Iterable

from control.routing import RuleFacts, choose_rule
from control.types.commands import Desired
from control.types.requests import RequestRecord
from control.types.routing import RouteRule, RoutingPolicy, WhatIfRouting
from control.types.workers import Role

#: These were decided by the fleet's room, not by the policy: another policy would not have changed them.
KEPT = frozenset({RouteRule.CANNOT_FIT.value, RouteRule.NO_CAPACITY.value})
NOTE = (
    "Derived from request records, each weighted by the share of its like that was kept: pools, fleet size and "
    "expected output as now, cached tokens as they were."
)


def what_if(
    records: Iterable[RequestRecord],
    policy: RoutingPolicy,
    desired: Desired,
    expected_output_tokens: int,
    since_unix_s: float,
    until_unix_s: float,
) -> WhatIfRouting:
    """Requests per rule, as they were routed and as `policy` would have."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    changed = 0.0
    for record in records:
        rule = rule_under(record, policy, desired, expected_output_tokens)
        before[record.rule] = before.get(record.rule, 0.0) + record.weight
        after[rule] = after.get(rule, 0.0) + record.weight
        changed += record.weight if rule != record.rule else 0.0
    return WhatIfRouting(
        before={rule: round(num) for rule, num in before.items()},
        after={rule: round(num) for rule, num in after.items()},
        num_requests=round(sum(before.values())),
        num_changed=round(changed),
        since_unix_s=since_unix_s,
        until_unix_s=until_unix_s,
        note=NOTE,
    )


def rule_under(record: RequestRecord, policy: RoutingPolicy, desired: Desired, expected_output_tokens: int) -> str:
    """The rule that would have decided this request under `policy`."""
    if record.rule in KEPT or record.prompt_tokens < 1:
        return record.rule
    facts = RuleFacts(
        record.request_id,
        len(desired.roles),
        record.prompt_tokens,
        record.max_tokens,
        expected_output_tokens,
        _decode_cached_tokens(record),
        desired.pool_size(Role.PREFILL),
        desired.pool_size(Role.DECODE),
    )
    return choose_rule(facts, policy)[0].value


def _decode_cached_tokens(record: RequestRecord) -> int:
    """What the rules looked at. Without it, a split request is taken as uncached: its `cached_tokens` is prefill's."""
    if record.decode_cached_tokens is not None:
        return record.decode_cached_tokens
    return 0 if record.prefill_worker != record.decode_worker else record.cached_tokens
