"""Decode workers are killed under open streams, here and in other systems: what a client without retries loses.

python bench/peers_failover.py --setup            makes the peers' environments under data/run/peers, and ends
python bench/peers_failover.py                    10 failures of 40 streams each, per system
python bench/peers_failover.py --only phaseline dynamo --failures 20

Each system has two prefill and two decode workers, and gets the same rounds from the same client: the streams are
opened, and once each has given some text one decode worker is killed with SIGKILL; every third round both are, which
are then the last of their role. A peer's killed worker is started again by this script at once; Phaseline does that
itself. A stream is lost when it ends with an error, is cut off, or ends without [DONE]; one that was
refused with 429 was never admitted, and counts apart. Changed: another text than the
same stream of an undisturbed round, or where a system's text is random, another number of tokens than asked for. The
stall is the largest gap between two pieces of text of a stream, at the client. Whole again: from the kill until the
frontend lists all workers as alive and none that is dead, and 8 requests in a row are answered.

No model runs: fake, mock and paced workers stream about 26 ms a token. So it compares what the systems do, not devices.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from _deployment import Deployment, deployment
from _peers import DYNAMO, SGLANG_ROUTER, Dynamo, Peer, PeerFailed, SglangRouter, running
from _streams import Heard, Round, prompts
from control.traffic.report import quantiles
from control.types.workers import Role, WorkerState

LIMIT_S = 90.0
POLL_S = 0.02
NUM_PROBES = 8
PIECES_BEFORE = 10  # that each stream has given when the kill comes
#: One decode worker can hold all streams, as the peers' mocks can: else some would wait for the killed one to be back.
#: And nobody is refused for coming late, as the peers refuse nobody: all get the same streams.
ROOM = {"max_batch": 64, "kv_bytes_per_worker": 20 * 2**30, "slo": '{"ttft_base_s": 60.0}'}
CONTEXTS = (1, 20, 60)  # repetitions of a sentence: short, middle and long prompts


class Phaseline:
    """A deployment with paced workers, with the face of a peer."""

    name = "phaseline"
    what = "Phaseline, paced 70B workers"
    has_steady_text = True

    def __init__(self, fleet: Deployment) -> None:
        self._fleet = fleet
        self._pids: dict[str, int] = {}
        self.url = fleet.gateway_url
        self.model_id = httpx.get(f"{self.url}/v1/models").json()["data"][0]["id"]

    def decode_workers(self) -> list[str]:
        """Also looks up their processes, so that a kill asks nobody."""
        found = [each for each in self._fleet.client.snapshot().workers if each.role == Role.DECODE]
        self._pids = {each.worker_id: each.pid for each in found}
        return list(self._pids)

    def kill(self, worker: str) -> None:
        os.kill(self._pids[worker], signal.SIGKILL)

    def start_again(self, worker: str) -> None:
        """It does so itself."""

    def is_whole(self) -> bool:
        ready = [
            each for each in self._fleet.client.snapshot().workers if each.alive and each.state == WorkerState.READY
        ]
        return sorted(each.role for each in ready) == [Role.DECODE, Role.DECODE, Role.PREFILL, Role.PREFILL]


@contextmanager
def phaseline() -> Iterator[Phaseline]:
    shape = {"num_workers": 4, "num_prefill": 2, "profile": "local", **ROOM}
    with deployment(worker_kind="paced", paced_workers_per_process=1, **shape) as fleet:
        yield Phaseline(fleet)


System = Peer | Phaseline


@dataclass(slots=True)
class Tally:
    """One system's rounds of one kind."""

    num_failures: int = 0
    num_streams: int = 0
    num_refused: int = 0  # 429 at once: never admitted
    num_lost: int = 0
    num_changed: int = 0
    stalls_s: list[float] = field(default_factory=list)  # of the streams that were not lost
    undisturbed_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)


async def one_round(system: System, options: argparse.Namespace, number: int, tally: Tally, *, both: bool) -> None:
    """One failure under open streams, then the same streams undisturbed."""

    def begin() -> Round:
        texts = prompts(f"Round {number}", options.streams, CONTEXTS)
        return Round(system.url, system.model_id, texts, options.max_tokens, LIMIT_S)

    disturbed = begin()
    workers = await asyncio.to_thread(system.decode_workers)
    await disturbed.until_heard(PIECES_BEFORE, LIMIT_S)
    victims = workers if both else [workers[number % len(workers)]]
    killed_s = time.monotonic()
    for each in victims:
        system.kill(each)
    for each in victims:
        system.start_again(each)
    whole = asyncio.create_task(asyncio.to_thread(until_whole, system))
    heard = await disturbed.ended()
    tally.whole_s.append(await whole - killed_s)
    undisturbed = await begin().ended()
    count(system, options, heard, undisturbed, tally)


def count(
    system: System, options: argparse.Namespace, heard: list[Heard], undisturbed: list[Heard], tally: Tally
) -> None:
    tally.num_failures += 1
    tally.num_streams += len(heard)
    tally.undisturbed_s += [each.max_gap_s for each in undisturbed if not each.problem]
    for each, expected in zip(heard, undisturbed, strict=True):
        if each.problem:
            tally.num_refused += each.is_refused
            tally.num_lost += not each.is_refused
            tally.problems[each.problem[:160]] = tally.problems.get(each.problem[:160], 0) + 1
            continue
        tally.stalls_s.append(each.max_gap_s)
        wrong_length = each.num_tokens is not None and each.num_tokens != options.max_tokens
        is_known = system.has_steady_text and not expected.problem
        tally.num_changed += wrong_length or (is_known and each.text != expected.text)


def until_whole(system: System) -> float:
    """When it was; LIMIT_S later at the latest."""
    deadline_s = time.monotonic() + LIMIT_S
    num_answered = 0
    while time.monotonic() < deadline_s:
        num_answered = num_answered + 1 if system.is_whole() and answers(system) else 0
        if num_answered == NUM_PROBES:
            break
        time.sleep(POLL_S)
    return time.monotonic()


def answers(system: System) -> bool:
    body = {"model": system.model_id, "prompt": "A probe.", "max_tokens": 2, "stream": True, "ignore_eos": True}
    try:
        response = httpx.post(f"{system.url}/v1/completions", json=body, timeout=10)
    except httpx.HTTPError:
        return False
    return response.status_code == 200 and "[DONE]" in response.text and '"error"' not in response.text


def measure(system: System, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one system."""
    tallies = {"one": Tally(), "both": Tally()}
    until_whole(system)
    for number in range(1, options.failures + 1):
        kind = "both" if number % 3 == 0 else "one"
        asyncio.run(one_round(system, options, number, tallies[kind], both=kind == "both"))
        tally = tallies[kind]
        print(f"{system.name}, round {number} ({kind}): lost {tally.num_lost} of {tally.num_streams}", flush=True)
    return {"name": system.name, "what": system.what} | {
        kind: row(tally) for kind, tally in tallies.items() if tally.num_failures
    }


def row(tally: Tally) -> dict[str, object]:
    return {
        "failures": tally.num_failures,
        "streams": tally.num_streams,
        "refused (429)": tally.num_refused,
        "lost": tally.num_lost,
        "changed": tally.num_changed,
        "largest_gap_ms": spread(tally.stalls_s, 1000),
        "largest_gap_undisturbed_ms": spread(tally.undisturbed_s, 1000),
        "whole_again_s": spread(tally.whole_s, 1),
        "problems": tally.problems,
    }


def spread(values: list[float], factor: float) -> dict[str, float | int | None]:
    q = quantiles(values)
    p50, p99 = (None if each is None else round(factor * each, 1) for each in (q.p50, q.p99))
    return {"n": len(values), "p50": p50, "p99": p99, "max": round(factor * max(values), 1) if values else None}


def one_system(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Its row, or why it did not run."""
    try:
        if name == "phaseline":
            with phaseline() as ours:
                return measure(ours, options)
        with running(SglangRouter() if name == "sglang-router" else Dynamo()) as peer:
            return measure(peer, options)
    except PeerFailed as error:
        return {"name": name, "what": name, "did_not_start": str(error)}


def show(rows: list[dict[str, Any]]) -> None:
    """Those that have run, side by side: a column per system, then what its lost streams said."""
    names = [name for name in row(Tally()) if name != "problems"]
    for kind, title in (("one", "one of two decode workers killed"), ("both", "both decode workers killed")):
        print(f"\n{title}\n{'':<28}" + "".join(f"{each['name']:<50}" for each in rows))
        for name in names:
            values = [str(each.get(kind, {}).get(name, "-")) for each in rows]
            print(f"{name:<28}" + "".join(f"{value.strip('{}'):<50}" for value in values))
    for each in rows:
        problems = [each[kind]["problems"] for kind in ("one", "both") if kind in each]
        print(f"\n{each['what']}: {each.get('did_not_start', problems)}")


def main() -> None:
    names = ("sglang-router", "dynamo", "phaseline")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="install the peers, each in its own environment, and end")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names))
    parser.add_argument("--failures", type=int, default=10)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.setup:
        for kind in (SglangRouter, Dynamo):
            kind.set_up()
        print(f"sglang-router {SGLANG_ROUTER} and Dynamo {DYNAMO} are installed")
        return
    rows: list[dict[str, Any]] = []
    for name in options.only:
        rows.append(one_system(name, options))
        if not options.json:
            show(rows)
    if options.json:
        print(json.dumps(rows))
    if any("did_not_start" in each for each in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
