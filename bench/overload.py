"""Overload: goodput beyond capacity per length class, honest 429s, and a flooding API key beside a modest one.

python bench/overload.py --part sweep             which rate gives the most goodput
python bench/overload.py --part twice --peak 9    twice that rate for 5 minutes, clients retry nothing
python bench/overload.py --part obey --peak 9     the same, each client obeys its Retry-After once
python bench/overload.py --part off --peak 9      twice that rate with admission=bound: only max_in_flight bounds
python bench/overload.py --part flood --peak 9    a key that sends 3 x peak beside one that sends 0.15 x peak
python bench/overload.py --part flood-off --peak 9

Paced 70B workers (2 prefill + 2 decode, simulated) behind the product's own gateway on the product's wire. Arrivals
are open loop and Poisson; of each 20, 10 have 256 prompt tokens, 7 have 1500 and 3 have 6000, all distinct; 100 output
tokens. All is judged by the client, from the scheduled arrival, with the default SLO: TTFT, TPOT and the largest gap.
A dropped stream is one that began and did not end with [DONE].

Self-consistent: all parts have their step times from one cost model, which is assumed. Not so: the gateway knows
nothing of that model; it predicts from what workers report of their queues and rates, and how its own requests ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import uvloop

from _paced_fleet import MODEL, PacedFleet, Shape, paced_fleet
from control.types.requests import Slo

OUTPUT_TOKENS = 100
VOCABULARY = 100_000
BIN_S: Final = 30.0
#: Name, prompt tokens, share of arrivals.
CLASSES: Final = (("short", 256, 0.5), ("medium", 1500, 0.35), ("long", 6000, 0.15))
SLO: Final = Slo()


@dataclass(slots=True)
class Answer:
    """What one client got for one request."""

    key: str
    length: str
    prompt_tokens: int
    at_s: float  # its scheduled arrival, from the start
    status: int = 0
    ttft_s: float | None = None
    last_s: float = 0.0
    max_gap_s: float = 0.0
    num_chunks: int = 0
    is_dropped: bool = False
    retry_after_s: float | None = None
    retry_status: int | None = None
    error: str = ""

    @property
    def tpot_s(self) -> float | None:
        return None if self.ttft_s is None else (self.last_s - self.ttft_s) / max(1, self.num_chunks - 1)

    @property
    def is_good(self) -> bool:
        if self.status != 200 or self.is_dropped or self.ttft_s is None or self.tpot_s is None:
            return False
        bound_s = SLO.ttft_base_s + SLO.ttft_per_token_s * self.prompt_tokens
        return self.ttft_s <= bound_s and self.tpot_s <= SLO.tpot_s and self.max_gap_s <= SLO.max_gap_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One API key's open-loop arrivals."""

    key: str
    rate_rps: float
    seed: int
    obeys: bool = False


def arrivals(flow: Flow, duration_s: float) -> Iterator[tuple[float, str, list[int]]]:
    """Seconds from the start, class, prompt."""
    rng = random.Random(flow.seed)
    at_s = rng.expovariate(flow.rate_rps)
    deck: list[tuple[str, int]] = []
    while at_s < duration_s:
        if not deck:  # each 20 arrivals have the exact shares, in random order
            deck = [(name, size) for name, size, share in CLASSES for _ in range(round(20 * share))]
            rng.shuffle(deck)
        name, num_tokens = deck.pop()
        yield at_s, name, [rng.randrange(1, VOCABULARY) for _ in range(num_tokens)]
        at_s += rng.expovariate(flow.rate_rps)


async def ask(session: aiohttp.ClientSession, body: bytes, answer: Answer, scheduled_s: float, url: str = "") -> None:
    """One request to its end, into `answer`. `url`: of the gateway, where the session has none."""
    headers = {"Authorization": f"Bearer {answer.key}", "Content-Type": "application/json"}
    last = b""
    try:
        async with session.post(f"{url}/v1/completions", data=body, headers=headers) as response:
            answer.status = response.status
            if response.status != 200:
                answer.error = (await response.read())[:300].decode(errors="replace")
                answer.retry_after_s = float(response.headers.get("Retry-After", 0))
                return
            answer.is_dropped = True
            async for line in response.content:
                if line.startswith(b"data: "):
                    last = line
                    note_chunk(answer, time.monotonic() - scheduled_s)
            answer.is_dropped = not last.startswith(b"data: [DONE]")
            answer.error = last[:200].decode() if answer.is_dropped else ""
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        answer.error = f"{type(error).__name__}: {error}"[:200]


def note_chunk(answer: Answer, now_s: float) -> None:
    if answer.ttft_s is None:
        answer.ttft_s = now_s
    else:
        answer.max_gap_s = max(answer.max_gap_s, now_s - answer.last_s)
    answer.last_s = now_s
    answer.num_chunks += 1


async def one(
    session: aiohttp.ClientSession,
    flow: Flow,
    answer: Answer,
    prompt: list[int],
    scheduled_s: float,
    sink: list[Answer],
) -> None:
    """One request, and its second attempt when its client obeys."""
    fields = {"model": MODEL, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}
    body = json.dumps(fields).encode()
    await ask(session, body, answer, scheduled_s)
    sink.append(answer)
    if answer.status == 429 and flow.obeys and answer.retry_after_s is not None:
        await asyncio.sleep(answer.retry_after_s)
        again_s = time.monotonic()
        second = Answer(answer.key, answer.length, answer.prompt_tokens, answer.at_s + again_s - scheduled_s)
        await ask(session, body, second, again_s)
        answer.retry_status = second.status
        sink.append(second)


async def offer(fleet: PacedFleet, flows: list[Flow], duration_s: float) -> tuple[list[Answer], list[float]]:
    """All flows to the ends of their last streams; and the gateway's resident set in MiB, every 5 s."""
    answers: list[Answer] = []
    memory: list[float] = []
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=400)
    async with aiohttp.ClientSession(fleet.url, connector=connector, timeout=timeout) as session:

        async def send(flow: Flow) -> None:
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for at_s, length, prompt in arrivals(flow, duration_s):
                    await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
                    answer = Answer(flow.key, length, len(prompt), at_s)
                    group.create_task(one(session, flow, answer, prompt, began_s + at_s, answers))

        async def watch() -> None:
            while True:
                memory.append(round(fleet.gateway.memory_info().rss / 2**20, 1))
                await asyncio.sleep(5.0)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*[send(flow) for flow in flows])
        watching.cancel()
    return answers, memory


def stage(fleet: PacedFleet, flows: list[Flow], duration_s: float, warm_s: float = 0.0) -> dict[str, Any]:
    """Offer and judge. The first `warm_s` are offered, and not judged."""
    answers, memory = uvloop.run(offer(fleet, flows, duration_s))
    seconds = duration_s - warm_s
    counted = [each for each in answers if warm_s <= each.at_s < duration_s]
    result = report(counted, seconds)
    result["over_time"] = over_time(answers, duration_s)
    result["gateway_rss_mib"] = memory[:: max(1, len(memory) // 12)]
    result["gateway_cpu_s"] = round(sum(fleet.gateway.cpu_times()[:2]), 1)
    if len(flows) > 1:
        for flow in flows:
            result[flow.key] = report([each for each in counted if each.key == flow.key], seconds)
    return result


def report(answers: list[Answer], seconds: float) -> dict[str, Any]:
    good, offered = Counter[str](), Counter[str]()
    for answer in answers:
        offered[answer.length] += 1
        good[answer.length] += answer.is_good
    served = [each for each in answers if each.status == 200]
    obeyed = [each.retry_status for each in answers if each.retry_status is not None]
    refused = [each for each in answers if each.status == 429]
    return {
        "offered_rps": round(len(answers) / seconds, 2),
        "goodput_rps": round(sum(good.values()) / seconds, 2),
        "goodput_rps_by_class": {name: round(good[name] / seconds, 3) for name, _, _ in CLASSES},
        "attainment_by_class": {name: round(good[name] / max(1, offered[name]), 3) for name, _, _ in CLASSES},
        "good_of_served": round(sum(each.is_good for each in served) / max(1, len(served)), 4),
        "ttft_s_p50_p99": quantiles_of([each.ttft_s for each in served if each.ttft_s is not None]),
        "tpot_s_p50_p99": quantiles_of([each.tpot_s for each in served if each.tpot_s is not None]),
        "max_gap_s_p50_p99": quantiles_of([each.max_gap_s for each in served]),
        "by_status": {str(status): count for status, count in Counter(each.status for each in answers).items()},
        "streams_dropped": sum(each.is_dropped for each in answers),
        "refused_by_class": dict(Counter(each.length for each in refused)),
        "retry_after_s_p50_p99": quantiles_of([each.retry_after_s for each in refused if each.retry_after_s]),
        "obeyed": len(obeyed),
        "obeyed_and_got_in": sum(status == 200 for status in obeyed),
        "errors": dict(Counter(each.error[:160] for each in answers if each.status != 429 and each.error)),
        "a_refusal": refused[-1].error if refused else "",
    }


def over_time(answers: list[Answer], duration_s: float) -> dict[str, list[float]]:
    """Good requests per second in each BIN_S of arrival."""
    bins: dict[str, list[float]] = defaultdict(lambda: [0.0] * max(1, int(duration_s // BIN_S)))
    for answer in answers:
        at = int(answer.at_s // BIN_S)
        if answer.is_good and at < len(bins[answer.length]):
            bins[answer.length][at] += 1 / BIN_S
    return {name: [round(each, 2) for each in bins[name]] for name, _, _ in CLASSES}


def quantiles_of(values: list[float]) -> list[float] | None:
    ordered = sorted(values)
    return [round(ordered[int(q * (len(ordered) - 1))], 3) for q in (0.5, 0.99)] if ordered else None


def fleet_of(options: argparse.Namespace, admission: str) -> AbstractContextManager[PacedFleet]:
    share = {"admission_at_share": options.at_share} if options.at_share else {}
    return paced_fleet(Shape(), admission=admission, max_in_flight=options.max_in_flight, **share)


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Each rate after another on one deployment, warmed up by the first seconds of each."""
    result: dict[str, Any] = {}
    with fleet_of(options, options.admission) as fleet:
        stage(fleet, [Flow(key="k", rate_rps=4.0, seed=1)], 15.0)
        for number, rate_rps in enumerate(options.rates):
            flows = [Flow(key="k", rate_rps=rate_rps, seed=100 + number)]
            result[str(rate_rps)] = stage(fleet, flows, options.seconds, warm_s=5.0)
            print(f"{rate_rps:g} rps: {result[str(rate_rps)]['goodput_rps']} good rps", file=sys.stderr, flush=True)
            time.sleep(5.0)
    best = max(result, key=lambda each: result[each]["goodput_rps"])
    return {"peak_rate_rps": float(best), "peak_goodput_rps": result[best]["goodput_rps"], "rates": result}


def twice(options: argparse.Namespace, admission: str, *, obeys: bool = False) -> dict[str, Any]:
    with fleet_of(options, admission) as fleet:
        stage(fleet, [Flow(key="k", rate_rps=options.peak, seed=1)], 20.0)
        flows = [Flow(key="k", rate_rps=2 * options.peak, seed=7, obeys=obeys)]
        return stage(fleet, flows, options.seconds, warm_s=10.0)


def flood(options: argparse.Namespace, admission: str) -> dict[str, Any]:
    with fleet_of(options, admission) as fleet:
        stage(fleet, [Flow(key="warm", rate_rps=options.peak, seed=1)], 20.0)
        flows = [
            Flow(key="flood", rate_rps=3 * options.peak, seed=8),
            Flow(key="modest", rate_rps=0.15 * options.peak, seed=9),
        ]
        return stage(fleet, flows, options.seconds, warm_s=10.0)


PARTS: Final = {
    "sweep": sweep,
    "twice": lambda options: twice(options, "predict"),
    "obey": lambda options: twice(options, "predict", obeys=True),
    "off": lambda options: twice(options, "bound"),
    "flood": lambda options: flood(options, "predict"),
    "flood-off": lambda options: flood(options, "bound"),
}


def everything(options: argparse.Namespace) -> dict[str, Any]:
    """Each part after another, the others at the peak that the sweep finds."""
    found = {"sweep": sweep(options)}
    options.peak = found["sweep"]["peak_rate_rps"]
    return found | {name: part(options) for name, part in PARTS.items() if name != "sweep"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--peak", type=float, default=9.0, help="the rate of most goodput, as the sweep found it")
    parser.add_argument("--rates", type=float, nargs="+", default=[8, 10, 12, 14])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each stage; 300 for what is published")
    parser.add_argument("--at-share", type=float, default=0.0, help="setting admission_at_share; 0: its default")
    parser.add_argument("--max-in-flight", type=int, default=256)
    parser.add_argument("--admission", choices=("predict", "bound"), default="predict", help="of the sweep")
    parser.add_argument("--json", action="store_true", help="in one line")
    options = parser.parse_args()
    part = everything if options.part == "all" else PARTS[options.part]
    print(json.dumps({options.part: part(options)}, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
