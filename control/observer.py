"""What the plane knows of its fleet: the newest look at it and what follows from that, for the tick and the screen.

Decided here: what one observation is taken into, in which order, and what of it planning and reconcile get to see. Not
decided here: what a number means (`control.accounting`, `control.traffic_stats`), what limits (`control.bottleneck`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from control.accounting import Accountant, UtilizationView
from control.bottleneck_watch import BottleneckWatch
from control.facts import FleetFacts
from control.fleets.base import Fleet, Foreign, Observation, Routed, Steered
from control.gateways import Gateways
from control.points import Ingested
from control.snapshot import fleet_facts, newest_readings
from control.types.bottleneck import Bottleneck
from control.types.events import FleetEvent
from control.types.fleet import TrafficStatus
from control.workload import Workload
from engine.readings import MeterReading


class Observer:
    """Of one fleet. `observation`, `utilization` and `bottleneck` are None before the first look."""

    def __init__(
        self,
        fleet: Fleet,
        accountant: Accountant,
        gateways: Gateways,
        on_ingested: Callable[[Ingested], None],
        now_unix_s: float,
    ) -> None:
        self._fleet = fleet
        self._gateways = gateways
        self._on_ingested = on_ingested
        self._watch = BottleneckWatch(fleet.fleet_id)
        self.accountant = accountant
        self.workload = Workload(fleet.fleet_id)
        self.observation: Observation | None = None
        self.readings: Mapping[str, MeterReading] = {}
        self.utilization: UtilizationView | None = None
        self.traffic: TrafficStatus = gateways.traffic.status(now_unix_s)
        self.expected_output_tokens = gateways.traffic.expected_output_tokens()
        self.bottleneck: Bottleneck | None = None

    def take(self, observation: Observation, now_unix_s: float) -> Ingested:
        """Take one observation in: newest readings, utilization, and what a self-driving fleet has served."""
        self.observation = observation
        self.readings = newest_readings(observation, self.readings, now_unix_s)
        ingested = self.accountant.ingest(observation)
        self._on_ingested(ingested)
        self.workload.add(ingested, observation.readings)
        self.utilization = self.accountant.utilization(now_unix_s)
        self._gateways.take_self_driven()
        traffic = self._gateways.traffic
        self.traffic = traffic.status(now_unix_s)
        self.expected_output_tokens = traffic.expected_output_tokens()
        self.bottleneck = self._watch.look(self.readings.values(), self.utilization, traffic, now_unix_s)
        return ingested

    def take_events(self) -> tuple[FleetEvent, ...]:
        """Changes of the bottleneck since the last call."""
        return self._watch.take()

    def facts(self) -> FleetFacts:
        """What planning and reconcile want of it."""
        fleet = self._fleet
        facts = fleet_facts(
            self.readings,
            self.observation.lives if self.observation else (),
            can=frozenset(each.value for each in fleet.capabilities),
            tpot_s=self.traffic.tpot_p50_s,
            expected_output_tokens=self.expected_output_tokens,
            utilization=self.utilization,
            refusals=fleet.refusals if isinstance(fleet, Foreign) else {},
            takes_back=isinstance(fleet, Routed),
            sized_by=fleet.sized_by if isinstance(fleet, Routed) else "",
        )
        if isinstance(fleet, Steered):
            return replace(facts, pools=fleet.pools(), max_pool=fleet.max_pool, yields=True)
        return facts

    @property
    def newest_fence(self) -> int:
        """Of the orders that the workers were seen to obey: larger than ours when another plane acts."""
        return max((each.fence for each in self.readings.values()), default=0)
