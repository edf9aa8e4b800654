"""The part of `bench/totals.py` with real processes: tiny real workers of a deployment, flipped by commands under load.

The counters are those of the workers' meter pages once no request is left; the totals are asked of the control API.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from _deployment import ROOT, Deployment, deployment, report_of
from control.faults.place import Place, wait_until
from control.history import schema
from control.types.commands import Action, CommandRequest, CommandState, Verb
from control.types.workers import Phase, Role
from engine.convert import make_tiny_model

COLUMNS: Final = ("tokens", "steps", "busy_s", "flops", "bytes")
#: These stay, so that no role is ever without a worker; the others flip in turn.
FLIPPED: Final = ("w2", "w3")
WAY: Final = (Role.MIXED, Role.PREFILL, Role.DECODE)
GAP_S: Final = 0.5  # between two flips, for the traffic to meet them
QUIET_S: Final = 3.0  # after the last request: the history is a tick or two behind
Totals = Mapping[tuple[str, str, Phase, str], float]


def measure(num_flips: int) -> dict[str, Any]:
    """Flips under load; then every total of each stored step beside the counters."""
    model = make_tiny_model(ROOT / "data" / "run" / "models" / "tiny", seed=1)
    since = float(int(time.time()) // 3600 * 3600)
    settings = {"num_workers": 4, "num_prefill": 1, "worker_kind": "cpu", "model": str(model)}
    with deployment(**settings) as fleet, Place(fleet.run_dir) as place:
        traffic = fleet.start_traffic("--profile", "gentle", "--rate", "4", "--seed", "7")
        flips = sum(flip(fleet, FLIPPED[n % 2], WAY[n // 2 % 3]) for n in range(num_flips))
        traffic.send_signal(signal.SIGINT)
        report = report_of(traffic)
        if not wait_until(lambda: not any(each.load.num_running for each in place.readings()), 60.0):
            raise SystemExit("requests were still running 60 s after the traffic ended")
        time.sleep(QUIET_S)
        expected = counters(place)
        result: dict[str, Any] = {
            "workers (tiny, real)": 4,
            "flips done": flips,
            "requests": report["offered"],
            "failed": report["failed"],
            "totals per step": len(expected),
        }
        tokens = {phase: expected.get(("fleet", "fleet", phase, "tokens"), 0.0) for phase in Phase}
        result |= {f"{phase} tokens": int(number) for phase, number in tokens.items()}
        for step_s in schema.STEPS:
            found = in_history(fleet, since, step_s)
            keys = expected.keys() | {key for key, value in found.items() if value}
            wrong = [key for key in keys if expected.get(key, 0.0) != found.get(key, 0.0)]
            result[f"mismatches, {step_s} s"] = len(wrong)
        return result


def flip(fleet: Deployment, worker_id: str, role: Role) -> int:
    """One recorded command; 1 when it is done."""
    request = CommandRequest(action=Action(verb=Verb.FLIP, worker_id=worker_id, role=role), why="bench: totals")
    word = fleet.client.preview(request).needs_confirmation
    time.sleep(GAP_S)
    command = fleet.client.submit(CommandRequest(action=request.action, why=request.why, confirmation=word))
    return int(fleet.client.wait(command.command_id, timeout_s=120).state is CommandState.DONE)


def counters(place: Place) -> Totals:
    found: dict[tuple[str, str, Phase, str], float] = defaultdict(float)
    for reading in place.readings():
        for key, each in reading.counters.items():
            role, _, phase = key.partition("/")
            for scope, name in (("fleet", "fleet"), ("role", role), ("worker", reading.worker_id)):
                for column in COLUMNS:
                    found[scope, name, Phase(phase), column] += getattr(each, column)
    return found


def in_history(fleet: Deployment, since: float, step_s: int) -> Totals:
    """As the API answers. A line has 1,000 points at most, so a long time is asked for in parts."""
    found: dict[tuple[str, str, Phase, str], float] = defaultdict(float)
    until, part_s = time.time(), max(900, step_s)
    starts = [since + n * part_s for n in range(int((until - since) // part_s) + 1)]
    for start, scope, phase, column in itertools.product(starts, ("fleet", "role", "worker"), Phase, COLUMNS):
        answer = fleet.client.series(f"{phase}_{column}", start, start + part_s, step_s, scope)
        for line in answer.series:
            found[scope, line.label, phase, column] += sum(point.value or 0.0 for point in line.points)
    return found
