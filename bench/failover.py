"""Workers die, are stopped and hang under open streams, at every stage: what was lost, what changed, how long it took.

python bench/failover.py                          tiny real workers, 27 failures (each stage and way once), 40 streams
python bench/failover.py --kind paced             paced 70B workers (simulated)
python bench/failover.py --failures 200 --log F   one line per round into F; a later call goes on, and sums up all of F

Stages (who is failed): queued, prefill (the prefill worker), handoff-source (it holds leases), handoff-target and
decode (a decode worker), migration-source and -target (while a decode worker drains), last-decode (all decode workers
at once: the prefill worker stands in), mixed (a fleet that does not split). Ways: kill -9, SIGSTOP, and a step that
hangs in a process whose event loop lives. Stages take turns, then ways.

In each round every stream has its own prompt and seed. The disturbed run comes first, so that no prefix cache spares it
the handoff; then the same streams undisturbed, and each pair of texts is compared. Clients retry nothing. Killed
workers are started again at once, stopped and hung ones when the streams have ended. All times are of one monotonic
clock: `notice` from the failure to when the gateway left the worker; `resumed` from the failure to the client's next
token; `stall` between two tokens of a stream that went on elsewhere, as the record says it. Gateway and clients share
this process, and workers share the machine's cores: times hold that contention.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx

from _small_fleet import TOKEN, SmallFleet, small_fleet
from _workers import Spares, Worker
from control.gateway.relay import Relay
from control.traffic.report import quantiles
from control.types.routing import RoutingPolicy
from control.types.workers import Role
from engine.convert import make_tiny_model
from engine.text import ModelText, SeededText, Text
from engine.worker_config import WorkerConfig

LIMIT_S: Final = 90.0
SPLIT: Final = RoutingPolicy(min_fleet_devices=0, min_remote_prefill_tokens=0, max_local_output_tokens=0)
WHOLE: Final = RoutingPolicy(min_fleet_devices=1000)
ROLES: Final = {"w0": Role.PREFILL, "w1": Role.DECODE, "w2": Role.DECODE}
WAYS: Final = ("kill", "stop", "hang")
STAGES: Final = (
    "queued",
    "prefill",
    "handoff-source",
    "handoff-target",
    "decode",
    "migration-source",
    "migration-target",
    "last-decode",
    "mixed",
)


@dataclass(slots=True)
class Round:
    """What one failure did."""

    number: int
    stage: str
    way: str
    num_streams: int
    num_lost: int = 0
    num_different: int = 0
    num_moved: int = 0
    is_hit: bool = True  # the stage was there to be failed in
    blocks_held: int = 0  # when all streams had ended and the fleet was whole again
    notice_s: list[float] = field(default_factory=list)  # per failed worker
    told_notice_s: list[float] = field(default_factory=list)  # per moved stream, as its record says
    stall_s: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    text: str = ""
    came_s: list[float] = field(default_factory=list)


class Bench:
    """The fleet, a client, and the streams of a round."""

    def __init__(self, fleet: SmallFleet, client: httpx.AsyncClient, model: str, options: argparse.Namespace) -> None:
        self.fleet = fleet
        self.client = client
        self.model = model
        self.options = options

    @property
    def relays(self) -> list[Relay]:
        return list(self.fleet.gateway.admission.in_flight.values())

    def busiest(self, *names: str) -> str:
        links = self.fleet.gateway.fleet.links
        return max(names, key=lambda name: len(links[name].legs))

    # --- streams ---------------------------------------------------------------------------------------------------

    async def stream(self, number: int, index: int) -> Answer:
        """One stream to its end; raises on any error in it."""
        dice = random.Random(f"{number}/{index}")
        body = {
            "model": self.model,
            "prompt": [dice.randrange(3, 200) for _ in range(40 + 4 * index)],
            "max_tokens": self.options.max_tokens,
            "temperature": 0.9,
            "seed": 1000 * number + index,
            "ignore_eos": True,
            "stream": True,
        }
        answer, headers = Answer(), {"X-Request-Id": f"r{number}-{index}"}
        async with self.client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            if response.status_code != 200:
                raise RuntimeError(f"HTTP {response.status_code}: {(await response.aread())[:200]!r}")
            async for line in lines_of(response):
                if line == b"data: [DONE]":
                    return answer
                if line.startswith(b"data: "):
                    chunk = json.loads(line.removeprefix(b"data: "))
                    if "error" in chunk:
                        raise RuntimeError(str(chunk["error"]))
                    answer.text += "".join(each["text"] for each in chunk["choices"])
                    answer.came_s.append(time.monotonic())
        raise RuntimeError("the stream ended without [DONE]")

    def streams(self, number: int) -> list[asyncio.Task[Answer]]:
        return [asyncio.create_task(self.stream(number, each)) for each in range(self.options.streams)]

    # --- stages ----------------------------------------------------------------------------------------------------

    async def victims(self, stage: str, asking: list[asyncio.Task[Answer]]) -> list[str]:
        """Wait for the stage, and say who is failed in it; nobody when all streams ended before it came."""
        links = self.fleet.gateway.fleet.links
        if stage.startswith("migration"):
            if not await until(self._many_decode, asking):
                return []
            source = self.busiest("w1", "w2")
            self.fleet.drain(source)
            moving = await until(lambda: any(each.move is not None for each in self.relays), asking)
            other = "w2" if source == "w1" else "w1"
            return [source if stage == "migration-source" else other] if moving else []
        conditions: dict[str, Callable[[], bool]] = {
            "queued": lambda: len(links["w0"].legs) >= self.options.streams // 4,
            "prefill": lambda: bool(links["w0"].legs) and sum(bool(each.tokens) for each in self.relays) > 3,
            "handoff-source": lambda: any(each._lease is not None for each in self.relays),
            "handoff-target": lambda: any(each._lease is not None for each in self.relays),
        }
        if not await until(conditions.get(stage, self._many_decode), asking):
            return []
        if stage in ("queued", "prefill", "handoff-source"):
            return ["w0"]
        if stage == "handoff-target":
            taking = [each._decode for each in self.relays if each._lease is not None and each._decode is not None]
            return [taking[0].worker_id] if taking else []
        return {"last-decode": ["w1", "w2"], "mixed": [self.busiest(*ROLES)]}.get(stage, [self.busiest("w1", "w2")])

    def _many_decode(self) -> bool:
        """Half of the streams at the same time: the first end while the last still wait for their prefill."""
        return 2 * sum(len(each.tokens) >= 3 for each in self.relays) >= self.options.streams

    # --- a round ---------------------------------------------------------------------------------------------------

    async def round(self, number: int, stage: str, way: str) -> Round:
        found = Round(number, stage, way, self.options.streams)
        roles, policy = (dict.fromkeys(ROLES, Role.MIXED), WHOLE) if stage == "mixed" else (ROLES, SPLIT)
        await self.fleet.place(policy, **roles)
        records = self.fleet.gateway.records
        asking = self.streams(number)
        names = await self.victims(stage, asking)
        found.is_hit = bool(names)
        links = [self.fleet.gateway.fleet.links[name] for name in names]
        failed_s = time.monotonic()
        for name in names:
            if way != "kill":
                self.fleet.holds_back.add(name)
            self.fleet.workers[name].fail(way)
        answers = await asyncio.gather(*asking, return_exceptions=True)
        left_s = [link.lost_s for link in links if link.lost_s is not None and link.lost_s >= failed_s]
        for name in names:
            self.fleet.release(name)  # ends what still hangs, which is another loss
        await self.fleet.place(policy, **roles)
        found.blocks_held = await self._blocks_left()
        expected = await asyncio.gather(*self.streams(number), return_exceptions=True)
        first, written = records.batch_from(0)
        records.acknowledge(first + len(written) - 1)
        moves = {each.request_id: each.moves for each in written if any(move.kind == "failover" for move in each.moves)}
        found.notice_s = [each - failed_s for each in left_s]
        self._compare(found, answers, expected)
        self._measure(found, answers, moves, failed_s, min(left_s, default=failed_s))
        return found

    async def _blocks_left(self) -> int:
        """Leases of those who died must have run out within their time."""
        deadline_s = time.monotonic() + 3 * LEASE_S
        while (held := self.fleet.blocks_held()) and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return held

    def _compare(
        self, found: Round, answers: list[Answer | BaseException], expected: list[Answer | BaseException]
    ) -> None:
        for index, (ours, theirs) in enumerate(zip(answers, expected, strict=True)):
            for each in (ours, theirs):
                if isinstance(each, BaseException):
                    found.problems.append(f"stream {index}: {type(each).__name__}: {each}")
            found.num_lost += isinstance(ours, BaseException)
            if isinstance(ours, Answer) and isinstance(theirs, Answer):
                found.num_different += ours.text != theirs.text

    def _measure(
        self, found: Round, answers: list[Answer | BaseException], moves: dict[str, Any], failed_s: float, left_s: float
    ) -> None:
        for index, answer in enumerate(answers):
            own = [each for each in moves.get(f"r{found.number}-{index}", ()) if each.kind == "failover"]
            if not own or isinstance(answer, BaseException):
                continue
            found.num_moved += 1
            found.told_notice_s += [each.notice_s for each in own if each.notice_s is not None]
            found.stall_s += [each.stall_s for each in own if each.stall_s is not None]
            after = [each for each in answer.came_s if each > left_s]
            if after and own[0].stall_s is not None:
                found.resumed_s.append(after[0] - failed_s)


async def lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines end with a line feed alone: a text may hold any other separator that Unicode knows."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for each in lines:
            yield each


async def until(condition: Callable[[], bool], asking: list[asyncio.Task[Answer]]) -> bool:
    """False when the streams have ended before it held."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            if all(each.done() for each in asking):
                return False
            await asyncio.sleep(0.0005)
    return True


# --- workers ------------------------------------------------------------------------------------------------------

LEASE_S: Final = 3.0
NUM_SPARES: Final = 3


def configs(kind: str, shm_dir: Path, model_dir: Path) -> list[WorkerConfig]:
    base = WorkerConfig(
        worker_id="w0", epoch=0, kind="cpu", shm_dir=str(shm_dir), fleet_token=TOKEN, model_id="tiny",
        model_dir=str(model_dir), kv_bytes=32 * 2**20, prefill_chunk_tokens=64, max_batch=40, lease_s=LEASE_S,
    )  # fmt: skip
    if kind == "paced":
        base = replace(base, kind="paced", model_id="llama-70b", paced_device="h100-sxm-80gb", max_batch=64,
                       paced_model="llama-3.1-70b-fp8", kv_bytes=8 * 2**30, prefill_chunk_tokens=512)  # fmt: skip
    return [replace(base, worker_id=name) for name in ROLES]


async def measure(options: argparse.Namespace) -> list[Round]:
    combos = [(stage, way) for way in WAYS for stage in STAGES if options.only in ("", stage, way)]
    log = Path(options.log) if options.log else None
    rounds = [Round(**json.loads(line)) for line in log.read_text().splitlines()] if log and log.exists() else []
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="phaseline-failover-") as folder:
        model_dir, shm_dir = make_tiny_model(Path(folder) / "tiny", seed=1), Path(folder) / "shm"
        text: Text = SeededText(128_256) if options.kind == "paced" else ModelText(model_dir)
        own = configs(options.kind, shm_dir, model_dir)
        spares = Spares(NUM_SPARES + len(own), own[0].kind)
        workers = [Worker(each, spares) for each in own]
        async with small_fleet(workers, spares, text, own[0].model_id, shm_dir) as (fleet, url):
            limits = httpx.Limits(max_connections=options.streams)
            async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits) as client:
                bench = Bench(fleet, client, own[0].model_id, options)
                while len(rounds) < options.failures and time.monotonic() - began_s < options.seconds:
                    stage, way = combos[len(rounds) % len(combos)]
                    rounds.append(await bench.round(len(rounds) + 1, stage, way))
                    each = rounds[-1]
                    if log:
                        with log.open("a") as file:
                            file.write(json.dumps(asdict(each)) + "\n")
                    print(line(each), flush=True)
    return rounds


# --- what is told ---------------------------------------------------------------------------------------------------


def times(values: list[float]) -> str:
    found = quantiles(values)
    if found.p50 is None or found.p99 is None:
        return "-"
    return f"p50 {1000 * found.p50:.0f} p99 {1000 * found.p99:.0f} ms (n={len(values)})"


def line(each: Round) -> str:
    return (
        f"{each.number:>4} {each.stage:<16} {each.way:<4} hit {each.is_hit} lost {each.num_lost} different "
        f"{each.num_different} moved {each.num_moved} notice {times(each.notice_s)} resumed {times(each.resumed_s)} "
        f"blocks {each.blocks_held} {each.problems[:1]}"
    )


def summary(rounds: list[Round], options: argparse.Namespace) -> dict[str, Any]:
    told: dict[str, Any] = {
        "workers": "paced 70B (simulated)" if options.kind == "paced" else "tiny real model, CPU",
        "failures": len(rounds),
        "failures_that_hit_their_stage": sum(each.is_hit for each in rounds),
        "streams": sum(each.num_streams for each in rounds),
        "went_on_elsewhere": sum(each.num_moved for each in rounds),
        "lost": sum(each.num_lost for each in rounds),
        "different": sum(each.num_different for each in rounds),
        "rounds_with_blocks_held_at_the_end": sum(bool(each.blocks_held) for each in rounds),
    }
    by: dict[str, list[Round]] = defaultdict(list)
    for each in rounds:
        by[each.way].append(each)
        by[each.stage].append(each)
    for name in (*WAYS, *STAGES):
        own = by.get(name, [])
        for what in ("notice_s", "resumed_s", "stall_s"):
            told[f"{name} {what}"] = times([value for each in own for value in getattr(each, what)])
    told["problems"] = [f"round {each.number}: {line}" for each in rounds for line in each.problems][:5]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("tiny", "paced"), default="tiny")
    parser.add_argument("--failures", type=int, default=len(STAGES) * len(WAYS))
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--only", default="", help="one stage or one way")
    parser.add_argument("--log", default="", help="a line per round; rounds that are there already count")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no round after so long")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = summary(asyncio.run(measure(options)), options)
    print(json.dumps(told) if options.json else "\n".join(f"{name:<36} {value}" for name, value in told.items()))


if __name__ == "__main__":
    main()
