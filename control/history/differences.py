"""What is different about some requests, from their records: which are asked about, and which are the rest.

Decided here: asked about are those of a cell of the heatmap, else those that were not good, else the slowest; the rest
are all others of the range. Of each side at most MAX_A_SIDE records are looked at, picked by chance, each with its
weight. Not decided here: what is a difference (`control.differences`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Final

from sqlalchemy import Connection, func, select

from control.differences import differences
from control.heatmap import KIND_WORDS
from control.history import schema
from control.history.requests import LATENCY_COLUMNS, RequestFilter, checked_range, conditions, some_of
from control.stories import time_words
from control.types.latencies import Explanation
from engine.histogram import GAMMA, MIN_S

MAX_A_SIDE: Final = 4_000
SLOWEST_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainQuery:
    """`among`: all requests that are looked at. Asked about are those of them that arrived in [from, to) with a latency
    in (above_s, up_to_s]; without any of these, those that were not good, or the slowest."""

    among: RequestFilter
    from_unix_s: float | None = None
    to_unix_s: float | None = None
    above_s: float | None = None
    up_to_s: float | None = None


def read_explanation(connection: Connection, query: ExplainQuery) -> Explanation:
    """Raises CommandRefused on a range that is none."""
    among = query.among
    since, until = checked_range(among)
    asked, words = _asked(connection, query)
    c = schema.request_records.c
    ids = select(c.record_id).where(*conditions(asked))
    others = select(c.record_id).where(*conditions(among), c.record_id.not_in(ids))
    mine, rest = (some_of(connection, each, MAX_A_SIDE) for each in (ids, others))
    num, weight = _total(connection, asked)
    num_all, weight_all = _total(connection, among)
    return Explanation(
        fleet_id=among.fleet_id,
        asked=words,
        since_unix_s=since,
        until_unix_s=until,
        num_requests=weight,
        num_rest=weight_all - weight,
        num_records=len(mine),
        num_rest_records=len(rest),
        differences=differences(mine, rest),
        note=_note(num, len(mine), num_all - num, len(rest)),
    )


def _asked(connection: Connection, query: ExplainQuery) -> tuple[RequestFilter, str]:
    """Those that are asked about, and which they are in words."""
    among, kind = query.among, KIND_WORDS[query.among.metric]
    start = max(among.since_unix_s or 0.0, query.from_unix_s or 0.0)
    end = min(among.until_unix_s or inf, query.to_unix_s or inf)
    cell = replace(among, since_unix_s=start, until_unix_s=end, above_s=query.above_s, up_to_s=query.up_to_s)
    if query.above_s is not None or query.up_to_s is not None:
        parts = [f"above {time_words(query.above_s)}"] if query.above_s else []
        parts += [f"up to {time_words(query.up_to_s)}"] if query.up_to_s is not None else []
        return cell, f"{kind} {' and '.join(parts) or 'of any length'}"
    if query.from_unix_s is not None or query.to_unix_s is not None:
        return cell, "all that arrived in this part of the range"
    bad = replace(among, good=False)
    if among.good is None and _total(connection, bad)[0]:
        return bad, "not good: past a bound of the SLO, refused or failed"
    return replace(among, above_s=_slow_from(connection, among)), f"the slowest {SLOWEST_SHARE:.0%}: {kind}"


def _slow_from(connection: Connection, among: RequestFilter) -> float:
    """Which the slowest are above: a whole histogram bucket is slow or not, and by the weights of the records it is at
    least their share of the requests. None are when no request has this time."""
    _, bucket = LATENCY_COLUMNS[among.metric]
    weight = func.sum(schema.request_records.c.weight)
    wanted = select(bucket, weight).where(*conditions(among), bucket.is_not(None)).group_by(bucket)
    weights = connection.execute(wanted.order_by(bucket.desc())).all()
    left: float = SLOWEST_SHARE * sum(row[1] for row in weights)
    for number, held in weights:
        left -= held
        if left <= 0:
            return MIN_S * GAMMA ** (number - 1) if number else 0.0
    return inf


def _total(connection: Connection, query: RequestFilter) -> tuple[int, float]:
    """Records that are kept, and the requests that they stand for."""
    wanted = select(func.count(), func.sum(schema.request_records.c.weight)).where(*conditions(query))
    num, weight = connection.execute(wanted).one()
    return num, weight or 0.0


def _note(num: int, num_looked: int, num_rest: int, num_rest_looked: int) -> str:
    if num_looked < num or num_rest_looked < num_rest:
        return (
            f"{num_looked:,} of {num:,} records and {num_rest_looked:,} of the {num_rest:,} others were looked at, "
            "picked by chance and weighted by the share that is kept"
        )
    return "by all records that are kept, each weighted by the share that is kept"
