"""Planes die at every write point of a command, and two of them race: time to converge, what failed, what came twice.

python bench/planes.py                         500 runs: 420 on SimFleet (simulated), 80 of real processes
python bench/planes.py --simulated-kills 0 --simulated-races 0 --kills 100 --races 20     real processes alone
python bench/planes.py --simulated-kills 0 --simulated-races 0 --without-ray               a SimFleet in each plane

On SimFleet a plane is killed, paused or cut off from the database at a point (before, inside and after each durable
write, around each order), and a second plane takes over; time is simulated, so nothing is timed. The real part is a
deployment of paced workers (simulated steps, real processes) under traffic with client retries off. Its planes are
processes of which one acts and two stand by on the lease; each dies by SIGKILL at a write point of its own
(PHASELINE_CRASH_AT), or after a random time; a racing one is stopped (SIGSTOP), and goes on when another acts.
Converged: the command is done and the fleet is seen as desired by the new plane; counted from the death, or from the
last one where the successor died too. A paused plane is told only by the end of its lease.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import _planes_simulated
from _deployment import Deployment, deployment, report_of
from _live_planes import LivePlane, LivePlanes, asked, database_of, until
from control.history.store import History
from control.traffic.report import quantiles
from control.types.commands import Action, Command, CommandRequest, CommandState, Verb
from control.types.fleet import FleetSnapshot
from control.types.workers import Role, WorkerState

NUM_WORKERS = 4
SETTINGS = {"num_workers": NUM_WORKERS, "num_prefill": 1, "worker_kind": "paced", "paced_workers_per_process": 2}
FLEET_ID = "local"  # of the default settings
#: Where planes die, in turn; "" is after a random time.
CRASH_POINTS = [
    *(f"record_command:{moment}#{n}" for n in (1, 2) for moment in ("before", "uncommitted", "after")),
    *(f"update_command:{moment}#{n}" for n in range(1, 7) for moment in ("before", "uncommitted", "after")),
    *(f"take_lease:{moment}" for moment in ("before", "uncommitted", "after")),
    *(f"renew_lease:{moment}#3" for moment in ("before", "uncommitted", "after")),
    *(f"write_tick:{moment}#3" for moment in ("before", "uncommitted", "after")),
    "",
    "",
]
RANDOM_S = 0.3
#: A plane that does not come by its point within this time is killed where it stands.
POINT_LIMIT_S = 1.5
#: The stopped plane goes on so long after another has taken over: before that one ends it for the port.
GO_ON_AFTER_S = 0.2
TAKEN_LIMIT_S = 4.0
#: Beyond the aim: --verbose shows the planes' logs.
SLOW_S = 2.0
LIMIT_S = 60.0


@dataclass(slots=True)
class Tally:
    """What was seen in the real runs."""

    converged_s: dict[str, list[float]] = field(default_factory=lambda: {"kill": [], "race": [], "all dead": []})
    answered_s: list[float] = field(default_factory=list)  # from a kill until the next plane answers
    points: dict[str, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)  # of stopped planes
    num_successors_died: int = 0
    num_locked: int = 0
    given: list[Command] = field(default_factory=list)


def actions() -> list[Action]:
    """One round of every verb, which ends where it began. UNDO undoes the flip before it."""
    return [
        Action(verb=Verb.RESIZE, prefill=2, decode=2),
        Action(verb=Verb.RESIZE, prefill=1, decode=3),
        Action(verb=Verb.FLIP, worker_id="w3", role=Role.MIXED),
        Action(verb=Verb.UNDO),
        Action(verb=Verb.DRAIN, worker_id="w3"),
        Action(verb=Verb.UNDRAIN, worker_id="w3"),
        Action(verb=Verb.SET_ROUTING, policy={"remote_share": 0.5}, weights={"w2": 0.5}),
        Action(verb=Verb.SET_ROUTING, policy={"remote_share": 1.0}, weights={"w2": 1.0}),
    ]


class Bench:
    """The real part: commands one after another, and trouble under each."""

    def __init__(self, fleet: Deployment, seed: int) -> None:
        self.fleet = fleet
        self.tally = Tally()
        self.rng = random.Random(seed)
        self._points: list[str] = []
        self._seen_pid = 0  # of the plane that saw the fleet as desired
        self._pool = ThreadPoolExecutor(2)
        self._history = History.open(database_of(fleet.run_dir))
        self.planes = LivePlanes(fleet, 2, self._next_point)

    def _next_point(self) -> str:
        if not self._points:
            self._points = self.rng.sample(CRASH_POINTS, len(CRASH_POINTS))
        return self._points.pop()

    def run(self, is_race: bool, number: int) -> None:
        """One command with one trouble under it."""
        self.planes.refill()
        plane, _ = self.planes.active()
        submitted = self._pool.submit(self._submit, self._next_request(number))
        begun_s = self._race(plane) if is_race else self._kill(plane)
        if plane.ended_s is None:  # it was stopped, and went on before anybody could take over
            self.tally.given.append(self._converged(submitted, None))
            return
        num_revived = self.planes.num_revived
        answer = self._pool.submit(self._answered, plane)
        self.tally.given.append(self._converged(submitted, plane))
        ended_s = time.monotonic()
        others = [each for each in self.planes.living if each.process.pid != self._seen_pid]
        later = [each.ended_s for each in others if each.ended_s is not None and each.ended_s > begun_s]
        if is_race:
            self.tally.converged_s["race"].append(ended_s - begun_s)
            return
        if self.planes.num_revived > num_revived:  # three deaths under one command: no standby was left
            self.tally.converged_s["all dead"].append(ended_s - max([begun_s, *later]))
            return
        if later:
            self.tally.num_successors_died += 1
            begun_s = max(later)
        self.tally.converged_s["kill"].append(ended_s - begun_s)
        self.tally.answered_s.append(max(0.0, answer.result() - begun_s))

    def _next_request(self, number: int) -> CommandRequest:
        action = actions()[number % len(actions())]
        if action.verb is Verb.UNDO:
            action = Action(verb=Verb.UNDO, command_id=self.tally.given[-1].command_id)
        request = CommandRequest(action=action, idempotency_key=f"run-{number}", why="bench: planes")
        return replace(request, confirmation=self.fleet.client.preview(request).needs_confirmation)

    def _submit(self, request: CommandRequest) -> Command:
        """As a client does: the same key until some plane has taken it."""
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            command = asked(lambda: self.fleet.client.submit(request))
            if command is not None:
                return command  # type: ignore[no-any-return]
            if time.monotonic() > deadline_s:
                raise SystemExit(f"no plane took {request.action}")

    def _kill(self, plane: LivePlane) -> float:
        """When it died: at its point, or killed where it stands."""
        limit_s = POINT_LIMIT_S if plane.crash_at else self.rng.uniform(0.0, RANDOM_S)
        deadline_s = time.monotonic() + limit_s
        while plane.ended_s is None and time.monotonic() < deadline_s:
            time.sleep(0.001)
        where = plane.crash_at.partition("#")[0] if plane.ended_s is not None else "any moment"
        plane.send(signal.SIGKILL)
        until(lambda: plane.ended_s is not None, "the end of a killed plane", poll_s=0.001)
        self.tally.points[where] = self.tally.points.get(where, 0) + 1
        assert plane.ended_s is not None
        return plane.ended_s

    def _race(self, plane: LivePlane) -> float:
        """Stop it, let another take over, let it go on; it must find out by itself. Returns when it was stopped.

        Stopped inside a transaction it holds SQLite's one lock, so that nobody can take over: then it goes on as it is.
        """
        time.sleep(self.rng.uniform(0.0, RANDOM_S))
        before, _ = self._history.lease(FLEET_ID)
        begun_s = time.monotonic()
        plane.send(signal.SIGSTOP)

        def taken() -> bool:
            lease, _ = self._history.lease(FLEET_ID)
            return lease is not None and before is not None and lease.fence > before.fence

        while not taken() and time.monotonic() - begun_s < TAKEN_LIMIT_S:
            time.sleep(0.005)
        time.sleep(GO_ON_AFTER_S)
        was_taken = taken()
        plane.send(signal.SIGCONT)
        if not was_taken:
            self.tally.num_locked += 1
            return begun_s
        until(lambda: plane.ended_s is not None, "the end of a plane that was taken over from")
        code = plane.process.returncode
        self.tally.exits[str(code)] = self.tally.exits.get(str(code), 0) + 1
        return begun_s

    def _answered(self, dead: LivePlane) -> float:
        """When another plane answered."""

        def is_other() -> bool:
            status = asked(lambda: self.fleet.client.snapshot().plane)
            return status is not None and status.pid != dead.process.pid

        until(is_other, "an answer of the next plane", told=self.planes.told)
        return time.monotonic()

    def _converged(self, submitted: Future[Command], dead: LivePlane | None) -> Command:
        """Wait until the command is done and a plane that lives sees the fleet as desired."""
        dead_pid = dead.process.pid if dead else 0
        while not submitted.done():
            self.planes.revive()
            time.sleep(0.002)
        command = submitted.result()

        def done() -> Command | None:
            self.planes.revive()
            found: Command | None = asked(lambda: self.fleet.client.command(command.command_id))
            return found if found is not None and found.state in (CommandState.DONE, CommandState.FAILED) else None

        ended: Command = until(done, f"the end of command {command.command_id}", told=self.planes.told)
        if ended.state is not CommandState.DONE:
            raise SystemExit(f"command {ended.command_id} ended {ended.state}: {ended.result}")

        def is_as_desired() -> bool:
            self.planes.revive()  # those that saw it done may have died at their points by now
            snapshot = asked(self.fleet.client.snapshot)
            self._seen_pid = snapshot.plane.pid if snapshot is not None else 0
            return snapshot is not None and self._seen_pid != dead_pid and as_desired(snapshot)

        until(is_as_desired, "a fleet that is as desired", told=self.planes.told)
        return ended

    def close(self) -> None:
        self.planes.close()
        self._history.close()
        self._pool.shutdown()


def as_desired(snapshot: FleetSnapshot) -> bool:
    wanted = snapshot.desired
    return len(snapshot.workers) == len(wanted.roles) and all(
        each.role == wanted.roles[each.worker_id]
        and each.state == (WorkerState.DRAINED if each.worker_id in wanted.drained else WorkerState.READY)
        for each in snapshot.workers
    )


def role_changes(commands: list[Command]) -> int:
    """How often some worker changes its role if every command is carried out once."""
    pairs = [(each.desired_before, each.desired_after) for each in commands]
    return sum(before.roles[w] != after.roles[w] for before, after in pairs if before and after for w in after.roles)


def seen_role_changes(fleet: Deployment, since_unix_s: float) -> int:
    """How often one did, by the recorded intervals."""
    roles: dict[str, list[Role]] = {}
    for each in sorted(fleet.client.roles(since_unix_s), key=lambda each: each.start_unix_s):
        if each.role is not Role.UNASSIGNED and roles.setdefault(each.worker_id, [])[-1:] != [each.role]:
            roles[each.worker_id].append(each.role)
    return sum(len(each) - 1 for each in roles.values())


def run_all(bench: Bench, options: argparse.Namespace) -> None:
    """Kills with races among them, at random, as many as the time allows."""
    number_of_runs = options.kills + options.races
    races = set(bench.rng.sample(range(number_of_runs), options.races))
    deadline_s = time.monotonic() + options.seconds
    for number in range(number_of_runs):
        if time.monotonic() > deadline_s:
            return
        bench.run(number in races, number)
        if options.verbose:
            last = ", ".join(f"{kind} {found[-1]:.2f} s" for kind, found in bench.tally.converged_s.items() if found)
            print(f"run {number}, {'stopped' if number in races else 'killed'}; last {last}", file=sys.stderr)
            if number not in races and bench.tally.converged_s["kill"][-1:] > [SLOW_S]:
                print(bench.planes.told(), file=sys.stderr)


def without_ray(options: argparse.Namespace) -> dict[str, Any]:
    """Real planes, each with a SimFleet of its own: no traffic, and a fleet that begins anew with each plane."""
    with deployment(fleet_kind="sim", num_workers=NUM_WORKERS, num_prefill=1) as fleet:
        bench = Bench(fleet, options.seed)
        try:
            run_all(bench, options)
            kept = [each for each in commands_of(fleet) if each.idempotency_key.startswith("run-")]
        finally:
            bench.close()
    return figures(bench.tally, kept)


def figures(tally: Tally, kept: list[Command]) -> dict[str, Any]:
    """Times, and what became of the commands."""
    return {
        "runs": len(tally.given),
        "converged after a kill (s)": quantiles(tally.converged_s["kill"]),
        "next plane answers after a kill (s)": quantiles(tally.answered_s),
        "converged after a stop, SIGSTOP (s)": quantiles(tally.converged_s["race"]),
        "converged when all three planes died (s)": quantiles(tally.converged_s["all dead"]),
        "killed at": tally.points,
        "successor died too": tally.num_successors_died,
        "exit codes of stopped planes": tally.exits,
        "stopped, and not taken over from": tally.num_locked,
        "commands": len(tally.given),
        "commands recorded": len(kept),
        "commands not done": sum(each.state is not CommandState.DONE for each in kept),
    }


def real(options: argparse.Namespace) -> dict[str, Any]:
    since = time.time()
    with deployment(**SETTINGS) as fleet:
        before = {each.worker_id: (each.pid, each.epoch) for each in fleet.client.snapshot().workers}
        bench = Bench(fleet, options.seed)
        traffic = fleet.start_traffic("--profile", "gentle", "--rate", str(options.rate), "--seed", "7")
        try:
            run_all(bench, options)
            after = {each.worker_id: (each.pid, each.epoch) for each in fleet.client.snapshot().workers}
            kept = [each for each in commands_of(fleet) if each.idempotency_key.startswith("run-")]
            seen = seen_role_changes(fleet, since)
        finally:
            traffic.send_signal(signal.SIGINT)
            report = report_of(traffic)
            bench.close()
    return figures(bench.tally, kept) | {
        "requests": report["offered"],
        "failed requests": report["failed"],
        "rejected requests": report["rejected"],
        "role changes wanted": role_changes(bench.tally.given),
        "role changes seen": seen,
        "workers": len(after),
        "workers started anew or twice": len(after.items() - before.items()),
    }


def commands_of(fleet: Deployment) -> list[Command]:
    """All of them, newest first."""
    found: list[Command] = []
    while page := fleet.client.commands(500, found[-1].command_id if found else None):
        found += page
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated-kills", type=int, default=320)
    parser.add_argument("--simulated-races", type=int, default=100)
    parser.add_argument("--kills", type=int, default=70)
    parser.add_argument("--races", type=int, default=10)
    parser.add_argument("--without-ray", action="store_true", help="real planes with a SimFleet in each; no traffic")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no real run after this time")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--verbose", action="store_true", help="a line for each real run, on stderr")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    if options.simulated_kills + options.simulated_races:
        result["simulated"] = _planes_simulated.measure(options.simulated_kills, options.simulated_races, options.seed)
    if options.kills + options.races:
        part = "real planes without Ray" if options.without_ray else "real processes"
        result[part] = without_ray(options) if options.without_ray else real(options)
    if options.json:
        print(json.dumps(result, default=asdict))
        return
    for part, found in result.items():
        print(part)
        for name, value in found.items():
            print(f"  {name:<38} {value}")


if __name__ == "__main__":
    main()
