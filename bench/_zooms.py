"""Random zooms into a generated history (simulated): how long each takes, and whether it shows what is true."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Final

from _demo_truth import BANDS, agrees
from control.history.demo import Demo, begin, fill, shelves
from control.history.demo_days import DAY_S, utilization
from control.history.schema import SHELF_LINES
from control.history.series import MAX_POINTS
from control.history.store import History, SeriesQuery

UNTIL: Final = 20_800 * DAY_S
_WORKERS: Final = tuple(name for name in BANDS if name not in ("num_workers", "in_flight"))
_REQUESTS: Final = ("offered_rps", "attainment", "ttft_p99_s", "itl_p50_s", "max_gap_p99_s", "e2e_p99_s")
#: What is zoomed into: words, by, how many lines (0: all), metrics.
ZOOMS: Final[Sequence[tuple[str, str, int, Sequence[str]]]] = (
    ("of one worker", "worker", 1, _WORKERS),
    ("of eight workers", "worker", 8, _WORKERS),
    ("of all workers", "worker", 0, _WORKERS),
    ("of both roles", "role", 0, (*_WORKERS, "num_workers", "handoff_p99_s", "queue_p99_s")),
    ("of the fleet", "fleet", 0, (*_WORKERS, "in_flight", "goodput_rps", "handoff_p50_s")),
    ("of requests, fleet", "fleet", 0, _REQUESTS),
    ("of requests, by rule", "rule", 0, _REQUESTS),
)


def measure_zooms(url: str, num_workers: int, days: int, num_zooms: int) -> dict[str, object]:
    """Fill an empty database, zoom, compare. Times in ms, without the comparing."""
    demo = Demo(fleet_id="zooms", until_s=UNTIL, num_workers=num_workers, days=days)
    history, begun_s, num_values = History.open(url), time.perf_counter(), 0
    with history.filling() as connection:
        begin(connection, demo)
    for shelf in shelves(demo):
        with history.filling() as connection:
            num_values += fill(connection, demo, shelf)
    result: dict[str, object] = {"zoomed workers": num_workers, "days": days, "stored values": num_values}
    result["fill s"] = round(time.perf_counter() - begun_s, 1)
    result["bytes a stored value"] = round(history.used_bytes() / num_values, 2)
    result["MB of points"] = round(history.used_bytes() / 1e6)
    result |= _zooms(history, demo, num_zooms)
    history.close()
    return result


def _zooms(history: History, demo: Demo, num_zooms: int) -> dict[str, object]:
    dice, spent, wrong, most = random.Random(1), dict[str, list[float]](), list[SeriesQuery](), 0
    for _ in range(num_zooms):
        kind, query = _zoom(demo, dice)
        begun_s = time.perf_counter()
        found = history.series(query)
        spent.setdefault(kind, []).append(time.perf_counter() - begun_s)
        most = max([most, *(len(line.points) for line in found.series)])
        if not found.series or not agrees(demo, query, found):
            wrong.append(query)
    spent["of any kind"] = [each for times in spent.values() for each in times]
    result: dict[str, object] = {"zooms": num_zooms, "most points a line": most, "zooms that are wrong": len(wrong)}
    if wrong:
        result["the first that is wrong"] = str(wrong[0])
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
    kind, by, count, metrics = dice.choice(ZOOMS)
    query = SeriesQuery(
        fleet_id=demo.fleet_id,
        metric=dice.choice(metrics),
        since_unix_s=since,
        until_unix_s=since + length_s,
        by=by,
        names=tuple(f"w{dice.randrange(demo.num_workers)}" for _ in range(count)),
    )
    return kind, query


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
