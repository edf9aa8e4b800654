"""Runs one scenario on a running deployment: pools, streams with its events, back to before, undisturbed run, checks.

Decided here: the order of things. The undisturbed run comes last, so that no cache knows the prompts when it matters.
What is looked at on the way belongs to the parts; what it means, to `checks`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx

from control.errors import CommandRefused, ControlError, FleetError
from control.faults.checks import REFUSED, Evidence, judge
from control.faults.commander import Commander
from control.faults.events import EventDone, Events
from control.faults.place import Place, wait_until
from control.faults.report import Report, figures
from control.faults.scenario import Scenario
from control.faults.streams import Streams, Target, plan_streams
from control.traffic.client import Outcome
from control.types.commands import Action, Desired, Verb
from control.types.requests import RequestRecord
from control.types.workers import Role, WorkerState, WorkerStatus
from engine.types import Load

#: Records come once a second, and leases end by themselves.
RECORDS_LIMIT_S: Final = 10.0
HELD_LIMIT_S: Final = 45.0


@dataclass(slots=True)
class Session:
    """Scenarios on one deployment. The seed decides prompts, sampling, and what is chosen at random."""

    place: Place
    seed: int = 1

    def run(self, scenario: Scenario) -> Report:
        """Raises ControlError when it cannot be run here at all; a check that fails is in the report."""
        began_s = time.monotonic()
        run = _Run(self.place, scenario, self.seed)
        run.check_fleet()
        before = self.place.client.desired()
        run.make_pools()
        asyncio.run(run.disturbed())
        return run.report(before, began_s)


class _Run:
    """One scenario on its way."""

    def __init__(self, place: Place, scenario: Scenario, seed: int) -> None:
        self.place = place
        self.scenario = scenario
        self.seed = seed
        self.run_id = f"fault-{secrets.token_hex(4)}"
        self.began_unix_s = time.time()
        self.plan = plan_streams(scenario.traffic, f"{scenario.name}/{seed}")
        self.commander = Commander(place.client, self.run_id, scenario.limit_s)
        self.streams = Streams(self._target(self.run_id))
        self.events: list[EventDone] = []

    def _target(self, run_id: str) -> Target:
        return Target(
            gateway_url=self.place.gateway_url,
            model_id=self.place.client.snapshot().model_id,
            run_id=run_id,
            temperature=self.scenario.traffic.temperature,
            timeout_s=self.scenario.limit_s,
        )

    # --- before --------------------------------------------------------------------------------------------------

    def check_fleet(self) -> None:
        """Raises CommandRefused, naming what is there and what is needed."""
        snapshot, need = self.place.client.snapshot(), self.scenario.fleet
        if len(snapshot.workers) < need.num_workers:
            bound = f"at least {need.num_workers}"
            told = (
                f"scenario {self.scenario.name} needs {need.num_workers} workers, the fleet has {len(snapshot.workers)}"
            )
            raise CommandRefused(told, field="fleet.workers", value=len(snapshot.workers), bound=bound)
        simulated = any(each.simulated for each in snapshot.workers)
        if need.workers != "any" and simulated != (need.workers == "paced"):
            told = f"scenario {self.scenario.name} needs {need.workers} workers"
            raise CommandRefused(
                told, field="fleet.workers", value="paced" if simulated else "real", bound=need.workers
            )
        problem = self.not_converged()
        if problem and not wait_until(lambda: not self.not_converged(), self.scenario.limit_s):
            raise FleetError(f"the fleet is not whole before the scenario: {self.not_converged()}")

    def make_pools(self) -> None:
        """The pools that the scenario names; whoever is left over joins the decode pool."""
        need, desired = self.scenario.fleet, self.place.client.desired()
        decode = need.decode + len(desired.roles) - need.num_workers
        pools = Action(verb=Verb.RESIZE, prefill=need.prefill, decode=decode, mixed=need.mixed)
        sizes = {Role.PREFILL: need.prefill, Role.DECODE: decode, Role.MIXED: need.mixed}
        if any(desired.pool_size(role) != size for role, size in sizes.items()):
            self.commander.send(pools, f"pools of scenario {self.scenario.name}")
            self._must_converge("its pools did not come")

    def _must_converge(self, told: str) -> None:
        if not wait_until(lambda: not self.not_converged(), self.scenario.limit_s):
            raise FleetError(f"scenario {self.scenario.name}: {told}: {self.not_converged()}")

    async def undisturbed(self) -> Mapping[int, Outcome]:
        """The same streams without any event; one that fails all the same is left out."""
        streams = Streams(self._target(f"{self.run_id}.undisturbed"))
        await streams.send(self.plan)
        return {index: each for index, each in streams.outcomes.items() if not each.error}

    # --- the run -------------------------------------------------------------------------------------------------

    async def disturbed(self) -> None:
        """Streams and events side by side. Whatever stands at the end is let go on."""
        events = Events(self.place, self.commander, self.streams, self.seed)
        sending = asyncio.create_task(self.streams.send(self.plan))
        sending.add_done_callback(lambda _: setattr(events, "has_streams", False))
        start_s = time.monotonic()
        try:
            done = await asyncio.gather(*(events.carry_out(each, start_s) for each in self.scenario.events))
            self.events = sorted(done, key=lambda each: each.at_s)
            await sending
            await events.stood()
            if any(event.do == "hang" for event in self.scenario.events):
                await asyncio.to_thread(wait_until, lambda: not self.not_converged(), self.scenario.limit_s)
        finally:
            sending.cancel()
            await events.close()

    # --- after ---------------------------------------------------------------------------------------------------

    def report(self, before: Desired, began_s: float) -> Report:
        problem = self._settle()
        records, orphans, held = self._records(), self.place.orphans(), self._held()
        expected = asyncio.run(self.undisturbed())
        counts = Counter(_index_of(each) for each in records)
        snapshot = self.place.client.snapshot()
        seen = Evidence(
            outcomes=self.streams.outcomes,
            expected=expected,
            cancelled=frozenset(self.streams.cancelled),
            events=tuple(self.events),
            held=held,
            num_foreign=snapshot.traffic.num_in_flight,
            orphans=tuple(orphans),
            commands=tuple(self.commander.latest()),
            repeated=tuple(self.commander.again()),
            num_records=counts,
            stories={_index_of(each): _story(each) for each in records if each.moves},
            desired_before=before,
            desired_after=self.place.client.desired(),
            not_converged=problem,
            num_only_counted=sum(self.place.client.heatmap(self.began_unix_s - 1.0).requests.dropped.values()),
        )
        return Report(
            scenario=self.scenario.name,
            fleet_id=snapshot.fleet_id,
            simulated=any(each.simulated for each in snapshot.workers),
            seed=self.seed,
            checks=judge(self.scenario.checks, seen),
            events=seen.events,
            figures=figures(
                records,
                num_streams=len(seen.outcomes),
                num_errors=sum(bool(each.error) and each.status != REFUSED for each in seen.outcomes.values()),
                num_cancelled=len(seen.cancelled),
                took_s=time.monotonic() - began_s,
            ),
        )

    def _settle(self) -> str:
        """Wait until all is as desired, take back what was commanded, wait again, and until nothing is held."""
        limit_s = self.scenario.limit_s
        if not wait_until(lambda: not self.not_converged(), limit_s):
            return self.not_converged()
        try:
            self.commander.undo_all(f"after scenario {self.scenario.name}")
        except ControlError as error:
            return f"the undo was refused: {error}"
        if not wait_until(lambda: not self.not_converged(), limit_s):
            return self.not_converged()
        wait_until(lambda: not any(map(_holds, self._held().values())), HELD_LIMIT_S)
        return ""

    def not_converged(self) -> str:
        """What is not as desired now, in words; "" when all is."""
        try:
            snapshot = self.place.client.snapshot()
            waiting = [each for each in snapshot.workers if not _is_as_desired(each)]
            if waiting:
                return "; ".join(f"{w.worker_id} is {w.role} {w.state}, desired {w.desired_role}" for w in waiting[:3])
            absent = [each.name for each in self.place.state.components.values() if not each.is_ready]
            if absent:
                return f"{absent[0]} is not ready"
            ready = httpx.get(f"{self.place.gateway_url}/readyz", timeout=5.0)
            if ready.status_code != 200:
                return f"the gateway is not ready: {ready.text[:200]}"
            unreached = self.place.unreached()
            if unreached:
                return f"a gateway is not connected to {unreached[0]}"
            return "" if self.commander.have_ended() else "a command has not ended"
        except (ControlError, httpx.HTTPError) as error:
            return str(error)

    def _held(self) -> Mapping[str, Load]:
        return {each.worker_id: each.load for each in self.place.readings() if each.alive}

    def _records(self) -> list[RequestRecord]:
        """Those of our streams; waits until there is one for each, or long enough."""
        found: list[RequestRecord] = []

        def all_there() -> bool:
            nonlocal found
            asked = self.place.client.requests(10_000, self.began_unix_s - 1.0)
            found = [each for each in asked if _is_of(each, self.run_id)]
            return len({each.request_id for each in found}) >= len(self.streams.outcomes)

        wait_until(all_there, RECORDS_LIMIT_S)
        return found


def _is_of(record: RequestRecord, run_id: str) -> bool:
    return record.request_id.rpartition("-")[0] == run_id


def _index_of(record: RequestRecord) -> int:
    return int(record.request_id.rpartition("-")[2])


def _story(record: RequestRecord) -> str:
    return "; ".join(f"{each.kind} {each.from_worker} to {each.to_worker}: {each.reason}" for each in record.moves)


def _is_as_desired(worker: WorkerStatus) -> bool:
    state = WorkerState.DRAINED if worker.drained else WorkerState.READY
    return worker.alive and worker.role == worker.desired_role and worker.state == state


def _holds(load: Load) -> bool:
    return bool(load.kv_blocks_held or load.kv_blocks_reserved or load.num_leased or load.num_running)
