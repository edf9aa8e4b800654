"""Half an hour or more of random scenarios and actions on tiny real workers; Ctrl-C ends it early, with its report.

python -m tests.faults.soak --minutes 30 --seed 7

Decided here: what follows what. Scenarios and actions are the product's own. Memory and open files of each process are
sampled between them; a worker that was killed begins anew under another pid.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from control.errors import CommandRefused, ControlError, StaleVersion
from control.faults.actions import HangUp, draw
from control.faults.commander import Commander
from control.faults.load import Load
from control.faults.place import Place, wait_until
from control.faults.runner import Session
from control.faults.scenario import Traffic, shipped
from control.faults.streams import Target, plan_streams
from control.faults.usage import Usage, growth, sample
from tests.faults.conftest import tiny_settings
from tests.integration.deployment import Deployment

#: A server of its own, which this deployment has not.
LEFT_OUT = {"restart-postgresql"}
ACTIONS_PER_ROUND = 20
LIMIT_S = 120.0


@dataclass(slots=True)
class Soak:
    """What has been so far."""

    seed: int
    rounds: Counter[str] = field(default_factory=Counter)
    failed: list[dict[str, Any]] = field(default_factory=list)
    streams: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Usage]] = field(default_factory=list)


def one_round(place: Place, soak: Soak, rng: random.Random) -> None:
    """A scenario, or a burst of actions under load; both with a seed of their own."""
    seed, known = rng.randrange(10**6), sorted(set(shipped()) - LEFT_OUT)
    name = rng.choice([*known, "actions"])
    soak.rounds[name] += 1
    try:
        if name == "actions":
            asyncio.run(burst(place, soak, seed))
        else:
            report = Session(place, seed).run(shipped()[name])
            soak.streams["in scenarios"] += report.figures.streams
            if not report.ok:
                soak.failed.append(report.as_dict())
    except ControlError as error:
        soak.failed.append({"round": name, "seed": seed, "error": str(error)})
    soak.samples.append(sample(place))


async def burst(place: Place, soak: Soak, seed: int) -> None:
    """Actions one after the other, not waiting for their ends; then all that they changed is taken back."""
    rng, traffic = random.Random(seed), Traffic(streams=20, output_tokens=(60, 200), seed=seed)
    run_id = f"soak-{secrets.token_hex(4)}"
    model_id = place.client.snapshot().model_id
    target = Target(gateway_url=place.gateway_url, model_id=model_id, run_id=run_id, temperature=0.8, timeout_s=LIMIT_S)
    load, commander = Load(target, plan_streams(traffic, run_id), 8, seed), Commander(place.client, run_id, LIMIT_S)
    await load.learn()
    running = asyncio.create_task(load.run())
    try:
        for _ in range(ACTIONS_PER_ROUND):
            chosen = draw(rng, await asyncio.to_thread(place.client.desired))
            if isinstance(chosen, HangUp):
                load.streams.cancel(chosen.count, rng)
            else:
                with contextlib.suppress(CommandRefused, StaleVersion):
                    await asyncio.to_thread(commander.send, chosen, f"soak, seed {seed}")
            await asyncio.sleep(rng.random())
    finally:
        load.stop.set()
        await running
    await asyncio.to_thread(commander.undo_all, "after a burst of the soak")
    soak.streams.update(load.tally.num)
    has_ended = await asyncio.to_thread(wait_until, lambda: not held(place), LIMIT_S)
    if load.tally.num_bad or not has_ended:
        problems = load.tally.problems or [f"still held: {held(place)}"]
        soak.failed.append({"round": "actions", "seed": seed, "problems": problems})


def held(place: Place) -> dict[str, int]:
    loads = {each.worker_id: each.load for each in place.readings() if each.alive}
    held_blocks = {name: load.kv_blocks_held + load.kv_blocks_reserved for name, load in loads.items()}
    return {name: count for name, count in held_blocks.items() if count}


@contextlib.contextmanager
def running() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="phaseline-soak-") as folder:
        deployment = Deployment(Path(folder) / "run", **tiny_settings(Path(folder)))
        try:
            deployment.must("up", "--detach")
            with Place(deployment.run_dir) as place:
                yield place
        finally:
            deployment.end()


def report(soak: Soak, took_s: float) -> dict[str, Any]:
    warm = soak.samples[len(soak.samples) // 5 :]
    return {
        "seed": soak.seed,
        "minutes": round(took_s / 60, 1),
        "rounds": dict(soak.rounds),
        "streams": dict(soak.streams),
        "failed": soak.failed,
        "growth_after_warm_up": [{**asdict(each), "share": round(each.share, 4)} for each in growth(warm)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"soak: seed {seed}, {options.minutes:g} minutes, Ctrl-C ends it", flush=True)
    soak, rng = Soak(seed), random.Random(seed)
    with running() as place:
        began_s = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() - began_s < 60 * options.minutes:
                one_round(place, soak, rng)
                print(
                    f"{time.monotonic() - began_s:6.0f} s  {dict(soak.rounds)}, {len(soak.failed)} failed", flush=True
                )
        found = report(soak, time.monotonic() - began_s)
    print(json.dumps(found, indent=1))
    raise SystemExit(1 if soak.failed else 0)


if __name__ == "__main__":
    main()
