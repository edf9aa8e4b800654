"""Routing tables: what the gateways are told, and under which version.

Decided here: how desired state becomes weights (drained: 0; a fleet may hold a worker at 0 itself), and that a version
is spent only on a change. Versions are `fence * 2**32 + n`, so those of a restarted plane are newer than all before.
Not decided here: who gets a table (`control.gateway_hub`) and what it means for a request (`control.routing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from control.fleets.base import Fleet
from control.types.commands import Desired
from control.types.routing import RoutingTable, WorkerRoute

#: The recent median of output lengths is taken over when it has moved by more than this share, else every request
#: would make a new table.
EXPECTED_OUTPUT_STEP = 0.2


@dataclass(slots=True)
class Tables:
    """The newest table of one fleet."""

    fence: int
    current: RoutingTable | None = None
    _count: int = field(default=0)

    def update(
        self, fleet: Fleet, routes: tuple[WorkerRoute, ...], desired: Desired, expected_output_tokens: int
    ) -> RoutingTable | None:
        """The new table when something in it has changed since the last one, else None."""
        before = self.current
        version = before.version if before else 0
        settled = settled_output(before.expected_output_tokens if before else None, expected_output_tokens)
        table = build_table(fleet, routes, desired, self.fence, version, settled)
        if table == before:
            return None
        self._count += 1
        self.current = replace(table, version=self.fence * 2**32 + self._count)
        return self.current


def build_table(
    fleet: Fleet,
    routes: tuple[WorkerRoute, ...],
    desired: Desired,
    fence: int,
    version: int,
    expected_output_tokens: int,
) -> RoutingTable:
    """The table that says what `desired` wants of the workers that `routes` knows."""
    workers = tuple(replace(route, weight=route.weight * weight_of(desired, route.worker_id)) for route in routes)
    return RoutingTable(
        version=version,
        fleet_id=fleet.fleet_id,
        model_id=fleet.model_id,
        fence=fence,
        num_devices=len(desired.roles),
        policy=desired.policy,
        workers=tuple(sorted(workers, key=lambda each: each.worker_id)),
        expected_output_tokens=expected_output_tokens,
    )


def weight_of(desired: Desired, worker_id: str) -> float:
    """What the operator gave; 0 while it is drained."""
    return 0.0 if worker_id in desired.drained else desired.weights.get(worker_id, 1.0)


def settled_output(before: int | None, now: int) -> int:
    """`now`, or `before` while it is near enough."""
    if before is None or abs(now - before) > EXPECTED_OUTPUT_STEP * before:
        return now
    return before
