"""History: what one tick costs to account for and to write, and what common queries cost, by fleet size.

    python bench/history.py [--workers 4 48 256] [--ticks 130] [--url sqlite:////path/history.db]

Each worker does 20 decode steps and one prefill step a second on an in-memory meter under simulated time, and 5
requests a second end. The last ticks include rolling up 10 s and 60 s. Times are of this process alone, here.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from control.accounting import Accountant
from control.fleets.base import Observation
from control.history.store import History, SeriesQuery
from control.traffic.report import quantiles
from control.types import RequestRecord
from engine.histogram import of_values
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
    spent: dict[str, list[float]] = {"read meters": [], "account": [], "utilization": [], "write": []}
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
        spent["write"].append(time.perf_counter() - begin)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 48, 256])
    parser.add_argument("--ticks", type=int, default=130)
    parser.add_argument("--url", default="", help="default: a new SQLite file for each fleet size")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for num_workers in options.workers:
            path = Path(folder) / f"{num_workers}.db"
            result = measure(options.url or f"sqlite:///{path}", num_workers, options.ticks)
            if path.exists():
                size = sum(each.stat().st_size for each in Path(folder).glob(f"{path.name}*"))
                result["KiB a tick"] = round(size / options.ticks / 1024, 1)
            print(json.dumps(result) if options.json else _table(result))


def _table(result: dict[str, object]) -> str:
    lines = [f"{result['workers']} workers ({os.cpu_count()} cores here)"]
    return "\n".join([*lines, *(f"  {name:32} {value}" for name, value in result.items() if name != "workers")])


if __name__ == "__main__":
    main()
