"""Workers die and are stopped under open streams: what clients lost, what changed, how long their streams stood.

python bench/failover.py                       paced workers (simulated), 20 failures, 40 streams each
python bench/failover.py --real --streams 6    the real model on the CPU
python bench/failover.py --failures 200

Each round opens the same streams, fails the worker that runs most of them (kill -9 and SIGSTOP in turn, prefill and
decode in turn), and compares every text with the same stream of an undisturbed round. Clients retry nothing. A stopped
process is let go on (SIGCONT) when the round has ended. The stall is the largest gap between two tokens of a request
that went on elsewhere, on the gateway's clock: it holds the time to notice and to compute the KV again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass, field

import httpx

from _deployment import Deployment, deployment
from control.client import PhaselineClient
from control.traffic.report import quantiles
from control.types import RequestRecord, Role, WorkerState, WorkerStatus

LIMIT_S = 120.0
POLL_S = 0.01


@dataclass(slots=True)
class Tally:
    """Over all rounds; `stalls_s` by signal."""

    num_failures: int = 0
    num_streams: int = 0
    num_lost: int = 0
    num_different: int = 0
    num_moved: int = 0
    stalls_s: dict[str, list[float]] = field(default_factory=lambda: {"SIGKILL": [], "SIGSTOP": []})
    ttft_s: list[float] = field(default_factory=list)  # of those that went on elsewhere
    problems: list[str] = field(default_factory=list)


async def stream(client: httpx.AsyncClient, model_id: str, index: int, max_tokens: int, salt: str) -> str:
    """One stream's whole text; raises on any error in it."""
    prompt = f"{salt} Stream {index} of the round: tell slowly what a lighthouse keeper does in the {index}th hour."
    body = {
        "model": model_id,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "seed": 7,
    }
    parts = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
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


async def open_streams(
    fleet: Deployment, model_id: str, options: argparse.Namespace, number: int, victim: Role | None
) -> tuple[list[str | BaseException], WorkerStatus | None]:
    """All streams of a round to their ends; with a `victim`, its busiest worker is failed once it has work.

    Returns texts or errors, and who was failed.
    """
    limits = httpx.Limits(max_connections=options.streams)
    async with httpx.AsyncClient(base_url=fleet.gateway_url, timeout=LIMIT_S, limits=limits) as client:
        asking = [
            asyncio.create_task(stream(client, model_id, each, options.max_tokens, f"Round {number}."))
            for each in range(options.streams)
        ]
        failed = None
        if victim is not None:
            failed = await asyncio.to_thread(busiest, fleet.client, victim, max(1, options.streams // 8), time.time())
            os.kill(failed.pid, signal_of(number))
        return await asyncio.gather(*asking, return_exceptions=True), failed


def signal_of(number: int) -> signal.Signals:
    return signal.SIGKILL if number % 2 else signal.SIGSTOP


def busiest(client: PhaselineClient, role: Role, least_running: int, since_unix_s: float) -> WorkerStatus:
    """The worker of this role that runs most: of decode once it streams `least_running`, of prefill at once."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        snapshot = client.snapshot()
        is_of_now = snapshot.at_unix_s > since_unix_s or role is Role.PREFILL  # not of the round before
        members = [each for each in snapshot.workers if is_of_now and each.role == role and each.alive]
        chosen = max(members, key=lambda each: each.num_running, default=None)
        is_loaded = chosen is not None and chosen.num_running >= least_running
        if chosen is not None and (is_loaded or role is Role.PREFILL):  # a prefill is over before it can be seen
            return chosen
        time.sleep(POLL_S)
    raise SystemExit(f"no {role} worker had work within {LIMIT_S:g} s")


def until_whole(client: PhaselineClient, num_workers: int) -> None:
    """Wait until all workers are ready again."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        workers = client.snapshot().workers
        ready = [each for each in workers if each.state == WorkerState.READY and each.alive]
        if len(ready) == num_workers:
            return
        time.sleep(0.1)
    raise SystemExit(f"the fleet was not whole again within {LIMIT_S:g} s")


def moved_records(client: PhaselineClient, since_unix_s: float) -> list[RequestRecord]:
    """Requests since then that went on elsewhere; records come once a second."""
    time.sleep(2.5)
    return [each for each in client.requests(1000, since_unix_s) if each.num_reroutes]


def measure(options: argparse.Namespace) -> dict[str, object]:
    kind = {} if options.real else {"worker_kind": "paced", "paced_workers_per_process": 1}
    tally = Tally()
    with deployment(num_workers=4, num_prefill=1, profile="local", stopped_limit_s=60, **kind) as fleet:
        client = fleet.client
        model_id = httpx.get(f"{fleet.gateway_url}/v1/models").json()["data"][0]["id"]
        until_whole(client, 4)
        for number in range(1, options.failures + 1):
            victim = Role.PREFILL if options.prefill and number % 4 >= 2 else Role.DECODE
            one_round(fleet, model_id, options, tally, victim, number)
            print(f"round {number}: lost {tally.num_lost}, different {tally.num_different}", flush=True)
    rows = {
        f"stall_{name.lower()}_s": {"n": len(each), "p50": quantiles(each).p50, "p99": quantiles(each).p99}
        for name, each in tally.stalls_s.items()
    }
    return {
        "workers": "real model, CPU" if options.real else "paced 70B workers (simulated)",
        "failures": tally.num_failures,
        "streams": tally.num_streams,
        "lost": tally.num_lost,
        "different": tally.num_different,
        "went_on_elsewhere": tally.num_moved,
        **rows,
        "ttft_of_those_s": {"p50": quantiles(tally.ttft_s).p50, "p99": quantiles(tally.ttft_s).p99},
        "problems": tally.problems[:5],
    }


def one_round(
    fleet: Deployment, model_id: str, options: argparse.Namespace, tally: Tally, victim: Role, number: int
) -> None:
    """One failure under open streams, then the same streams undisturbed."""
    client, since, name = fleet.client, time.time(), signal_of(number).name
    texts, failed = asyncio.run(open_streams(fleet, model_id, options, number, victim))
    moved = moved_records(client, since)
    if failed is not None and signal_of(number) is signal.SIGSTOP:
        os.kill(failed.pid, signal.SIGCONT)
    until_whole(client, 4)
    expected, _ = asyncio.run(open_streams(fleet, model_id, options, number, None))
    lost = [each for each in texts if isinstance(each, BaseException)]
    tally.num_failures += 1
    tally.num_streams += len(texts)
    tally.num_lost += len(lost)
    tally.problems += [f"round {number}: {each}" for each in lost]
    tally.num_different += sum(
        1 for ours, theirs in zip(texts, expected, strict=True) if isinstance(ours, str) and ours != theirs
    )
    tally.num_moved += len(moved)
    tally.ttft_s += [each.ttft_s for each in moved if each.ttft_s is not None]
    tally.stalls_s[name] += [each.max_gap_s for each in moved if each.max_gap_s is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failures", type=int, default=20)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--prefill", action="store_true", help="fail prefill workers too, in turn")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    print(json.dumps(result) if options.json else "\n".join(f"{name:<24} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
