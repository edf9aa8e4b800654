"""What one plane remembers to say what limits its fleet: the looks of the last half minute, and the verdict told.

Decided here: how long a look counts. The verdict itself is pure: `control.bottleneck`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from control.accounting import UtilizationView
from control.bottleneck import Standing, settle, verdict
from control.evidence import Decode, Evidence, Look, Prefill, ceiling_source, growth_of, look_at, mean_of, pools_of
from control.traffic_stats import WINDOW_S, TrafficStats
from control.types.bottleneck import Bottleneck
from control.types.events import FleetEvent
from engine.readings import MeterReading

#: Looks as old as this count; requests count by their arrival, over `traffic_stats.WINDOW_S`.
LOOKS_S: Final = 30.0


@dataclass(slots=True)
class BottleneckWatch:
    """`look` is called once a tick, `take` when what it returns is written with that tick."""

    fleet_id: str
    _looks: deque[Look] = field(default_factory=deque)
    _standing: Standing | None = None
    _written_unix_s: float = 0.0

    def look(
        self,
        readings: Iterable[MeterReading],
        utilization: UtilizationView | None,
        traffic: TrafficStats,
        now_unix_s: float,
    ) -> Bottleneck:
        """What is told now."""
        workers = tuple(readings)
        self._looks.append(look_at(workers, utilization, traffic.line_tokens(now_unix_s), now_unix_s))
        while self._looks[0].at_unix_s < now_unix_s - LOOKS_S:
            self._looks.popleft()
        self._standing = settle(self._standing, verdict(self._evidence(workers, traffic, now_unix_s)), now_unix_s)
        return self._standing.told

    def _evidence(self, workers: tuple[MeterReading, ...], traffic: TrafficStats, now_unix_s: float) -> Evidence:
        looks, status = tuple(self._looks), traffic.status(now_unix_s)
        prefilling, decoding = pools_of(workers)
        return Evidence(
            at_unix_s=now_unix_s,
            window_s=WINDOW_S,
            requests=traffic.tally(now_unix_s),
            prefill=Prefill(
                num_workers=len(prefilling),
                queue_s=mean_of(looks, "queue_s"),
                queue_growth=growth_of(looks),
                busy=mean_of(looks, "prefill_busy"),
                compute=mean_of(looks, "compute"),
                kv_used=mean_of(looks, "prefill_kv_used"),
            ),
            decode=Decode(
                num_workers=len(decoding),
                kv_used=mean_of(looks, "kv_used"),
                bandwidth=mean_of(looks, "bandwidth"),
                batch=mean_of(looks, "batch"),
                tpot_s=status.tpot_p50_s,
                tpot_bound_s=traffic.slo.tpot_s,
            ),
            gateways=traffic.gateways(now_unix_s),
            simulated=any(each.simulated for each in workers),
            ceiling_source=ceiling_source([*prefilling, *decoding]),
        )

    def take(self) -> tuple[FleetEvent, ...]:
        """The verdict as an event, when it is another one than was taken last."""
        told = self._standing.told if self._standing else None
        if told is None or told.since_unix_s == self._written_unix_s:
            return ()
        self._written_unix_s = told.since_unix_s
        return (
            FleetEvent(
                fleet_id=self.fleet_id,
                kind="bottleneck",
                at_unix_s=told.since_unix_s,
                worker_id="",
                simulated=told.simulated,
                reason=told.text,
                resources=told.resources or (told.kind,),
            ),
        )
