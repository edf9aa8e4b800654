"""Totals: a fleet that is flipped 100 times under traffic; what history says in all, against the workers' own counters.

    phaseline bench totals [-- --workers 8 --flips 100 --seconds 4]
    phaseline bench totals -- --real            four tiny real workers, flipped by commands under load, asked over HTTP

Simulated (SimFleet: real engine cores and meters, modelled step times). Workers flip in turn, some several times
between two looks; one in ten looks gets no answer; two workers are killed, and come back without a role. The counters
are those that each life of each worker said last. Against them, compared with ==: series of what each phase did in all
(tokens, steps, seconds, FLOPs, bytes) of the fleet, each role and each worker, through JSON as the API sends them, at
every stored step, before and after all is rolled up. A mismatch is any pair of numbers that differ in one bit.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec

import _totals_real
from control.accounting import Accountant
from control.fleets.base import FleetStep, Observation
from control.fleets.sim import SimFleet, sim_config
from control.fleets.sim_traffic import SimTraffic
from control.history import schema
from control.history.store import History, SeriesQuery
from control.settings import Settings
from control.types.routing import RoutingPolicy, RoutingTable
from control.types.series import SeriesResult
from control.types.workers import Phase, Role, WorkerState
from engine.readings import PhaseCounters

START_S: Final = 500_000 * 3600.0
COLUMNS: Final = ("tokens", "steps", "busy_s", "flops", "bytes")
ROLES: Final = (Role.PREFILL, Role.DECODE, Role.MIXED)
Totals = dict[tuple[str, str, Phase, str], float]  # scope, name, phase, column


class Site:
    """The fleet, what has been made of it, and what its workers said last."""

    def __init__(self, history: History, num_workers: int) -> None:
        settings = Settings(fleet_kind="sim", num_workers=num_workers)
        self.fleet = SimFleet(sim_config(settings, SimTraffic(mean_rps=0.75 * num_workers)))
        self.history, self.accountant = history, Accountant(self.fleet.fleet_id)
        self.now_s, self.num_looks, self.num_missed = START_S, 0, 0
        self.lives: dict[tuple[str, int], dict[str, PhaseCounters]] = {}

    async def look(self, seconds: float, *, is_missed: bool = False) -> None:
        self.now_s += seconds
        observation = await self.fleet.observe(self.now_s)
        self.num_looks += 1
        for reading in observation.readings:
            self.lives[reading.worker_id, reading.epoch] = reading.counters
        if is_missed and all(reading.alive for reading in observation.readings):
            self.num_missed += 1
            observation = Observation(at_unix_s=observation.at_unix_s, readings=())
        self.history.write_tick(self.accountant.ingest(observation), self.accountant.snapshot())

    async def order(self, verb: str, worker_id: str, role: Role) -> bool:
        step = FleetStep(verb=verb, worker_id=worker_id, role=role, fence=1, reason="bench")
        accepted = (await self.fleet.apply(step)).accepted
        rows = self.fleet.routes()
        self.fleet.set_table(
            RoutingTable(
                version=1,
                fleet_id=self.fleet.fleet_id,
                model_id=self.fleet.model_id,
                fence=1,
                num_devices=len(rows),
                policy=RoutingPolicy(min_fleet_devices=2),
                workers=rows,
                expected_output_tokens=200,
            )
        )
        return accepted


async def flipped(site: Site, num_flips: int, seconds: int) -> dict[str, object]:
    dice = random.Random(5)
    await site.look(0.0)
    names = [row.worker_id for row in site.fleet.routes()]
    for number, name in enumerate(names):
        await site.order("place", name, ROLES[number % 2])
    done = kills = 0
    for flip in range(num_flips):
        worker = names[flip % len(names)]
        role = next(row.role for row in site.fleet.routes() if row.worker_id == worker)
        others = [each for each in ROLES if each is not role]
        if flip % 10 == 3:  # through another role, with no look in between
            await site.order("flip", worker, others[1])
        done += await site.order("flip", worker, others[0])
        for _ in range(seconds):
            await site.look(1.0, is_missed=dice.random() < 0.1)
        if flip % (num_flips // 2) == num_flips // 4:
            site.fleet.kill(worker)
            kills += 1
            await site.look(1.0)
            await site.order("place", worker, role)
    for row in site.fleet.routes():
        assert row.state in (WorkerState.READY, WorkerState.DRAINING), row
    await site.look(1.0)
    return {"flips accepted": done, "workers killed": kills, "looks": site.num_looks, "looks missed": site.num_missed}


def counters(site: Site) -> Totals:
    found: Totals = defaultdict(float)
    for (worker_id, _), pairs in site.lives.items():
        for key, each in pairs.items():
            role, _, phase = key.partition("/")
            for scope, name in (("fleet", "fleet"), ("role", role), ("worker", worker_id)):
                for column in COLUMNS:
                    found[scope, name, Phase(phase), column] += getattr(each, column)
    return found


def in_history(site: Site, step_s: int) -> Totals:
    found: Totals = defaultdict(float)
    for scope, phase, column in itertools.product(("fleet", "role", "worker"), Phase, COLUMNS):
        query = SeriesQuery(
            fleet_id=site.fleet.fleet_id,
            metric=f"{phase}_{column}",
            since_unix_s=START_S,
            until_unix_s=site.now_s + 1,
            step_s=step_s,
            by=scope,
        )
        sent = msgspec.json.decode(msgspec.json.encode(site.history.series(query)), type=SeriesResult)
        for line in sent.series:
            found[scope, line.label, phase, column] += sum(point.value or 0.0 for point in line.points)
    return found


def measure(num_workers: int, num_flips: int, seconds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="phaseline-totals-") as folder:
        history = History.open(f"sqlite:///{Path(folder) / 'history.db'}")
        site = Site(history, num_workers)
        result: dict[str, object] = {"workers (simulated)": num_workers}
        result |= asyncio.run(flipped(site, num_flips, seconds))
        expected = counters(site)
        result |= {"lives": len(site.lives), "totals per step": len(expected)}
        total = {phase: expected["fleet", "fleet", phase, "tokens"] for phase in Phase}
        result |= {f"{phase} tokens": int(num) for phase, num in total.items()}
        for when in ("as written", "rolled up"):
            for step_s in schema.STEPS:
                found = in_history(site, step_s)
                keys = expected.keys() | {key for key, value in found.items() if value}
                wrong = sum(expected.get(key, 0.0) != found.get(key, 0.0) for key in keys)
                result[f"mismatches, {step_s} s, {when}"] = wrong
            history.settle(site.now_s + 7200)
        history.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=4, help="between two flips")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--real", action="store_true", help="a deployment of tiny real workers")
    options = parser.parse_args()
    if options.real:
        result = _totals_real.measure(options.flips)
    else:
        result = measure(options.workers, options.flips, options.seconds)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
