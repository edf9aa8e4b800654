"""What the workers did since this plane started, for Prometheus: work by role and phase, added up as it is accounted.

From the same rows as the history, so a flip between two looks misattributes nothing, a restarted worker makes no total
smaller, and a device that workers share counts once. A plane that starts counts from zero, as Prometheus expects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from control.exposition.families import Latencies
from control.points import Ingested, Row
from control.types.workers import Phase, Role

ROLES: Final = (Role.PREFILL, Role.DECODE, Role.MIXED)
WORK: Final = ("busy_s", "flops", "bytes", "tokens", "steps", "flops_room", "bytes_room")
COVER: Final = ("worker_s", "flops_peak", "bytes_peak")
STAGES: Final = ("queue", "prefill", "handoff")
_FLEET: Final = ("fleet", "")


class WorkTotals:
    """Sums per line; the size is that of the fleet, whatever happens in it."""

    def __init__(self) -> None:
        self._work: dict[tuple[str, str, str, Phase], Row] = {}  # scope, name, role
        self._cover: dict[tuple[str, str], Row] = {}
        self._stages: dict[tuple[str, str], Latencies] = {}

    def add(self, ingested: Ingested) -> None:
        """What one look at the fleet found out."""
        for (line, phase, _), row in ingested.phases.items():
            if line.scope != "fleet":
                role = line.name if line.scope == "role" else line.role
                _sum(self._work.setdefault((line.scope, line.name, role, phase), dict.fromkeys(WORK, 0.0)), row)
        for (line, _), row in ingested.states.items():
            if line.scope != "worker":
                _sum(self._cover.setdefault((line.scope, line.name), dict.fromkeys(COVER, 0.0)), row)
        for (line, kind, _), counts in ingested.latencies.items():
            stage = kind.removeprefix("worker_")
            if line.scope == "role" and stage in STAGES:
                self._stages.setdefault((line.name, stage), Latencies()).add(counts)

    def keep(self, worker_ids: Collection[str]) -> None:
        """Forget workers that have left the fleet for good."""
        for key in [key for key in self._work if key[0] == "worker" and key[1] not in worker_ids]:
            del self._work[key]

    def of_role(self, role: Role, phase: Phase) -> Mapping[str, float]:
        return self._work.get(("role", role.value, role.value, phase), _NOTHING)

    def of_worker(self, worker_id: str, role: Role, phase: Phase) -> Mapping[str, float] | None:
        """None: it never did such work in this role."""
        return self._work.get(("worker", worker_id, role.value, phase))

    def cover(self, role: Role | None) -> Mapping[str, float]:
        """How long the workers of a role, or of the whole fleet, were there, and what their devices could have done."""
        return self._cover.get(_FLEET if role is None else ("role", role.value), _NO_COVER)

    def stage(self, role: Role, stage: str) -> Latencies:
        return self._stages.get((role.value, stage)) or Latencies()


def _sum(into: Row, row: Mapping[str, float]) -> None:
    for name in into:
        into[name] += row.get(name, 0.0)


_NOTHING: Final = dict.fromkeys(WORK, 0.0)
_NO_COVER: Final = dict.fromkeys(COVER, 0.0)
