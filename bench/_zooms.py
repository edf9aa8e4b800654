"""Random zooms into a generated history (simulated): how long each takes, and whether it shows every true extreme."""

from __future__ import annotations

import random
import sqlite3
import time
from math import ceil, exp, floor, inf, isclose, log
from pathlib import Path
from typing import Final

from control.history.chunks import PHASE_KINDS, phase_kind
from control.history.database import writing
from control.history.demo import DAY_S, Demo, fill, num_shelves, template_of, utilization
from control.history.schema import SHELF_LINES
from control.history.series import MAX_POINTS, base_step
from control.history.store import History, SeriesQuery
from control.types import SeriesResult

METRICS: Final = (
    "decode_bandwidth_wall",
    "prefill_compute_wall",
    "decode_busy",
    "decode_tokens_per_s",
    "kv_usage",
    "num_running",
)
UNTIL: Final = 20_800 * DAY_S


def measure_zooms(url: str, num_workers: int, days: int, num_zooms: int) -> dict[str, object]:
    """Fill an empty database, zoom, compare. Times in ms; a zoom is of one worker, of eight, or of all."""
    demo = Demo(fleet_id="zooms", until_s=UNTIL, num_workers=num_workers, days=days)
    history, begun_s = History.open(url), time.perf_counter()
    for shelf in range(num_shelves(demo)):
        with writing(history._engine, inf) as connection:
            fill(connection, demo, shelf)
    result: dict[str, object] = {"zoomed workers": num_workers, "days": days}
    result["fill s"] = round(time.perf_counter() - begun_s, 1)
    result |= _zooms(history, demo, num_zooms)
    history.close()
    return result


def _zooms(history: History, demo: Demo, num_zooms: int) -> dict[str, object]:
    dice, spent, wrong, most = random.Random(1), dict[str, list[float]](), 0, 0
    for _ in range(num_zooms):
        kind, query = _zoom(demo, dice)
        begun_s = time.perf_counter()
        found = history.series(query)
        spent.setdefault(kind, []).append(time.perf_counter() - begun_s)
        most = max([most, *(len(line.points) for line in found.series)])
        wrong += kind == "of one worker" and not shows_extremes(demo, query, found)
    spent["of any kind"] = [each for times in spent.values() for each in times]
    result: dict[str, object] = {"zooms": num_zooms, "most points a line": most, "zooms without a true extreme": wrong}
    for kind, times in spent.items():
        times.sort()
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            result[f"zoom {kind} {name} ms"] = round(1000 * times[min(len(times) - 1, int(share * len(times)))], 1)
    assert most <= MAX_POINTS + 1  # a range may begin and end inside a bucket
    return result


def _zoom(demo: Demo, dice: random.Random) -> tuple[str, SeriesQuery]:
    """Of all lengths from a minute on alike; short ones in the seconds that are kept."""
    reach_s = demo.days * DAY_S
    length_s = exp(dice.uniform(log(60), log(reach_s)))
    reach_s = demo.raw_days * DAY_S if length_s < 1_000 else reach_s
    since = demo.until_s - reach_s + dice.uniform(0, reach_s - length_s)
    kind, count = dice.choice((("of one worker", 1), ("of eight workers", 8), ("of all workers", 0)))
    names = tuple(f"w{dice.randrange(demo.num_workers)}" for _ in range(count))
    query = SeriesQuery(
        fleet_id=demo.fleet_id,
        metric=dice.choice(METRICS),
        since_unix_s=since,
        until_unix_s=since + length_s,
        by="worker",
        names=names,
    )
    return kind, query


def shows_extremes(demo: Demo, query: SeriesQuery, found: SeriesResult) -> bool:
    """Whether smallest and largest of all points are those of all seconds that they stand for."""
    phase, _, rest = query.metric.partition("_")
    if rest not in ("bandwidth_wall", "compute_wall"):
        return True
    step_s, slot = found.step_s, int(query.names[0][1:])
    is_raw = query.until_unix_s >= demo.until_s - demo.raw_days * DAY_S
    whole_s = 1 if is_raw else base_step(step_s)
    since = floor(query.since_unix_s / step_s) * step_s
    until = min(demo.until_s, ceil(query.until_unix_s / whole_s) * whole_s)
    low, high = _true_extremes(demo, slot, PHASE_KINDS.index(phase_kind(phase)), since, until)
    points = found.series[0].points
    shown = min(each.min for each in points if each.min is not None)
    largest = max(each.max for each in points if each.max is not None)
    return isclose(shown, low, rel_tol=1e-9) and isclose(largest, high, rel_tol=1e-9)


def _true_extremes(demo: Demo, worker: int, phase: int, since: int, until: int) -> tuple[float, float]:
    since = max(since, demo.until_s - demo.days * DAY_S)
    lows, highs = [], []
    for day_s in range(since - since % DAY_S, until, DAY_S):
        shelf, slot = divmod(worker, SHELF_LINES)
        values = utilization(template_of(shelf, day_s // DAY_S), slot, phase)
        part = values[max(0, since - day_s) : until - day_s]
        lows.append(float(part.min()))
        highs.append(float(part.max()))
    return min(lows), max(highs)


def plain_sql(path: Path, num_workers: int) -> dict[str, object]:
    """The same question of one day as rows of (worker, second, bytes, peak), indexed: SQLite's own GROUP BY."""
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE points (worker INT, t INT, bytes REAL, peak REAL, PRIMARY KEY (worker, t)) WITHOUT ROWID"
    )
    for worker in range(num_workers):
        values = utilization(worker % 3, worker % SHELF_LINES, 1).tolist()
        database.executemany(
            "INSERT INTO points VALUES (?, ?, ?, 1.0)", ((worker, t, value) for t, value in enumerate(values))
        )
    database.commit()
    grouped = "SELECT worker, t / 120, sum(bytes) / sum(peak), min(bytes / peak), max(bytes / peak) FROM points"
    spent = []
    for where in ("WHERE worker = 1", ""):
        begun_s = time.perf_counter()
        database.execute(f"{grouped} {where} GROUP BY 1, 2").fetchall()
        spent.append(round(1000 * (time.perf_counter() - begun_s), 1))
    database.close()
    return {
        "GROUP BY of a day's rows, one worker ms": spent[0],
        f"GROUP BY of a day's rows, {num_workers} workers ms": spent[1],
    }
