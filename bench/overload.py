"""Overload: goodput beyond capacity per length class, honest 429s, and a flooding API key beside a modest one.

python bench/overload.py --part sweep             which rate gives the most goodput
python bench/overload.py --part twice --peak 9    twice that rate for 5 minutes, clients retry nothing
python bench/overload.py --part obey --peak 9     the same, each client obeys its Retry-After once
python bench/overload.py --part off --peak 9      twice that rate with admission=bound: only max_in_flight bounds
python bench/overload.py --part flood --peak 9    a key that sends 3 x peak beside one that sends 0.15 x peak
python bench/overload.py --part flood-off --peak 9

Paced 70B workers (2 prefill + 2 decode, simulated) behind the product's own gateway, plane and wire. Arrivals are open
loop and Poisson: half of them 256 prompt tokens, 35% 1500, 15% 6000, all distinct; 100 output tokens. Good is judged on
the gateway's own records (its clock, its SLO), by arrival; drops are judged by the client: a stream that began and did
not end with [DONE]. What is self-consistent: step times come from the same cost model in all parts. What is not: the
gateway knows nothing of that model; it predicts from what workers report and from how its own requests ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import psutil

from _deployment import Deployment, deployment
from control.types import RequestRecord

NUM_PREFILL, NUM_WORKERS, MAX_BATCH = 2, 4, 24
KV_BYTES = 16 * 2**30  # of each modelled worker
OUTPUT_TOKENS = 100
VOCABULARY = 100_000
BIN_S: Final = 30.0
#: Name, prompt tokens, share of arrivals.
CLASSES: Final = (("short", 256, 0.5), ("medium", 1500, 0.35), ("long", 6000, 0.15))
RECORDS_LATE_S = 3.0


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    num_sent: Counter[str] = field(default_factory=Counter)  # by class; a retry is not counted again
    num_refused: Counter[str] = field(default_factory=Counter)
    num_dropped: int = 0
    num_obeyed: int = 0
    num_obeyed_in: int = 0
    retry_after_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


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
    while at_s < duration_s:
        name, num_tokens, _ = rng.choices(CLASSES, [share for _, _, share in CLASSES])[0]
        yield at_s, name, [rng.randrange(1, VOCABULARY) for _ in range(num_tokens)]
        at_s += rng.expovariate(flow.rate_rps)


async def ask(session: aiohttp.ClientSession, body: bytes, key: str) -> tuple[int, float, bool, str]:
    """Status, Retry-After, whether a stream that began ended well, and an error's words."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    began, last = False, b""
    try:
        async with session.post("/v1/completions", data=body, headers=headers) as response:
            if response.status != 200:
                words = (await response.read())[:200].decode(errors="replace")
                return response.status, float(response.headers.get("Retry-After", 0)), True, words
            began = True
            async for line in response.content:
                last = line.strip() or last
        return 200, 0.0, last == b"data: [DONE]", "" if last == b"data: [DONE]" else last[:200].decode()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return 200 if began else 0, 0.0, not began, f"{type(error).__name__}: {error}"


async def one(session: aiohttp.ClientSession, model: str, flow: Flow, name: str, prompt: list[int], out: Tally) -> None:
    fields = {"model": model, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}
    body = json.dumps(fields).encode()
    out.num_sent[name] += 1
    status, retry_after_s, ended_well, words = await ask(session, body, flow.key)
    if status == 429:
        out.num_refused[name] += 1
        out.retry_after_s.append(retry_after_s)
        if not flow.obeys:
            return
        await asyncio.sleep(retry_after_s)
        out.num_obeyed += 1
        status, _, ended_well, words = await ask(session, body, flow.key)
        out.num_obeyed_in += status == 200
    out.num_dropped += not ended_well
    if words and status != 429:
        out.errors[words[:80]] += 1


async def offer(fleet: Deployment, flows: list[Flow], duration_s: float) -> tuple[dict[str, Tally], list[float]]:
    """All flows to the ends of their last streams; the gateway's resident set every 5 s."""
    tallies, memory = {flow.key: Tally() for flow in flows}, []
    gateway = gateway_process(fleet)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=400)
    async with aiohttp.ClientSession(fleet.gateway_url, connector=connector, timeout=timeout) as session:
        model = (await (await session.get("/v1/models")).json())["data"][0]["id"]

        async def send(flow: Flow) -> None:
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for at_s, name, prompt in arrivals(flow, duration_s):
                    await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
                    group.create_task(one(session, model, flow, name, prompt, tallies[flow.key]))

        async def watch() -> None:
            while True:
                memory.append(gateway.memory_info().rss / 2**20)
                await asyncio.sleep(5.0)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*[send(flow) for flow in flows])
        watching.cancel()
    return tallies, memory


def gateway_process(fleet: Deployment) -> psutil.Process:
    """The one that serves this deployment."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "control.gateway.main" in words:
            environment = process.environ()
            if environment.get("PHASELINE_RUN_DIR") == str(fleet.run_dir):
                return process
    raise SystemExit("the deployment has no gateway process")


def class_of(prompt_tokens: int) -> str:
    return next(name for name, num_tokens, _ in CLASSES if prompt_tokens == num_tokens)


def stage(fleet: Deployment, flows: list[Flow], duration_s: float, warm_s: float = 0.0) -> dict[str, Any]:
    """Offer, wait for the records, judge. The first `warm_s` count as offered, not in the rates."""
    began_unix_s = time.time()
    tallies, memory = asyncio.run(offer(fleet, flows, duration_s))
    time.sleep(RECORDS_LATE_S)
    records = fleet.client.requests(10_000, began_unix_s)
    until = began_unix_s + duration_s
    counted = [each for each in records if began_unix_s + warm_s <= each.arrival_unix_s < until]
    result = report(counted, duration_s - warm_s) | {"num_records": len(records)}
    result["over_time"] = over_time(records, began_unix_s, duration_s)
    result["gateway_rss_mib"] = [round(each, 1) for each in memory[:: max(1, len(memory) // 12)]]
    result["clients"] = {key: seen_by(tally) for key, tally in tallies.items()}
    if len(flows) > 1:
        ids = Counter(each.api_key_id for each in counted)
        (flood, _), (modest, _) = ids.most_common(2)
        for name, key_id in (("flood", flood), ("modest", modest)):
            own = [each for each in counted if each.api_key_id == key_id]
            result[name] = report(own, duration_s - warm_s)
    return result


def report(records: list[RequestRecord], seconds: float) -> dict[str, Any]:
    good, offered = Counter[str](), Counter[str]()
    for record in records:
        offered[class_of(record.prompt_tokens)] += 1
        good[class_of(record.prompt_tokens)] += bool(record.good)
    served = [each for each in records if each.status == 200]
    return {
        "offered_rps": round(len(records) / seconds, 2),
        "goodput_rps": round(sum(good.values()) / seconds, 2),
        "goodput_rps_by_class": {name: round(good[name] / seconds, 3) for name, _, _ in CLASSES},
        "attainment_by_class": {name: round(good[name] / max(1, offered[name]), 3) for name, _, _ in CLASSES},
        "served_and_good": round(sum(bool(each.good) for each in served) / max(1, len(served)), 4),
        "ttft_s_p50_p99": quantiles_of([each.ttft_s for each in served if each.ttft_s is not None]),
        "by_status": dict(Counter(each.status for each in records)),
    }


def over_time(records: list[RequestRecord], began_unix_s: float, duration_s: float) -> dict[str, list[float]]:
    """Good requests per second in each BIN_S of arrival."""
    bins: dict[str, list[float]] = defaultdict(lambda: [0.0] * max(1, int(duration_s // BIN_S)))
    for record in records:
        at = int((record.arrival_unix_s - began_unix_s) // BIN_S)
        if record.good and 0 <= at < duration_s // BIN_S:
            bins[class_of(record.prompt_tokens)][at] += 1 / BIN_S
    return {name: [round(each, 2) for each in line] for name, line in bins.items()}


def seen_by(tally: Tally) -> dict[str, Any]:
    return {
        "sent": dict(tally.num_sent),
        "refused_429": dict(tally.num_refused),
        "streams_dropped": tally.num_dropped,
        "retry_after_s_p50_p99": quantiles_of(tally.retry_after_s),
        "obeyed": tally.num_obeyed,
        "obeyed_and_got_in": tally.num_obeyed_in,
        "errors": dict(tally.errors),
    }


def quantiles_of(values: list[float]) -> list[float] | None:
    ordered = sorted(values)
    return [round(ordered[int(q * (len(ordered) - 1))], 3) for q in (0.5, 0.99)] if ordered else None


def fleet_of(options: argparse.Namespace, admission: str) -> Any:
    return deployment(
        num_workers=NUM_WORKERS,
        num_prefill=NUM_PREFILL,
        profile="local",
        worker_kind="paced",
        max_batch=MAX_BATCH,
        prefill_chunk_tokens=2048,
        kv_bytes_per_worker=KV_BYTES,
        max_queue_per_worker=1000,
        max_in_flight=options.max_in_flight,
        admission=admission,
        **({"admission_at_share": options.at_share} if options.at_share else {}),
    )


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Each rate after another on one deployment, warmed up by the first seconds of each."""
    result: dict[str, Any] = {}
    with fleet_of(options, options.admission) as fleet:
        stage(fleet, [Flow(key="k", rate_rps=4.0, seed=1)], 15.0)
        for number, rate_rps in enumerate(options.rates):
            flows = [Flow(key="k", rate_rps=rate_rps, seed=100 + number)]
            result[str(rate_rps)] = stage(fleet, flows, options.seconds, warm_s=5.0)
            print(f"{rate_rps:g} rps: {result[str(rate_rps)]['goodput_rps']} good rps", flush=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--peak", type=float, default=9.0, help="the rate of most goodput, as the sweep found it")
    parser.add_argument("--rates", type=float, nargs="+", default=[4, 6, 8, 9, 10, 12])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--at-share", type=float, default=0.0, help="setting admission_at_share; 0: its default")
    parser.add_argument("--max-in-flight", type=int, default=256)
    parser.add_argument("--admission", choices=("predict", "bound"), default="predict", help="of the sweep")
    options = parser.parse_args()
    print(json.dumps({options.part: PARTS[options.part](options)}, indent=1))


if __name__ == "__main__":
    main()
