"""The plane of one fleet: each tick, and at once after a command, observe, decide, act, write.

All effects meet here, in `tick`; what it calls to decide is pure. Level-triggered: it compares the whole of desired
with what it sees, so a crash at any point is repaired by the next tick. Not decided here: anything about a worker, a
command, a gateway or a number; those are `control.reconcile`, `control.progress`, `control.accounting` and the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from pydantic import TypeAdapter

from control.accounting import Accountant
from control.amends import Amends
from control.desk import Desk, refusal_error
from control.errors import FleetError, StaleFence
from control.events import Events
from control.facts import FleetFacts
from control.fleets.base import Fleet, Foreign, Routed, Steered, is_followed, is_observed_only
from control.gateways import Gateways
from control.history.deferred import TickWrite, encode
from control.history.store import History, RequestQuery
from control.lease import Lease
from control.monitor import Monitor
from control.notices import notices_of
from control.observer import Observer
from control.orders import Orders
from control.plane_events import PlaneEvents, plane_status
from control.points import Ingested
from control.pools import scale_steps
from control.progress import progress_of
from control.reconcile import Ordered, as_observed, holds, reconcile
from control.recorder import Recorder
from control.settings import Settings
from control.snapshot import FleetIdentity, build_snapshot
from control.stand_ins import Effective, effective_roles
from control.types.api import Principal
from control.types.bottleneck import Bottleneck
from control.types.commands import Command, CommandRequest, Desired, Preview
from control.types.fleet import FleetSnapshot
from control.types.routing import WhatIfRouting
from control.types.workers import WorkerState
from control.verbs import RefusedPlan, changed_policy
from control.what_if import what_if

_log = logging.getLogger("phaseline.plane")
_snapshot_json = TypeAdapter(FleetSnapshot)
#: Ticks are at least this far apart, however often a fleet says that something changed.
LEAST_GAP_S = 0.01
START_AGAIN_S = 2.0
#: `close` waits this long for the tick that is under way.
CLOSE_TICK_S = 5.0
#: The newest of the window; more would hold the reader for seconds.
WHAT_IF_RECORDS = 20_000


class Plane:
    """One fleet under control. `start`, then `run` until `close`; the API calls the rest on the same event loop."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        history: History,
        settings: Settings,
        desk: Desk,
        lease: Lease,
        accountant: Accountant,
        monitor: Monitor,
        version: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.fleet = fleet
        self.history = history
        self.settings = settings
        self.desk = desk
        self.recorder: Recorder = desk.recorder
        self.events: Events = desk.events
        self._fence = lease.fence
        self._now = now
        self.monitor = monitor
        self.gateways = Gateways(
            *(fleet, history, desk.recorder, settings, lease.fence, now()),
            on_loss=self.wake,
            on_record=monitor.on_record,
        )
        self._own_events = PlaneEvents(fleet.fleet_id, plane_status(lease))
        self._observer = Observer(fleet, accountant, self.gateways, monitor.on_ingested, now())
        self.workload = self._observer.workload
        self._identity = FleetIdentity(
            fleet_id=fleet.fleet_id,
            model_id=fleet.model_id,
            kind=fleet.kind,
            simulated=fleet.simulated,
            capabilities=tuple(sorted(fleet.capabilities)),
            started_unix_s=now(),
            version=version,
            plane=plane_status(lease),
            is_attached=isinstance(fleet, Foreign),
            refusals=fleet.refusals if isinstance(fleet, Foreign) else {},
        )
        self._wake = asyncio.Event()
        self._running = asyncio.Lock()
        self._closing = False
        self._tick_problem = ""
        self._num_ticks = 0
        self._upkeep_waits = False
        self._ordered: Mapping[str, Ordered] = {}
        self._effective = Effective(desired=desk.desired)
        self._orders = Orders(fleet.apply, self.wake)
        self._amends = Amends(desk, self.preview, self.submit)
        self._snapshot: FleetSnapshot | None = None
        self._snapshot_bytes = b""

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start or adopt the fleet, then tick until `close` or `abandon`. Raises StaleFence: another plane acts."""
        async with self._running:
            while not self._closing and not await self._started():
                await self._pause(START_AGAIN_S)
            while not self._closing:
                started_s = time.monotonic()
                try:
                    await self.tick()
                except StaleFence:  # another plane has taken over: nothing that this one does counts any more
                    raise
                except Exception as error:  # the one broad except: a failed tick is told, and the next one repairs it
                    _log.exception("tick %d failed", self._num_ticks)
                    self._tick_problem = f"{type(error).__name__}: {error}"
                    self.events.publish("tick_failed", fleet_id=self.fleet.fleet_id, problem=self._tick_problem)
                ended_s = time.monotonic()
                await self._pause(max(0.0, started_s + self.settings.tick_s - ended_s))
                await asyncio.sleep(max(0.0, ended_s + LEAST_GAP_S - time.monotonic()))

    async def _pause(self, longest_s: float) -> None:
        """Until somebody calls `wake`, or until `longest_s` is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._wake.wait()
        self._wake.clear()

    async def _started(self) -> bool:
        """The fleet is there. A serving system that cannot be reached yet is told on the screen and tried again."""
        try:
            await self.fleet.start(self.wake)
        except FleetError as error:
            _log.warning("the fleet cannot be started: %s", error.detail)
            self._tick_problem = error.detail
            self._publish(self._now())
            return False
        return True

    async def abandon(self) -> None:
        """Stop acting at once, and write nothing more: another plane has taken over."""
        self._closing = True
        self.wake()
        self.events.close()
        await self._amends.close()
        await self._orders.close()
        await self.monitor.close()
        await self.gateways.hub.close()

    async def close(self) -> None:
        """Let go of fleet and gateways, and write what waits. Workers go on."""
        self._closing = True
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TICK_S), self._running:
                pass  # the tick that was under way has ended
        self.events.close()
        await self._amends.close()
        await self._orders.close()
        await self.monitor.close()
        await self.gateways.hub.close()
        await self.fleet.close()
        await self.recorder.close()

    def wake(self) -> None:
        """Tick at once. Call it on the plane's event loop."""
        self._wake.set()

    # --- the tick ---------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Observe, decide, act, write. Nothing in it waits for a worker's answer or for the history.

        Orders act on what is recorded: `desired` changes only when its command is durable (`Desk.submit`).
        Safe to be cut off anywhere: the next one compares everything again.
        """
        now = self._now()
        self._num_ticks += 1

        observation = await self.fleet.observe(now)
        ingested, seen = self._observer.take(observation, now), self._now()

        fleet = self._observer.facts()
        if is_followed(self.fleet):
            self.desk.desired = as_observed(self.desired, fleet, self.desk.unfinished.values())
        if not is_observed_only(self.fleet):
            self._order(fleet, now)

        limit, since = self.settings.drain_limit_s, self._identity.started_unix_s
        if isinstance(self.fleet, Routed | Steered):
            limit = self.fleet.limit_s
        look = partial(
            progress_of, fleet=fleet, outcomes=self._orders.outcomes, tables=self.gateways.tables_seen(), limit_s=limit
        )
        for each in [look(c, now_unix_s=seen, since_unix_s=since) for c in self.desk.unfinished.values()]:
            self.desk.apply(each)
        if isinstance(self.fleet, Routed):
            self._amends.look(self.fleet.registered_roles(), seen)
        self.desk.note_departures(self.gateways.traffic.departures(now), seen)

        self._record_samples(ingested, now)
        self._tick_problem = ""
        self._publish(now)
        self.desk.kick(now)
        self.recorder.kick()

    async def settled(self) -> None:
        """Wait until the orders under way are answered and what waits is written, or cannot be."""
        await self._orders.settled()
        await self.desk.settled()
        await self.recorder.flush()

    def _order(self, fleet: FleetFacts, now: float) -> None:
        """Compare desired with what was seen, give orders, and send the gateways a new table when it has changed."""
        busy, max_moves = self._orders.busy, self.settings.max_moves
        away = [each.worker_id for each in self.fleet.routes() if each.state is WorkerState.FAILED]
        followed = is_followed(self.fleet)  # who stands in for whom there is not ours to decide
        leaving = self.fleet.leaving if isinstance(self.fleet, Routed) else frozenset()
        wanted = Effective(desired=self.desired) if followed else effective_roles(self.desired, fleet, away, leaving)
        self._effective = wanted
        decided = reconcile(wanted.desired, fleet, self._ordered, self._fence, now, busy, max_moves, wanted.reasons)
        self._ordered = decided.ordered
        steps = (*decided.steps, *scale_steps(wanted.desired, fleet, self._orders.outcomes, busy, self._fence))
        if fleet.yields:
            steps = tuple(each for each in steps if each.worker_id in self.desk.under_way)
        self._orders.give(steps)
        self.gateways.route(self.desired, self._observer.expected_output_tokens)

    def _record_samples(self, ingested: Ingested, now: float) -> None:
        """Queue this tick's rows; gateways may forget their records once those are durable, here or in the spool."""
        rows = self.gateways.take_rows(now)
        own = self._own_events.take(self.recorder.problem, now)
        ingested = replace(ingested, events=(*ingested.events, *own, *self._observer.take_events()))
        tick = TickWrite(ingested, self._observer.accountant.snapshot(), rows, self._observer.traffic)
        self.recorder.later(
            *(self.history.write_tick, tick.ingested, tick.cursors, tick.records, tick.traffic),
            then=partial(self.gateways.durable, rows),
            dropped=partial(self.gateways.intake.restore, rows),
            frame=partial(encode, tick),
        )
        if not self._upkeep_waits:
            self._upkeep_waits = True
            over = self._upkeep_over
            self.recorder.later(self.history.upkeep, now, then=over, dropped=over)

    def _upkeep_over(self) -> None:
        self._upkeep_waits = False

    def _publish(self, now: float) -> None:
        """The snapshot of this tick, serialised once for all who ask."""
        seen, facts = self._observer, self._observer.facts()
        for worker_id in [w for w in self._orders.outcomes if holds(self.desired, facts.workers.get(w), w)]:
            del self._orders.outcomes[worker_id]
        snapshot = build_snapshot(
            replace(self._identity, model_id=self.fleet.model_id),
            desired=self.desired,
            observation=seen.observation,
            readings=seen.readings,
            utilization=seen.utilization,
            traffic=seen.traffic,
            now_unix_s=self._now(),
            tick=self._num_ticks,
            notices=self._notices(),
            active_command_ids=tuple(sorted(self.desk.unfinished)),
            departures=self.desk.departures,
            alerts=self.monitor.alerts,
            bottleneck=seen.bottleneck,
            batches=self.workload.batches(seen.readings, self.settings.effective_slo.tpot_s),
            sized=facts.pools,
            max_pool=facts.max_pool,
        )
        self._snapshot = snapshot
        self.monitor.on_tick(snapshot, now)
        self._snapshot_bytes = _snapshot_json.dump_json(snapshot)
        self.events.publish(
            "tick",
            fleet_id=snapshot.fleet_id,
            tick=snapshot.tick,
            at_unix_s=snapshot.at_unix_s,
            health=snapshot.health,
            health_text=snapshot.health_text,
            desired_version=snapshot.desired.version,
            active_command_ids=list(snapshot.active_command_ids),
        )

    def _notices(self) -> tuple[str, ...]:
        seen, local = self._observer, self.settings.profile == "local"
        return notices_of(
            seen.readings,
            self.desired.policy,
            self.settings.initial_policy if local else None,
            sample_share=seen.traffic.sample_share,
            history_problem=self.recorder.problem,
            num_writes_waiting=self.recorder.num_waiting,
            num_writes_dropped=self.recorder.num_dropped,
            num_writes_spooled=self.recorder.num_spooled,
            spooled_bytes=self.recorder.spooled_bytes,
            spool_problem=self.recorder.spool_problem,
            tick_problem=self._tick_problem,
            stand_ins=self._effective.notice,
            observation_problems=seen.observation.problems if seen.observation else (),
            is_attached=self._identity.is_attached,
        )

    # --- what the API asks ------------------------------------------------------------------------------------------

    @property
    def desired(self) -> Desired:
        return self.desk.desired

    @property
    def bottleneck(self) -> Bottleneck:
        """What limits now. Raises FleetError before the first look at the fleet."""
        if self._observer.bottleneck is None:
            raise FleetError("not observed yet: nothing is known of what limits it")
        return self._observer.bottleneck

    @property
    def observed(self) -> bool:
        return self._observer.observation is not None

    @property
    def newest_fence(self) -> int:
        """Of the orders that the workers were seen to obey: larger than ours when another plane acts."""
        return self._observer.newest_fence

    def snapshot_json(self) -> bytes:
        """The last snapshot; with its true age and the reason when ticks have stopped coming."""
        snapshot, now = self._snapshot, self._now()
        if snapshot is None:
            self._publish(now)
        elif self._tick_problem or now - snapshot.at_unix_s > 2 * self.settings.tick_s:
            late = replace(snapshot, stale_s=now - snapshot.at_unix_s, notices=self._notices())
            return _snapshot_json.dump_json(late)
        return self._snapshot_bytes

    async def preview(self, request: CommandRequest) -> Preview:
        return await self.desk.preview(request, self._observer.facts())

    async def submit(self, request: CommandRequest, principal: Principal) -> Command:
        """Record a command; the tick that follows at once carries it out."""
        command = await self.desk.submit(request, principal, self._observer.facts(), self._now())
        for step in command.steps:
            if step.worker_id:
                self._orders.forget(step.worker_id)
        self.wake()
        return command

    async def command(self, command_id: int) -> Command:
        return await self.desk.command(command_id)

    async def commands(
        self,
        limit: int,
        before_id: int | None,
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]:
        return await self.desk.commands(limit, before_id, since_unix_s, until_unix_s)

    async def what_if(self, changes: Mapping[str, float | int], window_s: float) -> WhatIfRouting:
        """Raises CommandRefused on a key or value that the policy does not take."""
        try:
            policy = changed_policy(self.desired.policy, changes)
        except RefusedPlan as refused:
            raise refusal_error(refused.refusal) from refused
        now = self._now()
        query = RequestQuery(
            fleet_id=self.fleet.fleet_id, since_unix_s=now - window_s, until_unix_s=now, limit=WHAT_IF_RECORDS
        )
        records = await self.recorder.read(self.history.requests, query)
        since = records[-1].arrival_unix_s if len(records) == WHAT_IF_RECORDS else now - window_s
        return what_if(records, policy, self.desired, self._observer.expected_output_tokens, since, now)
