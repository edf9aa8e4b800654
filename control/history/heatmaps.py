"""Latency heatmaps from the history: of every request by histograms, or of some by the weights of their records.

Decided here: which of the two. The histograms count every request, by its rule; whatever else is asked for, only
records know, and a record that is kept stands for `weight` requests. Never are records counted as if they were all.
"""

from __future__ import annotations

from math import ceil
from typing import Final

import numpy as np
from sqlalchemy import Connection, Integer, cast, func, select

from control.heatmap import BIN_BUCKETS, KIND_WORDS, binned, bound_of, cells_of, column_step
from control.history import schema
from control.history.requests import LATENCY_COLUMNS, RequestFilter, checked_range, conditions
from control.history.series import SeriesQuery, read_grid
from control.history.tail import Tail
from control.types.latencies import Heatmap
from control.types.requests import LatencyKind, RecordCounts, Slo

_METRICS: Final = {"ttft": "ttft_p99_s", "e2e": "e2e_p99_s", "gap": "max_gap_p99_s"}
KEPT: Final = ("slow", "failed", "moved", "share")
DROPPED: Final = ("served", "refused", "cancelled")


def read_heatmap(connection: Connection, tail: Tail, query: RequestFilter, slo: Slo) -> Heatmap:
    """`query` needs both ends of its range. Raises CommandRefused on a range that is none."""
    since, until = checked_range(query)
    asked_s = column_step(until - since)
    grid = read_grid(connection, _series(query, _METRICS[query.metric], asked_s), tail)
    step_s, start, simulated = grid.step_s, grid.begin, grid.simulated
    is_estimated = not query.counts_all
    if is_estimated:
        counts, simulated = _estimated(connection, query, start, step_s)
    else:
        counts = binned(grid.buckets.latencies.by_cell())  # one group: a cell is a column
    bound_s, bound_text = bound_of(query.metric, slo)
    cells = cells_of(counts, bound_s)
    return Heatmap(
        fleet_id=query.fleet_id,
        metric=query.metric,
        since_unix_s=start,
        until_unix_s=start + ceil((until - start) / step_s) * step_s,
        step_s=step_s,
        edges_s=cells.edges_s,
        columns=cells.columns,
        bins=cells.bins,
        counts=cells.counts,
        is_estimated=is_estimated,
        bound_s=bound_s,
        bound_text=bound_text,
        simulated=simulated,
        requests=read_counts(connection, tail, query),
        note=_note(query.metric, is_estimated),
    )


def _series(query: RequestFilter, metric: str, step_s: int | None) -> SeriesQuery:
    since, until = checked_range(query)
    return SeriesQuery(
        fleet_id=query.fleet_id,
        metric=metric,
        since_unix_s=since,
        until_unix_s=until,
        step_s=step_s,
        by="fleet" if query.rule is None else "rule",
        names=() if query.rule is None else (query.rule,),
    )


def _estimated(
    connection: Connection, query: RequestFilter, start: int, step_s: int
) -> tuple[dict[tuple[int, int], float], bool]:
    """Sums of weights by (column, bin), and whether anything in them is simulated."""
    c = schema.request_records.c
    _, bucket = LATENCY_COLUMNS[query.metric]
    column = cast(func.floor((c.arrival_unix_s - start) / step_s), Integer).label("at")
    number = (bucket - bucket % BIN_BUCKETS).label("bin")
    simulated = func.max(cast(c.simulated, Integer))
    wanted = select(column, number, func.sum(c.weight), simulated).where(*conditions(query), bucket.is_not(None))
    rows = connection.execute(wanted.group_by(column, number)).all()
    return {(at, low // BIN_BUCKETS): weight for at, low, weight, _ in rows}, any(row[3] for row in rows)


def read_counts(connection: Connection, tail: Tail, query: RequestFilter) -> RecordCounts:
    """All requests of the filter's range and rule, by what became of their records."""
    sums = read_grid(connection, _series(query, "route_rps", None), tail).buckets.traffic

    def total(column: str) -> int:
        return round(float(np.nansum(sums(column))))

    kept = {name: total(f"kept_{name}") for name in KEPT}
    dropped = {name: total(f"dropped_{name}") for name in DROPPED}
    return RecordCounts(
        num_requests=sum(kept.values()) + sum(dropped.values()),
        kept={name: num for name, num in kept.items() if num},
        dropped={name: num for name, num in dropped.items() if num},
    )


def _note(kind: LatencyKind, is_estimated: bool) -> str:
    words = KIND_WORDS[kind]
    if is_estimated:
        return f"{words}; estimated: each record that is kept stands for 1 / the share of its like that was kept"
    return f"{words}; every request is counted, by arrival: the last columns fill in as requests end"
