"""Random resizes, flips, drains, undrains, routing changes and hang-ups under load: streams lost or changed, memory.

python bench/actions.py                       tiny real workers, 1,000 actions
python bench/actions.py --actions 250 --seed 2
python bench/actions.py --paced               paced 70B workers (simulated)

A fixed number of streams is always open. Each is one of a set of prompts whose answers are known from an undisturbed
run, and is compared as it ends: failed, truncated, repeated, changed. Several operators act at once, each without a
pause and each action to its end: done, or superseded by another operator's. What the fleet refuses (a guard rail) is
counted apart and is no action. Memory is each process's resident set, means of samples after the warm-up (the first
fifth of the actions, and at least until the plane's windows are full) and at the end; a run that is over by then says
nothing of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _deployment import deployment
from control.client import ENDED
from control.errors import CommandRefused, StaleVersion
from control.faults.actions import HangUp, draw
from control.faults.commander import Commander
from control.faults.load import Load
from control.faults.place import Place, wait_until
from control.faults.scenario import Traffic
from control.faults.streams import Target, plan_streams
from control.faults.usage import Usage, growth, sample
from control.traffic.report import quantiles
from control.types.commands import Action, CommandState

WARM_UP_SHARE = 0.2
#: The plane keeps a minute of traffic and 20 s of utilization, and the caches of its threads fill with them.
WARM_UP_S = 90.0
SAMPLE_EVERY_S = 2.0
LIMIT_S = 120.0
POLL_S = 0.01


@dataclass(slots=True)
class Done:
    """The actions so far."""

    num_by_verb: Counter[str] = field(default_factory=Counter)
    num_refused: int = 0
    num_superseded: int = 0
    problems: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    samples: list[dict[str, Usage]] = field(default_factory=list)
    num_moves_of_workers: int = 0

    @property
    def num(self) -> int:
        return self.num_by_verb.total()


def carry_out(commander: Commander, action: Action, done: Done) -> None:
    """One command to its end."""
    began_s = time.monotonic()
    try:
        command = commander.send(action, "bench: random actions")
    except (CommandRefused, StaleVersion):
        done.num_refused += 1
        return
    while command.state not in ENDED and time.monotonic() - began_s < LIMIT_S:
        time.sleep(POLL_S)
        command = commander.client.command(command.command_id)
    done.took_s.append(time.monotonic() - began_s)
    done.num_by_verb[action.verb.value] += 1
    done.num_moves_of_workers += len({each.worker_id for each in command.steps if each.worker_id})
    done.num_superseded += command.state is CommandState.SUPERSEDED
    if command.state not in (CommandState.DONE, CommandState.SUPERSEDED):
        done.problems.append(f"command {command.command_id} {action} is {command.state}: {command.result}")


async def operate(place: Place, load: Load, options: argparse.Namespace, number: int, done: Done) -> None:
    """One operator: actions one after the other until there are enough of all operators."""
    rng = random.Random(f"{options.seed}/{number}")
    commander = Commander(place.client, f"act-{secrets.token_hex(4)}", LIMIT_S)
    while done.num < options.actions:
        chosen = draw(rng, await asyncio.to_thread(place.client.desired))
        if isinstance(chosen, HangUp):
            done.num_by_verb["hang_up"] += bool(load.streams.cancel(chosen.count, rng))
            await asyncio.sleep(POLL_S)
        else:
            await asyncio.to_thread(carry_out, commander, chosen, done)
            commander.sent.clear()


async def watch(place: Place, load: Load, options: argparse.Namespace, done: Done) -> None:
    """Samples of memory once the actions have warmed up."""
    began_s = time.monotonic()
    while True:
        await asyncio.sleep(SAMPLE_EVERY_S)
        if done.num >= WARM_UP_SHARE * options.actions and time.monotonic() - began_s >= WARM_UP_S:
            done.samples.append(await asyncio.to_thread(sample, place))
        say(options, f"{done.num} actions, {done.num_refused} refused, streams {dict(load.tally.num)}")


async def under_load(place: Place, options: argparse.Namespace, done: Done) -> Load:
    traffic = Traffic(streams=options.answers, output_tokens=(60, 200), seed=options.seed)
    target = Target(
        gateway_url=place.gateway_url,
        model_id=place.client.snapshot().model_id,
        run_id=f"act-{secrets.token_hex(4)}",
        temperature=traffic.temperature,
        timeout_s=LIMIT_S,
    )
    load = Load(target, plan_streams(traffic), options.streams, options.seed)
    await load.learn()
    running = asyncio.create_task(load.run())
    watching = asyncio.create_task(watch(place, load, options, done))
    try:
        await asyncio.gather(*(operate(place, load, options, each, done) for each in range(options.operators)))
    finally:
        watching.cancel()
        load.stop.set()
        await running
    return load


def held(place: Place) -> dict[str, int]:
    return {each.worker_id: each.load.kv_blocks_held + each.load.kv_blocks_reserved for each in place.readings()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shape: dict[str, Any] = {"num_workers": 4, "num_prefill": 1, "max_moves": 8, "slo": '{"ttft_base_s": 60.0}'}
    with tempfile.TemporaryDirectory(prefix="phaseline-actions-") as folder:
        if options.paced:
            shape |= {"worker_kind": "paced", "paced_workers_per_process": 1, "profile": "local"}
        else:
            from engine.convert import make_tiny_model

            model = make_tiny_model(Path(folder) / "tiny", seed=1)
            shape |= {"worker_kind": "cpu", "model": model, "kv_bytes_per_worker": 4 * 2**20}
        with deployment(**shape) as fleet, Place(fleet.run_dir) as place:
            done, began_s = Done(), time.monotonic()
            load = asyncio.run(under_load(place, options, done))
            took_s = time.monotonic() - began_s
            wait_until(lambda: not any(held(place).values()), 45.0)
            return report(options, load, done, took_s, held(place))


def report(
    options: argparse.Namespace, load: Load, done: Done, took_s: float, blocks: dict[str, int]
) -> dict[str, Any]:
    grown, stalls = growth(done.samples), quantiles(load.tally.max_gaps_s)
    worst = max((each.share for each in grown), default=None)
    return {
        "workers": "paced 70B workers (simulated)" if options.paced else "tiny real workers (2 layers, CPU, exact)",
        "seed": options.seed,
        "took_s": round(took_s, 1),
        "actions": done.num,
        "by_verb": dict(done.num_by_verb),
        "workers_moved": done.num_moves_of_workers,
        "refused_by_guard_rails": done.num_refused,
        "superseded": done.num_superseded,
        "actions_not_done": len(done.problems),
        "action_p50_s": quantiles(done.took_s).p50,
        "action_p99_s": quantiles(done.took_s).p99,
        "streams": load.tally.num.total(),
        **{name: load.tally.num[name] for name in ("equal", "hung_up", "refused")},
        **{name: load.tally.num[name] for name in ("failed", "truncated", "repeated", "changed")},
        "largest_gap_p50_s": stalls.p50,
        "largest_gap_p99_s": stalls.p99,
        "blocks_held_or_reserved_at_the_end": sum(blocks.values()),
        "rss_growth_worst": worst,
        "rss_growth": {each.name: round(each.share, 4) for each in grown},
        "rss_last_mib": {each.name: round(each.rss_last_bytes / 2**20, 1) for each in grown},
        "files_growth": {
            each.name: each.files_last - each.files_first for each in grown if each.files_last > each.files_first
        },
        "problems": (done.problems + load.tally.problems)[:10],
    }


def say(options: argparse.Namespace, line: str) -> None:
    if not options.json:
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actions", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=8, help="open at any time")
    parser.add_argument("--answers", type=int, default=40, help="different prompts")
    parser.add_argument("--operators", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<36} {value}")
    raise SystemExit(1 if any(result[each] for each in ("failed", "truncated", "repeated", "changed")) else 0)


if __name__ == "__main__":
    main()
