"""How full a pool is beside how hard it works, and how many more requests it could take. Pure.

Decided here (DESIGN section 3): prefill is full in seconds of queued uncached tokens; decode in KV blocks held and
reserved, and in its batch against the largest batch that keeps the time per token inside the SLO. Headroom is the extra
requests per second until the first of these is full, if traffic keeps its shape: linear, and so *derived*.

The largest batch: a decode step takes fixed + slope x batch (weights once, then each sequence's KV). Both are fitted
to the steps of the last minutes. It is unknown while the batches seen lie too close together, and never told beyond
FURTHEST times the largest of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import StatisticsError, linear_regression
from typing import Final

from control.types.fleet import TrafficStatus
from control.types.routing import RouteRule
from control.types.workers import PhaseUtilization, Role
from engine.readings import MeterReading
from engine.types import Phase

#: Where a pool counts as full: share of time in prefill, share of KV blocks in decode.
FULL_PREFILL_BUSY: Final = 0.85
FULL_DECODE_KV: Final = 0.9
#: Below this share nothing can be extrapolated.
LEAST_SHARE: Final = 0.02
LEAST_ATTAINMENT: Final = 0.95
#: Batches that a fit needs, and how far beyond the largest of them it is believed.
LEAST_BATCHES: Final = 3
FURTHEST: Final = 4.0
#: Steps that are remembered per role; means of a look, not single steps.
MAX_LOOKS: Final = 300


@dataclass(frozen=True, slots=True)
class BatchLimit:
    """The batch now, of one worker, and the largest inside the bound; None is unknown."""

    batch: float | None = None
    largest: float | None = None

    @property
    def share(self) -> float | None:
        if self.batch is None or not self.largest:
            return None
        return self.batch / self.largest


class DecodePace:
    """How long decode steps of each role take at which batch: one (batch, seconds) per worker and look."""

    def __init__(self) -> None:
        self._looks: dict[Role, deque[tuple[float, float]]] = {}

    def add(self, readings: Iterable[MeterReading]) -> None:
        for reading in readings:
            steps = [each for each in reading.steps if each.phase is Phase.DECODE]
            if steps:
                batch = sum(each.batch for each in steps) / len(steps)
                seconds = sum(each.end_unix_s - each.start_unix_s for each in steps) / len(steps)
                self._looks.setdefault(steps[-1].role, deque(maxlen=MAX_LOOKS)).append((batch, seconds))

    def limits(self, readings: Mapping[str, MeterReading], tpot_s: float) -> dict[Role, BatchLimit]:
        """Per role that decodes now, and whose workers all say how many sequences run."""
        found = {}
        for role in (Role.DECODE, Role.MIXED):
            members = [each for each in readings.values() if each.alive and each.role is role]
            if members and not any("num_running" in each.unknown for each in members):
                running, looks = sum(each.load.num_running for each in members), self._looks.get(role, deque())
                found[role] = BatchLimit(running / len(members), largest_batch(looks, tpot_s))
        return found


def largest_batch(looks: Iterable[tuple[float, float]], tpot_s: float) -> float | None:
    """The batch at which a step takes `tpot_s`, by a line through (batch, seconds)."""
    known = list(looks)
    if len({round(batch) for batch, _ in known}) < LEAST_BATCHES:
        return None
    try:
        slope, fixed_s = linear_regression([batch for batch, _ in known], [seconds for _, seconds in known])
    except StatisticsError:
        return None
    if slope <= 0:
        return None
    most = FURTHEST * max(batch for batch, _ in known)
    return max(0.0, min(most, (tpot_s - fixed_s) / slope))


def headroom_rps(
    role: Role,
    load: float | None,
    prefill: PhaseUtilization | None,
    traffic: TrafficStatus,
    batch: BatchLimit | None = None,
) -> float | None:
    """Extra requests per second until the pool is full, if traffic keeps its shape (derived, linear).

    headroom = rate x (1 - share) / share, at least 0. Of a prefill pool share is the time in prefill / 0.85, and rate
    the split requests; of a decode or mixed pool it is the larger of KV held and reserved / 0.9 and batch / largest
    batch, and rate all requests. While attainment is under 0.95 the SLO is broken already: 0. None without traffic, or
    when share is too small to extrapolate from.
    """
    rate = split_rps(traffic) if role == Role.PREFILL else traffic.offered_rps
    share = pool_fullness(role, load, prefill, batch)
    if not rate or share is None or share < LEAST_SHARE:
        return None
    if traffic.attainment is not None and traffic.attainment < LEAST_ATTAINMENT:
        return 0.0
    return max(0.0, rate * (1.0 - share) / share)


def pool_fullness(
    role: Role, load: float | None, prefill: PhaseUtilization | None, batch: BatchLimit | None
) -> float | None:
    """1 is full, by whatever is fullest of what is known."""
    if role == Role.PREFILL:
        busy = prefill.busy if prefill else None
        return None if busy is None else busy / FULL_PREFILL_BUSY
    known = [None if load is None else load / FULL_DECODE_KV, batch.share if batch else None]
    return max((each for each in known if each is not None), default=None)


def split_rps(traffic: TrafficStatus) -> float | None:
    """Offered requests per second that went through a prefill worker."""
    total = sum(traffic.by_rule.values())
    if traffic.offered_rps is None or not total:
        return None
    return traffic.offered_rps * traffic.by_rule.get(RouteRule.REMOTE, 0) / total
