"""Workers flip and drain under load: time to ready, stall of each stream, beside a fleet that drains by waiting.

python bench/migration.py                      paced 70B workers (simulated): 42 flips and 21 drains, each way
python bench/migration.py --workers tiny       real workers with a random model of two layers
python bench/migration.py --workers real       the real model on the CPU, few streams

Two deployments beside each other, one with live migration and one that drains by waiting, get the same traffic at the
same time, and turn by turn the same commands: some streams are always open, and a worker is taken through decode ->
mixed -> prefill -> mixed -> decode -> prefill -> decode, then others are drained, and one is flipped and flipped back
before the first flip is complete. Every text is compared with the same request on the undisturbed fleet (a paced
worker's text depends on the length of the prompt alone, so one per length is asked there).
Accepted and ready are the journal's own times; first token: the first one that a client got from the worker in its new
role (a prefill worker's is a stream's first, a decode worker's the second), with all that this request waited for and
computed; first step: the end of the worker's own first step in that role, by its meter page. The stall is the time
between last token before a move and first one after it, on the gateway's clock. Predicted: by the gateway's estimate,
before the move, or the worker's leaving, began. The steps of paced workers, and the links that their KV moves over, are
modelled: copies that use one worker's link at the same time slow each other down.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from _deployment import ROOT, Deployment, deployment
from _steady_load import Asked, SteadyLoad
from control.client import PhaselineClient
from control.faults.place import Place
from control.traffic.report import quantiles
from control.types.commands import Action, Command, CommandRequest, CommandState, Verb
from control.types.workers import Role, WorkerState, WorkerStatus
from engine.convert import make_tiny_model
from engine.device_catalogue import cost_model
from engine.seeded_pool import WORD_BYTES

LIVE, WAITING = "with_migration", "drain_and_wait"
LIMIT_S = 180.0
POLL_S = 0.005
PATIENCE_S = 4.0
AIM_S = 0.387  # the fastest published role flip
NUM_WORKERS = 4
GREAT_WEIGHT = 100.0
WAY = (Role.MIXED, Role.PREFILL, Role.MIXED, Role.DECODE, Role.PREFILL, Role.DECODE)
DRAINS_PER_CYCLE = 3
LEFT = re.compile(r"has left decode: (\d+) requests, predicted (unknown|[\d.]+)(?: s)?, took ([\d.]+) s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What runs."""

    words: str
    settings: dict[str, Any]
    num_streams: int
    max_tokens: int
    cycles: int
    contexts: tuple[int, ...]  # repetitions of a sentence: short, middle and long prompts
    modelled_per_byte: float = 1.0  # a paced pool keeps little of what its model would


@dataclass(slots=True)
class Tally:
    """One deployment's commands; times in seconds, by what was done."""

    ready_s: dict[str, list[float]] = field(default_factory=dict)
    first_step_s: dict[str, list[float]] = field(default_factory=dict)
    first_token_s: dict[str, list[float]] = field(default_factory=dict)
    num_running: list[float] = field(default_factory=list)  # on a worker that leaves decode

    def note(self, what: str, ready_s: float) -> None:
        self.ready_s.setdefault(what, []).append(ready_s)

    def note_first(self, what: str, step_s: float | None, token_s: float) -> None:
        self.first_token_s.setdefault(what, []).append(token_s)
        if step_s is not None:
            self.first_step_s.setdefault(what, []).append(step_s)


@dataclass(slots=True)
class Side:
    """One of the deployments, its streams, and what was seen of it."""

    name: str
    fleet: Deployment
    load: SteadyLoad
    tally: Tally = field(default_factory=Tally)
    began_unix_s: float = field(default_factory=time.time)

    @property
    def client(self) -> PhaselineClient:
        return self.fleet.client


# --- commands ---------------------------------------------------------------------------------------------------------


def submit(client: PhaselineClient, action: Action) -> Command:
    word = client.preview(CommandRequest(action=action, why="bench")).needs_confirmation
    return client.submit(CommandRequest(action=action, why="bench", confirmation=word))


def ended(client: PhaselineClient, command: Command) -> Command:
    deadline_s = time.monotonic() + LIMIT_S
    while command.state in (CommandState.ACCEPTED, CommandState.RUNNING) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        command = client.command(command.command_id)
    return command


def carry_out(client: PhaselineClient, action: Action) -> Command:
    """One command to its end."""
    command = ended(client, submit(client, action))
    if command.state is not CommandState.DONE:
        raise SystemExit(f"{action.verb} of {action.worker_id} ended {command.state}: {command.result}")
    return command


def tell_slow(name: str, command: Command, ready_s: float) -> None:
    """Its journal, when a flip took longer than the aim."""
    if ready_s > AIM_S:
        told = "; ".join(f"{step.at_unix_s - command.created_unix_s:.3f} {step.text}" for step in command.steps)
        print(f"{name}, {ready_s:.3f} s: {told}", file=sys.stderr)


def took_s(command: Command, worker_id: str) -> float:
    """Accepted to ready, as the journal says."""
    done = [step.at_unix_s for step in command.steps if step.worker_id == worker_id and step.state == "done"]
    return done[0] - command.created_unix_s


def flip(worker_id: str, role: Role) -> Action:
    return Action(verb=Verb.FLIP, worker_id=worker_id, role=role)


def busiest(client: PhaselineClient, least_running: int) -> WorkerStatus:
    """The decode worker that streams most, once it streams as many as this."""
    since_unix_s, deadline_s = time.time(), time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        snapshot = client.snapshot()
        members = [each for each in snapshot.workers if each.role == Role.DECODE and each.state == WorkerState.READY]
        chosen = max(members, key=lambda each: each.num_running, default=None)
        if snapshot.at_unix_s > since_unix_s and chosen is not None and chosen.num_running >= least_running:
            return chosen
        time.sleep(POLL_S)
    raise SystemExit(f"no decode worker streamed {least_running} requests within {LIMIT_S:g} s")


def until_running(client: PhaselineClient, worker_id: str, least: int) -> None:
    """Wait until this worker, which serves decode, streams as many as this; not for long, as it may be left idle."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        worker = next(each for each in client.snapshot().workers if each.worker_id == worker_id)
        if worker.role is Role.PREFILL or worker.num_running >= least:
            return
        time.sleep(POLL_S)


# --- one cycle --------------------------------------------------------------------------------------------------------


async def cycle(side: Side, kind: Kind) -> None:
    client, tally, least = side.client, side.tally, kind.num_streams // 5

    async def victim() -> WorkerStatus:
        found = await asyncio.to_thread(busiest, client, least)
        tally.num_running.append(found.num_running)
        return found

    worker_id, before = (await victim()).worker_id, Role.DECODE
    for role in WAY:
        await asyncio.to_thread(until_running, client, worker_id, least)
        command = await asyncio.to_thread(carry_out, client, flip(worker_id, role))
        what, ready_s = f"flip {before} -> {role}", took_s(command, worker_id)
        tally.note(what, ready_s)
        if side.name == LIVE:
            tell_slow(what, command, ready_s)
        if role is not Role.MIXED and before is not Role.MIXED:
            since_unix_s = command.created_unix_s + ready_s
            at_unix_s = await side.load.first_token_unix_s(worker_id, role, since_unix_s, LIMIT_S)
            step_unix_s = first_step_unix_s(side.fleet, worker_id, role, since_unix_s)
            step_s = None if step_unix_s is None else step_unix_s - command.created_unix_s
            tally.note_first(what, step_s, at_unix_s - command.created_unix_s)
        before = role
    for _ in range(DRAINS_PER_CYCLE):
        worker_id = (await victim()).worker_id
        command = await asyncio.to_thread(carry_out, client, Action(verb=Verb.DRAIN, worker_id=worker_id))
        tally.note("drain", took_s(command, worker_id))
        await asyncio.to_thread(carry_out, client, Action(verb=Verb.UNDRAIN, worker_id=worker_id))
    worker_id = (await victim()).worker_id
    first = await asyncio.to_thread(submit, client, flip(worker_id, Role.PREFILL))
    command = await asyncio.to_thread(carry_out, client, flip(worker_id, Role.DECODE))
    await asyncio.to_thread(ended, client, first)
    tally.note("flipped back at once", took_s(command, worker_id))


def first_step_unix_s(fleet: Deployment, worker_id: str, role: Role, since_unix_s: float) -> float | None:
    """When the worker's first step in its new role ended; None when its page holds only later ones."""
    with Place(fleet.run_dir) as place:
        reading = next(each for each in place.readings() if each.worker_id == worker_id)
    before = [each for each in reading.steps if each.start_unix_s < since_unix_s]
    ends = [each.end_unix_s for each in reading.steps if each.role == role and each.start_unix_s >= since_unix_s]
    return min(ends) if ends and before else None


async def disturb(sides: list[Side], kind: Kind) -> dict[str, dict[str, Any]]:
    """All cycles under load, turn by turn; what the clients of each side saw."""
    async with contextlib.AsyncExitStack() as loads:
        for side in sides:
            await loads.enter_async_context(side.load)
        for number in range(kind.cycles):
            for side in sides:
                await cycle(side, kind)
            print(f"cycle {number + 1} of {kind.cycles}", file=sys.stderr, flush=True)
    return {side.name: await seen_by_clients(side, kind) for side in sides}


async def seen_by_clients(side: Side, kind: Kind) -> dict[str, Any]:
    is_paced = kind.settings["worker_kind"] == "paced"

    def key(asked: Asked) -> object:
        return asked.heard.num_prompt_tokens if is_paced else asked.prompt

    asked = side.load.asked
    num_compared, num_different = await side.load.num_different(key)
    problems = [each.heard.problem[:150] for each in asked if each.heard.problem and not each.heard.is_refused]
    return {
        "streams": len(asked),
        "refused (429)": sum(each.heard.is_refused for each in asked),
        "failed": len(problems),
        "problems": dict(Counter(problems)),
        "compared with undisturbed": num_compared,
        "different": num_different,
    }


@contextlib.contextmanager
def opened(name: str, kind: Kind) -> Iterator[Side]:
    """A deployment in which a flipped worker is the one that prefills, and its load."""
    shape = {"num_workers": NUM_WORKERS, "num_prefill": 1, "profile": "local", "max_moves": 8}
    with deployment(live_migration=name == LIVE, **shape, **kind.settings) as fleet:
        model_id = httpx.get(f"{fleet.gateway_url}/v1/models").json()["data"][0]["id"]
        prefer = {f"w{index}": GREAT_WEIGHT if index else 0.001 for index in range(NUM_WORKERS)}
        carry_out(fleet.client, Action(verb=Verb.SET_ROUTING, weights=prefer))
        lengths = {"max_tokens": kind.max_tokens, "contexts": kind.contexts}
        load = SteadyLoad(fleet.gateway_url, model_id, num_streams=kind.num_streams, limit_s=LIMIT_S, **lengths)
        yield Side(name, fleet, load)


def measure(kind: Kind, names: list[str]) -> dict[str, dict[str, Any]]:
    """All cycles on each of the deployments."""
    with contextlib.ExitStack() as deployments:
        sides = [deployments.enter_context(opened(name, kind)) for name in names]
        clients = asyncio.run(disturb(sides, kind))
        time.sleep(2.5)  # records come once a second
        return {side.name: clients[side.name] | figures(side, kind) for side in sides}


def figures(side: Side, kind: Kind) -> dict[str, Any]:
    """Times of the commands, and what the product's own records say of the moves."""
    tally, client = side.tally, side.client
    records = client.requests(10_000, side.began_unix_s)
    lines = client.series("itl_p50_s", side.began_unix_s).series
    step_s = quantiles(point.value for line in lines for point in line.points).p50
    moves = [move for record in records for move in record.moves]
    left = LEFT.findall("".join(each.read_text() for each in (side.fleet.run_dir / "logs").glob("gateway*.log")))
    by_kind = {each: sum(move.kind == each for move in moves) for each in sorted({move.kind for move in moves})}
    foreseen = [(each.predicted_stall_s, each.stall_s) for each in moves if each.predicted_stall_s and each.stall_s]
    predicted = [(float(said), float(was)) for number, said, was in left if said != "unknown" and int(number)]
    return {
        "running_on_the_worker_p50": quantiles(tally.num_running).p50,
        "one_decode_step_p50_s": step_s,
        **{f"{what}: accepted to ready": row(each, step_s) for what, each in tally.ready_s.items()},
        "all flips: accepted to ready": row([s for w, v in tally.ready_s.items() if "->" in w for s in v], step_s),
        **{f"{what}: to first step's end": row(each, step_s) for what, each in tally.first_step_s.items()},
        **{f"{what}: to first token": row(each, step_s) for what, each in tally.first_token_s.items()},
        "moves": by_kind,
        "bytes_copied": sum(each.num_bytes for each in moves),
        "bytes_modelled": round(sum(each.num_bytes for each in moves) * kind.modelled_per_byte),
        **{
            f"stall of each {name}": row([m.stall_s for m in moves if m.kind == name and m.stall_s is not None], step_s)
            for name in by_kind
        },
        "stall, measured - predicted": errors(foreseen),
        "leaving decode, measured - predicted": errors(predicted),
    }


# --- figures ----------------------------------------------------------------------------------------------------------


def row(values: list[float], step_s: float | None) -> dict[str, float | int | None]:
    q = quantiles(values)
    p50, p99, most = (None if each is None else round(1000 * each, 1) for each in (q.p50, q.p99, q.max))
    steps = None if not step_s or q.p50 is None else round(q.p50 / step_s, 1)
    return {"n": len(values), "p50_ms": p50, "p99_ms": p99, "max_ms": most, "p50_steps": steps}


def errors(pairs: list[tuple[float, float]]) -> dict[str, float | int | None]:
    """Of (predicted, measured): the median with its sign, and how far off it was either way."""
    signed, size = quantiles(was - said for said, was in pairs), quantiles(abs(was - said) for said, was in pairs)
    cells = {"p50_ms": signed.p50, "off_p50_ms": size.p50, "off_p99_ms": size.p99}
    return {"n": len(pairs)} | {name: None if each is None else round(1000 * each, 1) for name, each in cells.items()}


def kinds() -> dict[str, Kind]:
    model = cost_model("h100-sxm-80gb", "llama-3.1-70b-fp8").work
    tiny = make_tiny_model(ROOT / "data" / "run" / "models" / "tiny", seed=1)
    return {
        "paced": Kind(
            words="paced 70B on modelled H100s (simulated)",
            settings={"worker_kind": "paced", "max_batch": 64, "kv_bytes_per_worker": 20 * 2**30},
            num_streams=36,
            max_tokens=250,
            cycles=7,
            contexts=(1, 20, 60),
            modelled_per_byte=model.kv_token_bytes / WORD_BYTES,
        ),
        "tiny": Kind(
            words="real workers, a random model of two layers",
            settings={"worker_kind": "cpu", "model": str(tiny)},
            num_streams=12,
            max_tokens=400,
            cycles=4,
            contexts=(1, 5, 15),
        ),
        "real": Kind(
            words="the real model (SmolLM2-135M) on this CPU",
            settings={"worker_kind": "cpu"},
            num_streams=6,
            max_tokens=80,
            cycles=1,
            contexts=(1, 3, 6),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", choices=("paced", "tiny", "real"), default="paced")
    parser.add_argument("--cycles", type=int, help="6 flips, 3 drains and one flip to and fro each")
    parser.add_argument("--only", choices=("on", "off"), help="one of the two deployments")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kind = kinds()[options.workers]
    if options.cycles:
        kind = Kind(**{each: getattr(kind, each) for each in Kind.__slots__} | {"cycles": options.cycles})
    names = {"on": LIVE, "off": WAITING}
    result = measure(kind, [names[options.only]] if options.only else list(names.values()))
    if options.json:
        print(json.dumps({"workers": kind.words} | result))
    else:
        show(kind, result)


def show(kind: Kind, result: dict[str, dict[str, Any]]) -> None:
    """The deployments side by side."""
    print(f"\n{kind.words}: {', '.join(result)}")
    for name in {name: None for each in result.values() for name in each}:
        cells = [str(each.get(name, "-")).strip("{}").replace("'", "") for each in result.values()]
        print(f"{name:<42} " + "".join(f"{cell:<80}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
