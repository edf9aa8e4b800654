"""Runs of bench/planes.py on a simulated fleet in this process: every point of every verb, on simulated time."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from control.history import database
from control.types.commands import Verb
from tests.control.crash_rig import CrashRig, PlaneKilled, Trouble
from tests.control.crash_scripts import SCRIPTS, check, points_to_try, run, settle

#: A paused plane that holds SQLite's lock delays its successor by this much real time for each try.
BUSY_TIMEOUT_S = 0.2


async def undisturbed(folder: Path, verb: Verb) -> CrashRig:
    rig = make(folder, f"{verb}", None, Trouble.KILL)
    await run(rig, verb)
    return rig


def make(folder: Path, name: str, at: int | None, trouble: Trouble) -> CrashRig:
    (folder / name).mkdir()
    return CrashRig(folder / name, f"sqlite:///{folder / name / 'history.db'}", at, trouble)


def plan(reached: dict[Verb, list[str]], num_kills: int, num_races: int, seed: int) -> list[tuple[Verb, Trouble, int]]:
    """Kills at every point of a resize first, then at points of the other verbs; races spread over all verbs."""
    rng = random.Random(seed)
    first = [(Verb.RESIZE, Trouble.KILL, point) for point in points_to_try(reached[Verb.RESIZE])]
    others = [(v, Trouble.KILL, p) for v in reached if v is not Verb.RESIZE for p in points_to_try(reached[v])]
    rng.shuffle(others)
    races = [(v, t, p) for v in reached for t in (Trouble.PAUSE, Trouble.CUT) for p in points_to_try(reached[v])]
    rng.shuffle(races)
    kills = [*first, *others, *(rng.choice(first) for _ in range(num_kills))]
    return kills[:num_kills] + races[:num_races]


async def simulated(num_kills: int, num_races: int, seed: int) -> dict[str, Any]:
    """Raises AssertionError, naming trouble and point, at the first run that is not as it must be."""
    database.BUSY_TIMEOUT_S = BUSY_TIMEOUT_S
    asyncio.get_running_loop().set_exception_handler(tell)
    by_trouble: Counter[str] = Counter()
    ticks: list[int] = []
    num_requests = num_refused = 0
    with tempfile.TemporaryDirectory(prefix="phaseline-planes-") as name:
        folder = Path(name)
        wholes = {verb: await undisturbed(folder, verb) for verb in SCRIPTS}
        reached = {verb: rig.first.points.reached for verb, rig in wholes.items()}
        points: dict[Verb, set[int]] = {verb: set() for verb in SCRIPTS}
        for number, (verb, trouble, at) in enumerate(plan(reached, num_kills, num_races, seed)):
            rig = make(folder, str(number), at, trouble)
            given = await run(rig, verb)
            what = f"{verb}, {trouble} at point {at}: {rig.first.points.reached[at]}"
            assert rig.first.points.in_trouble, what
            ticks.append(await settle(rig))
            check(rig, given, wholes[verb], what)
            by_trouble[trouble.value] += 1
            points[verb].add(at)
            num_requests += len(rig.fleet.records)
            num_refused += len(rig.fleet.refusals)
            await rig.bury()
        for rig in wholes.values():
            await rig.bury()
    return {
        "runs": sum(by_trouble.values()),
        "by trouble": dict(by_trouble),
        "points of a resize": f"{len(points[Verb.RESIZE])} of {len(points_to_try(reached[Verb.RESIZE]))}",
        "points in all": sum(map(len, points.values())),
        "requests": num_requests,
        "failed requests": 0,
        "effects twice": 0,
        "workers started twice": 0,
        "orders of stale planes refused": num_refused,
    }


def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a killed plane's tasks end with is no news."""
    if not isinstance(context.get("exception"), PlaneKilled):
        loop.default_exception_handler(context)


def measure(num_kills: int, num_races: int, seed: int) -> dict[str, Any]:
    return asyncio.run(simulated(num_kills, num_races, seed))
