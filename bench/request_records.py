"""Request records: what one costs, and what questions about a day of them cost.

    python bench/request_records.py [--records 1000000] [--rounds 40] [--url sqlite:////path/history.db] [--json]

A day of made-up requests (one decode worker in twenty is slow for an hour) goes through the sampler, which keeps all,
and `History.write_tick`, as a plane does it, once a minute. Each question is asked `--rounds` times about ranges
that end at random times. Beside the heatmap, in the same run, what it costs to count every record by SQL. "sampled" is
the day with a limit that drops most of it. Times are of this process alone, on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from control.history.store import ExplainQuery, History, RequestFilter, RequestQuery
from control.points import Ingested
from control.sampling import Sampler
from control.traffic.report import quantiles
from control.traffic_stats import judged
from control.types.requests import RequestRecord, Slo
from engine.histogram import of_values

T0 = 500_000 * 3600.0
DAY_S = 86_400.0
HOUR_S = 3600.0
HALF_S = 0.6 * DAY_S
#: All requests of a minute arrive in its first second, and are one tick: a day's seconds alone would take longer to
#: write than all that is measured takes.
BURST_S = 60.0
SLO = Slo()
GAPS = of_values([0.03 + step * 1e-4 for step in range(80)])
KEEP_ALL_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a question or a cost, in ms."""

    what: str
    p50_ms: float
    p99_ms: float
    note: str = ""


def a_record(index: int, arrival_unix_s: float, chance: random.Random) -> RequestRecord:
    """A request of the day; those of worker w7 are slow between 12:00 and 13:00."""
    worker = f"w{chance.randrange(20)}"
    is_slow = worker == "w7" and 12 <= (arrival_unix_s - T0) / 3600 < 13
    ttft_s = chance.lognormvariate(-1.6, 0.5) * (8.0 if is_slow else 1.0)
    prompt_tokens = int(chance.lognormvariate(6.5, 1.0)) + 1
    record = RequestRecord(
        request_id=f"bench-{index}",
        fleet_id="bench",
        model_id="bench",
        gateway_id=f"gw-{index % 2}",
        api_key_id=chance.choice(("a1b2c3d4e5f6", "0f1e2d3c4b5a", "anonymous")),
        simulated=True,
        arrival_unix_s=arrival_unix_s,
        attempt=1,
        priority=10 if chance.random() < 0.1 else 0,
        stream=True,
        endpoint="chat",
        rule=chance.choice(("remote", "remote", "remote", "cached_local", "short_local")),
        reason="412 uncached tokens, least queued prefill worker",
        prefill_worker=f"p{chance.randrange(8)}",
        decode_worker=worker,
        prompt_tokens=prompt_tokens,
        cached_tokens=int(prompt_tokens * chance.choice((0.0, 0.0, 0.3, 0.9))),
        output_tokens=chance.randrange(20, 400),
        max_tokens=512,
        status=503 if chance.random() < 0.001 else 200,
        finish_reason="stop",
        error="",
        queue_s=0.02,
        prefill_s=0.9 * ttft_s,
        handoff_s=0.01,
        ttft_s=ttft_s,
        tpot_s=0.034,
        max_gap_s=chance.lognormvariate(-2.6, 0.4) * (6.0 if is_slow else 1.0),
        e2e_s=ttft_s + chance.uniform(1.0, 9.0),
        good=None,
        itl_buckets=GAPS,
    )
    return judged(record, SLO)


def day(count: int) -> Iterator[RequestRecord]:
    chance = random.Random(11)
    for index in range(count):
        at_s, within_s = divmod(index * DAY_S / count, BURST_S)
        yield a_record(index, T0 + at_s * BURST_S + within_s / BURST_S, chance)


def fill(history: History, count: int, per_s: float) -> tuple[float, int]:
    """Write the day; seconds that the history took, and how many records it kept."""
    sampler, rows, took_s, kept = Sampler(per_s), [], 0.0, 0
    for seq, record in enumerate(day(count), 1):
        at_s = record.arrival_unix_s + 5.0
        rows.append(("bench@1", seq, sampler.judge(record, at_s)))
        if seq == count or int(seq * DAY_S / count / BURST_S) > int((seq - 1) * DAY_S / count / BURST_S):
            kept += sum(each.kept != "dropped" for _, _, each in rows)
            start = time.perf_counter()
            history.write_tick(Ingested(fleet_id="bench", at_unix_s=at_s + 10.0), {}, rows)
            took_s += time.perf_counter() - start
            rows = []
            history.upkeep(at_s + 10.0)  # as a plane does after a tick; not timed here (`bench/history.py`)
    history.settle(T0 + DAY_S + 10.0)
    return took_s, kept


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def asked(what: str, rounds: int, question: Callable[[float], object], note: str = "") -> Row:
    """A question whose range ends at random times of the day's second half."""
    chance = random.Random(3)
    times = [timed(lambda: question(T0 + chance.uniform(0.6, 1.0) * DAY_S)) for _ in range(rounds)]
    found = quantiles(times)
    return Row(what, found.p50 or 0.0, found.p99 or 0.0, note)


def costs(count: int = 20_000) -> list[Row]:
    """Of one request: the verdict at the gateway, the judgement at the plane."""
    records = list(day(count))
    sampler = Sampler(20.0)
    verdict = timed(lambda: [judged(each, SLO) for each in records]) / count
    kept = timed(lambda: [sampler.judge(each, each.arrival_unix_s) for each in records]) / count
    copied = timed(lambda: [replace(each, weight=1.0) for each in records]) / count
    return [
        Row(
            "gateway: which bounds were broken, a request",
            verdict,
            verdict,
            f"of it copying the record {copied:.4f} ms",
        ),
        Row("plane: kept or counted, a request", kept, kept, f"of it copying the record {copied:.4f} ms"),
    ]


def among(end: float, length_s: float, **more: Any) -> RequestFilter:
    return RequestFilter(fleet_id="bench", since_unix_s=end - length_s, until_unix_s=end, **more)


def listed(history: History, end: float, length_s: float, limit: int = 20, **more: Any) -> object:
    query = RequestQuery(fleet_id="bench", since_unix_s=end - length_s, until_unix_s=end, limit=limit, **more)
    return history.requests(query)


def questions(history: History, rounds: int) -> list[Row]:
    return [*quick_questions(history, rounds), *slow_questions(history, max(3, rounds // 8))]


def quick_questions(history: History, rounds: int) -> list[Row]:
    """All ranges lie inside the day."""

    def heatmap(end: float, length_s: float, **more: Any) -> object:
        return history.heatmap(among(end, length_s, **more), SLO)

    found = [
        asked(f"heatmap of 14 h, {kind}", rounds, lambda end, kind=kind: heatmap(end, HALF_S, metric=kind))
        for kind in ("ttft", "e2e", "gap")
    ]
    return [
        *found,
        asked("heatmap of the day, ttft", rounds, lambda _: heatmap(T0 + DAY_S, DAY_S, metric="ttft")),
        asked("heatmap of 1 h, ttft", rounds, lambda end: heatmap(end, HOUR_S, metric="ttft")),
        asked("heatmap of 14 h of one rule", rounds, lambda end: heatmap(end, HALF_S, metric="ttft", rule="remote")),
        asked(
            "requests of one cell (10 min)",
            rounds,
            lambda end: listed(history, end, 600.0, 200, metric="ttft", above_s=0.8, up_to_s=1.1),
        ),
        asked("slowest 20 of 1 h", rounds, lambda end: listed(history, end, HOUR_S, order="slowest")),
        asked("failed of 1 h", rounds, lambda end: listed(history, end, HOUR_S, failed=True)),
    ]


def slow_questions(history: History, rounds: int) -> list[Row]:
    """Those that read records by the hour or by the day."""
    return [
        asked(
            "slowest 20 of the day",
            rounds,
            lambda _: listed(history, T0 + DAY_S, DAY_S, order="slowest"),
            "reads the index of a day",
        ),
        asked(
            "heatmap of 14 h of one worker",
            rounds,
            lambda end: history.heatmap(among(end, HALF_S, metric="ttft", worker_id="w7"), SLO),
            "by weights: reads the records",
        ),
        asked(
            "what is different, 1 h",
            rounds,
            lambda end: history.explanation(ExplainQuery(among=among(end, HOUR_S, metric="ttft"))),
        ),
        asked(
            "what is different, the day",
            rounds,
            lambda _: history.explanation(ExplainQuery(among=among(T0 + DAY_S, DAY_S, metric="ttft"))),
            "at most 4,000 a side",
        ),
        asked(
            "heatmap of the day by SQL over all records",
            rounds,
            lambda _: history.heatmap(among(T0 + DAY_S, DAY_S, metric="ttft", batch=False), SLO),
            "by weights: what the histograms save",
        ),
        asked("pruning: one batch of 1,000", 3, lambda _: history.prune(T0 + DAY_S + 1.0)),
    ]


def measured(url: str, count: int, rounds: int) -> dict[str, Any]:
    history = History.open(url)
    took_s, kept = fill(history, count, KEEP_ALL_PER_S)
    file = Path(url.removeprefix("sqlite:///"))
    rows = [*costs(), *questions(history, rounds)]
    size = file.stat().st_size if file.exists() else None
    history.close()
    return {
        "records": count,
        "kept": kept,
        "write_us_per_request": took_s / count * 1e6,
        "bytes_per_record": None if size is None else size / kept,
        "rows": [{"what": r.what, "p50_ms": r.p50_ms, "p99_ms": r.p99_ms, "note": r.note} for r in rows],
    }


def sampled(count: int, per_s: float) -> dict[str, Any]:
    """The same day with a limit: how much is kept, and how far the weights' sum is from the count."""
    sampler, num, weight = Sampler(per_s), 0, 0.0
    for record in day(count):
        each = sampler.judge(record, record.arrival_unix_s + 5.0)
        num += each.kept != "dropped"
        weight += each.weight if each.kept != "dropped" else 0.0
    return {"limit_per_s": per_s, "kept_share": num / count, "sum_of_weights_over_count": weight / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--url", default="")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(given.url or f"sqlite:///{folder}/history.db", given.records, given.rounds)
    found["sampled"] = sampled(min(given.records, 200_000), given.records / DAY_S / 8)
    found["num_cpus"] = os.cpu_count()
    if given.json:
        json.dump(found, sys.stdout, indent=2)
        return
    print(
        f"{found['records']:,} requests, {found['kept']:,} records, {found['write_us_per_request']:.0f} us to write one"
    )
    if found["bytes_per_record"]:
        print(f"{found['bytes_per_record']:,.0f} bytes a record on disk, with its points and indexes")
    for row in found["rows"]:
        print(f"  {row['what']:<48} p50 {row['p50_ms']:9.4g} ms   p99 {row['p99_ms']:9.4g} ms   {row['note']}")
    print("sampled: " + ", ".join(f"{name} {value:.3g}" for name, value in found["sampled"].items()))


if __name__ == "__main__":
    main()
