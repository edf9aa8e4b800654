"""History: what a tick costs to account for and to write, and what zooms into a month of a large fleet cost.

    phaseline bench history [-- --quick] [--database postgresql] [--workers 100 1000] [--zoom-workers 200 --days 30]

All simulated. Ticks: each worker does 20 decode steps and one prefill step a second on an in-memory meter, and 5
requests a second end; upkeep is the folding, rolling up and forgetting that follows each tick, beside the commit.
Zooms: a generated history (seconds of the last day, rollups of all days), random ranges and metrics, each checked
against the generator's true extremes; beside them one day as plain rows and SQL's GROUP BY. Percentiles: of merged
histograms against exact ones. Times are of this process alone, here.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np

from _postgresql import private_cluster
from _zooms import measure_zooms, plain_sql
from control.accounting import Accountant
from control.fleets.base import Observation
from control.history.store import History, SeriesQuery
from control.traffic.report import quantiles
from control.types.requests import RequestRecord
from engine.histogram import MAX_RELATIVE_ERROR, MAX_S, MIN_S, merge_all, of_values, quantile
from engine.meter import Clock, Meter, MeterReader
from engine.readings import DeviceInfo
from engine.types import Load, Phase, PhaseTiming, Role, WorkerState

T0 = 500_000 * 3600.0
DEVICE = DeviceInfo(name="paced", kind="paced", peak_flops=1e15, peak_bytes_per_s=3e12, peak_source="datasheet")


class BenchFleet:
    """Workers that do the same work every second."""

    def __init__(self, num_workers: int) -> None:
        self.now_s = 0.0
        clock = Clock(monotonic=lambda: self.now_s, unix=lambda: T0 + self.now_s)
        self.meters = [
            Meter.create(
                None,
                worker_id=f"w{index}",
                epoch=1,
                model_id="bench",
                address="",
                simulated=True,
                device=DEVICE,
                host_id="h",
                max_context=8192,
                clock=clock,
            )
            for index in range(num_workers)
        ]
        self.readers = [MeterReader(meter) for meter in self.meters]
        self.cursors = [0] * num_workers
        for index, meter in enumerate(self.meters):
            meter.set_state(Role.PREFILL if index % 4 == 0 else Role.DECODE, WorkerState.READY, 1, "", T0)

    def second(self) -> None:
        """One second of work on every worker."""
        start_s = self.now_s
        self.now_s += 1.0
        for meter in self.meters:
            for step in range(20):
                timing = PhaseTiming(Phase.DECODE, start_s + step * 0.045, start_s + step * 0.045 + 0.04, 0.0)
                meter.record(Role.DECODE, timing, tokens=8, context_tokens=8000, batch=8, flops=1e12, bytes=7e10)
                meter.observe_latency("itl", 0.04 + step * 1e-4, 8)
            timing = PhaseTiming(Phase.PREFILL, start_s + 0.9, start_s + 1.0, 0.0)
            meter.record(Role.DECODE, timing, tokens=128, context_tokens=128, batch=1, flops=2e13, bytes=7e10)
            meter.set_load(Load(num_running=8, kv_blocks_total=1000, kv_blocks_held=640))
            meter.heartbeat(self.now_s)

    def observe(self) -> Observation:
        readings = [reader.read(cursor) for reader, cursor in zip(self.readers, self.cursors, strict=True)]
        self.cursors = [reading.next_cursor for reading in readings]
        return Observation(at_unix_s=T0 + self.now_s, readings=tuple(readings))

    def records(self, count: int) -> list[tuple[str, int, RequestRecord]]:
        first = int(self.now_s) * count
        return [("bench", first + index + 1, self._record(first + index)) for index in range(count)]

    def _record(self, index: int) -> RequestRecord:
        return RequestRecord(
            request_id=f"r{index}",
            fleet_id="bench",
            model_id="bench",
            gateway_id="bench",
            api_key_id="",
            simulated=True,
            arrival_unix_s=T0 + max(0.0, self.now_s - 3),
            attempt=0,
            priority=0,
            stream=True,
            endpoint="chat",
            rule="remote",
            reason="",
            prefill_worker="w0",
            decode_worker="w1",
            prompt_tokens=1000,
            cached_tokens=0,
            output_tokens=60,
            max_tokens=128,
            status=200,
            finish_reason="stop",
            error="",
            queue_s=0.01,
            prefill_s=0.2,
            handoff_s=0.02,
            ttft_s=0.25,
            tpot_s=0.04,
            max_gap_s=0.06,
            e2e_s=2.9,
            good=True,
            itl_buckets=of_values([0.04 + step * 1e-4 for step in range(60)]),
        )


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(url: str, num_workers: int, num_ticks: int) -> dict[str, object]:
    """Costs in ms of ticks and queries on a fleet of this size."""
    history, fleet, accountant = History.open(url), BenchFleet(num_workers), Accountant("bench")
    spent: dict[str, list[float]] = {"read meters": [], "account": [], "utilization": [], "commit": [], "upkeep": []}
    for _ in range(num_ticks):
        fleet.second()
        begin = time.perf_counter()
        observation = fleet.observe()
        spent["read meters"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        ingested = accountant.ingest(observation)
        spent["account"].append(time.perf_counter() - begin)
        spent["utilization"].append(timed(partial(accountant.utilization, T0 + fleet.now_s)))
        rows, cursors = fleet.records(5), accountant.snapshot()
        begin = time.perf_counter()
        history.write_tick(ingested, cursors, rows)
        spent["commit"].append(time.perf_counter() - begin)
        spent["upkeep"].append(timed(partial(history.upkeep, T0 + fleet.now_s)))
    result: dict[str, object] = {"workers": num_workers}
    for name, values in spent.items():
        found = quantiles(values)
        result[f"{name} p50 ms"], result[f"{name} p99 ms"] = _ms(found.p50), _ms(found.p99)
    until = T0 + fleet.now_s
    for label, metric, step_s, by in (
        ("query fleet, 1 s", "decode_bandwidth_wall", 1, "fleet"),
        ("query by role, 10 s", "decode_bandwidth_wall", 10, "role"),
        ("query ttft p99, 10 s", "ttft_p99_s", 10, "fleet"),
        ("query by worker, 10 s", "decode_bandwidth_wall", 10, "worker"),
    ):
        query = SeriesQuery(fleet_id="bench", metric=metric, since_unix_s=T0, until_unix_s=until, step_s=step_s, by=by)
        result[f"{label} ms"] = _ms(min(timed(partial(history.series, query)) for _ in range(3)))
    history.close()
    return result


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def percentiles() -> dict[str, object]:
    """Worst relative error of percentiles from merged histograms, over ten spreads of requests in a hundred pieces."""
    worst = 0.0
    for seed in range(10):
        dice = np.random.default_rng(seed)
        values = np.exp(dice.normal(-2.0, 0.3 + 0.2 * seed, 20_000)).clip(MIN_S, MAX_S)
        merged = merge_all(of_values(part.tolist()) for part in np.array_split(values, 100))
        for q in (0.5, 0.9, 0.99, 0.999):
            exact = float(np.sort(values)[max(0, ceil(q * len(values)) - 1)])
            found = quantile(merged, q)
            assert found is not None
            worst = max(worst, abs(found - exact) / exact)
    return {"percentiles, worst relative error": round(worst, 5), "its stated bound": MAX_RELATIVE_ERROR}


def of_database(url: str, options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Ticks by fleet size, then zooms. `url` "": a new SQLite file each."""
    results = []
    for num_workers in options.workers:
        path = folder / f"{num_workers}.db"
        result = measure(url or f"sqlite:///{path}", num_workers, options.ticks)
        if not url:
            size = sum(each.stat().st_size for each in folder.glob(f"{path.name}*"))
            result["KiB a tick"] = round(size / options.ticks / 1024, 1)
        results.append(result)
    if options.zooms:
        zoomed = url or f"sqlite:///{folder / 'zooms.db'}"
        found = measure_zooms(zoomed, options.zoom_workers, options.days, options.zooms)
        results.append(found | plain_sql(folder / "plain.db", min(20, options.zoom_workers)))
    return [*results, percentiles()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--ticks", type=int, default=130)
    parser.add_argument("--zoom-workers", type=int, default=200)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--zooms", type=int, default=1000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--quick", action="store_true", help="32 workers, 3 days, 100 zooms, ticks of 20 workers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.zoom_workers, options.days, options.zooms = [20], 32, 3, 100
    with tempfile.TemporaryDirectory() as folder:
        if options.database == "postgresql":
            with private_cluster() as cluster:
                results = of_database(cluster.url, options, Path(folder))
        else:
            results = of_database("", options, Path(folder))
    print(json.dumps(results) if options.json else "\n".join(map(_table, results)))


def _table(result: dict[str, object]) -> str:
    return "\n".join([f"on {os.cpu_count()} cores", *(f"  {name:48} {value}" for name, value in result.items())])


if __name__ == "__main__":
    main()
