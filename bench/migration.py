"""A decode worker leaves decode under load: time to ready, stall of each stream, beside a drain that waits.

python bench/migration.py                      paced 70B workers (simulated), 10 flips and 5 drains, each way
python bench/migration.py --rounds 20 --streams 48

Two deployments after one another get the same streams, one with live migration and one without. In each round the
streams are opened, the busiest decode worker is flipped to prefill (or drained) in the middle of them, a request that
must be prefilled there asks for its first token, and the worker is brought back. Every text is compared with the same
stream of an undisturbed round. Accepted and ready are the journal's own times. The stall is the time between the last
token before a move and the first one after it, on the gateway's clock. Workers, steps and the link that KV moves over
are modelled: a copy takes what the cost model says, but copies that share a link do not slow each other down.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from _deployment import Deployment, deployment
from control.client import PhaselineClient
from control.traffic.report import quantiles
from control.types import Action, Command, CommandRequest, CommandState, Role, Verb, WorkerState, WorkerStatus

LIMIT_S = 180.0
POLL_S = 0.005
NUM_WORKERS = 4
CONTEXTS = (1, 20, 100)  # repetitions of a sentence: short, middle and long prompts
KV_BYTES = 20 * 2**30  # of each modelled worker
GREAT_WEIGHT = 100.0


@dataclass(slots=True)
class Tally:
    """One deployment's rounds."""

    ready_s: dict[str, list[float]] = field(default_factory=lambda: {"flip": [], "drain": []})
    first_token_s: list[float] = field(default_factory=list)
    stalls_s: list[float] = field(default_factory=list)
    num_by_kind: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    num_streams: int = 0
    num_failed: int = 0
    num_different: int = 0
    num_running: list[int] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)


async def stream(client: httpx.AsyncClient, model_id: str, prompt: str, max_tokens: int) -> str:
    """One stream's whole text; raises on any error in it."""
    body: dict[str, Any] = {"model": model_id, "prompt": prompt, "max_tokens": max_tokens, "seed": 7}
    parts = []
    async with client.stream("POST", "/v1/completions", json=body | {"ignore_eos": True, "stream": True}) as response:
        if response.status_code != 200:
            raise RuntimeError(f"HTTP {response.status_code}: {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return "".join(parts)
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RuntimeError(str(chunk["error"]))
                parts += [each["text"] for each in chunk["choices"]]
    raise RuntimeError("the stream ended without [DONE]")


def prompts(number: int, count: int) -> list[str]:
    said = "The keeper of the lighthouse counts the ships that pass in the night and writes their names into a book. "
    return [f"Round {number}, stream {each}. " + said * CONTEXTS[each % len(CONTEXTS)] for each in range(count)]


def leave_and_return(
    fleet: Deployment, model_id: str, options: argparse.Namespace, verb: str, number: int, tally: Tally
) -> None:
    """Wait until the streams run, then flip or drain the busiest decode worker, and bring it back."""
    client, since = fleet.client, time.time()
    victim = busiest(client, options.streams // 4, since)
    tally.num_running.append(victim.num_running)
    if verb == "flip":
        command = carry_out(client, Action(verb=Verb.FLIP, worker_id=victim.worker_id, role=Role.PREFILL))
        tally.first_token_s.append(
            first_token_unix_s(fleet, client, model_id, victim.worker_id, number) - command.created_unix_s
        )
        back = Action(verb=Verb.FLIP, worker_id=victim.worker_id, role=Role.DECODE)
    else:
        command = carry_out(client, Action(verb=Verb.DRAIN, worker_id=victim.worker_id))
        back = Action(verb=Verb.UNDRAIN, worker_id=victim.worker_id)
    tally.ready_s[verb].append(ready_unix_s(command, victim.worker_id) - command.created_unix_s)
    carry_out(client, back)


def carry_out(client: PhaselineClient, action: Action) -> Command:
    """One command to its end."""
    request = CommandRequest(action=action, why="bench")
    word = client.preview(request).needs_confirmation
    accepted = client.submit(CommandRequest(action=action, why="bench", confirmation=word))
    command, deadline_s = accepted, time.monotonic() + LIMIT_S
    while command.state in (CommandState.ACCEPTED, CommandState.RUNNING) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        command = client.command(accepted.command_id)
    if command.state is not CommandState.DONE:
        raise SystemExit(f"{action.verb} of {action.worker_id} failed: {command.result}")
    return command


def ready_unix_s(command: Command, worker_id: str) -> float:
    return next(step.at_unix_s for step in command.steps if step.worker_id == worker_id and step.state == "done")


def first_token_unix_s(fleet: Deployment, client: PhaselineClient, model_id: str, worker_id: str, number: int) -> float:
    """When the flipped worker gave the first token that it prefilled; asked until routing sends a request there."""
    deadline_s = time.monotonic() + LIMIT_S
    for attempt in range(1000):
        if time.monotonic() > deadline_s:
            break
        prompt = f"First token {number}.{attempt}: " + "name the colours that one sees in spring. " * 4
        body = {"model": model_id, "prompt": prompt, "max_tokens": 2, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{fleet.gateway_url}/v1/completions", json=body, timeout=60) as response:
            route = response.headers["X-Phaseline-Route"]
            for line in response.iter_lines():
                if '"text":"' in line and '"text":""' not in line:
                    if f"prefill={worker_id};" in route:
                        return time.time()
                    break
    raise SystemExit(f"no request was prefilled by {worker_id}")


def busiest(client: PhaselineClient, least_running: int, since_unix_s: float) -> WorkerStatus:
    """The decode worker that streams most, once it streams as many as this."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        snapshot = client.snapshot()
        members = [each for each in snapshot.workers if each.role == Role.DECODE and each.state == WorkerState.READY]
        chosen = max(members, key=lambda each: each.num_running, default=None)
        if snapshot.at_unix_s > since_unix_s and chosen is not None and chosen.num_running >= least_running:
            return chosen
        time.sleep(POLL_S)
    raise SystemExit(f"no decode worker had work within {LIMIT_S:g} s")


async def one_round(
    fleet: Deployment, model_id: str, options: argparse.Namespace, verb: str, number: int, tally: Tally
) -> None:
    limits = httpx.Limits(max_connections=options.streams)
    async with httpx.AsyncClient(base_url=fleet.gateway_url, timeout=LIMIT_S, limits=limits) as client:

        def begin() -> list[asyncio.Task[str]]:
            texts = prompts(number, options.streams)
            return [asyncio.create_task(stream(client, model_id, text, options.max_tokens)) for text in texts]

        asking = begin()
        await asyncio.to_thread(leave_and_return, fleet, model_id, options, verb, number, tally)
        disturbed = await asyncio.gather(*asking, return_exceptions=True)
        undisturbed = await asyncio.gather(*begin())
    tally.num_streams += len(disturbed)
    tally.num_failed += sum(isinstance(each, BaseException) for each in disturbed)
    pairs = zip(disturbed, undisturbed, strict=True)
    tally.num_different += sum(ours != theirs for ours, theirs in pairs if isinstance(ours, str))


def measure(options: argparse.Namespace, *, live: bool) -> dict[str, Any]:
    """All rounds on one deployment."""
    tally, began_unix_s = Tally(), time.time()
    shape = {"num_workers": NUM_WORKERS, "num_prefill": 1, "profile": "local", "worker_kind": "paced"}
    with deployment(live_migration=live, max_batch=64, max_moves=8, kv_bytes_per_worker=KV_BYTES, **shape) as fleet:
        model_id = httpx.get(f"{fleet.gateway_url}/v1/models").json()["data"][0]["id"]
        prefer = {f"w{index}": GREAT_WEIGHT if index else 0.001 for index in range(NUM_WORKERS)}
        carry_out(fleet.client, Action(verb=Verb.SET_ROUTING, weights=prefer))  # so that a flipped one prefills
        for verb in ["flip"] * options.flips + ["drain"] * options.drains:
            number = len(tally.num_running)
            asyncio.run(one_round(fleet, model_id, options, verb, number, tally))
            print(f"migration {'on' if live else 'off'}, round {number}: {tally.ready_s[verb][-1]:.3f} s", flush=True)
        time.sleep(2.5)  # records come once a second
        records = fleet.client.requests(10_000, began_unix_s)
        lines = fleet.client.series("itl_p50_s", began_unix_s).series
        tally.steps_s = [point.value for line in lines for point in line.points if point.value is not None]
    for move in [each for record in records for each in record.moves]:
        tally.num_by_kind[move.kind] = tally.num_by_kind.get(move.kind, 0) + 1
        tally.num_bytes += move.num_bytes
        if move.stall_s is not None:
            tally.stalls_s.append(move.stall_s)
    return report(tally)


def report(tally: Tally) -> dict[str, Any]:
    step_s = quantiles(tally.steps_s).p50
    return {
        "streams": tally.num_streams,
        "failed": tally.num_failed,
        "different_from_undisturbed": tally.num_different,
        "running_on_the_worker_p50": quantiles([float(each) for each in tally.num_running]).p50,
        "one_decode_step_p50_s": step_s,
        "flip_accepted_to_ready": _row(tally.ready_s["flip"], step_s),
        "flip_accepted_to_first_token_in_new_role": _row(tally.first_token_s, step_s),
        "drain_accepted_to_drained": _row(tally.ready_s["drain"], step_s),
        "moves": tally.num_by_kind,
        "bytes_really_copied": tally.num_bytes,
        "stall_per_moved_sequence": _row(tally.stalls_s, step_s),
    }


def _row(values: list[float], step_s: float | None) -> dict[str, float | int | None]:
    q = quantiles(values)
    p50, p99 = (None if each is None else round(1000 * each, 1) for each in (q.p50, q.p99))
    steps = None if not step_s or q.p50 is None else round(q.p50 / step_s, 1)
    return {"n": len(values), "p50_ms": p50, "p99_ms": p99, "p50_steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=10)
    parser.add_argument("--drains", type=int, default=5)
    parser.add_argument("--streams", type=int, default=36)
    parser.add_argument("--max-tokens", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = {
        "workers": "paced 70B on modelled H100s (simulated)",
        "with_migration": measure(options, live=True),
        "drain_and_wait": measure(options, live=False),
    }
    if options.json:
        print(json.dumps(result))
        return
    ours, theirs = result["with_migration"], result["drain_and_wait"]
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    print(result["workers"])
    for name in ours:
        print(f"{name:<42} {ours[name]!s:<78} {theirs[name]}")


if __name__ == "__main__":
    main()
