"""Request records: each counted once, those that are kept written once, found again by id, time, outcome or slowness.

Decided here: which columns a record is found by. `request_records_by_arrival` holds all that a search over a day reads,
so that records themselves are read only for what is shown. Not decided here: which are kept (`control.sampling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Column, Connection, Select, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from control.errors import CommandRefused
from control.history import schema
from control.history.record_seqs import read_seqs, write_seqs
from control.sampling import latency_of, places
from control.traffic_stats import CLIENT_CLOSED
from control.types.requests import LatencyKind, RequestRecord
from engine.histogram import bucket_of

MAX_RECORDS: Final = 100_000
_decoder = msgspec.json.Decoder(RequestRecord)
_table = schema.request_records
#: Kind of latency -> its column in seconds, and that of its histogram bucket.
LATENCY_COLUMNS: Final[Mapping[LatencyKind, tuple[Column[Any], Column[Any]]]] = {
    "ttft": (_table.c.ttft_s, _table.c.ttft_bucket),
    "e2e": (_table.c.e2e_s, _table.c.e2e_bucket),
    "gap": (_table.c.max_gap_s, _table.c.gap_bucket),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Records of one fleet that arrived in [since, until), whose `metric` is above `above_s` and up to `up_to_s`."""

    fleet_id: str
    since_unix_s: float | None = None
    until_unix_s: float | None = None
    metric: LatencyKind = "e2e"
    above_s: float | None = None
    up_to_s: float | None = None
    rule: str | None = None
    worker_id: str | None = None
    api_key_id: str | None = None
    good: bool | None = None
    failed: bool | None = None  # whether it was refused, or ended with an error
    moved: bool | None = None  # whether it went on at another worker
    batch: bool | None = None  # whether it was of the class batch

    @property
    def counts_all(self) -> bool:
        """Whether the histograms of all requests can answer: they know no more of a request than its rule."""
        more = (self.worker_id, self.api_key_id, self.good, self.failed, self.moved, self.batch)
        return self.above_s is None and self.up_to_s is None and all(each is None for each in more)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestQuery(RequestFilter):
    """`slowest` orders by `metric`, recent by arrival."""

    limit: int = 100
    order: Literal["recent", "slowest"] = "recent"


def checked_range(query: RequestFilter) -> tuple[float, float]:
    """Both ends of the filter's range. Raises CommandRefused when it has none."""
    since, until = query.since_unix_s, query.until_unix_s
    if since is None or until is None or not 0 <= since < until < 1e11:
        raise CommandRefused(
            f"since_unix_s is {since}, must be at least 0 and before until_unix_s ({until})",
            field="since_unix_s",
            value=since,
            bound=f"at least 0 and before {until}",
        )
    return since, until


def last_seq(connection: Connection, gateway_id: str) -> int:
    """Newest record of a gateway that is written or counted; 0 when there is none."""
    return read_seqs(connection, [gateway_id])[gateway_id].last


def add_records(connection: Connection, rows: Sequence[tuple[str, int, RequestRecord]]) -> list[RequestRecord]:
    """Write those to be kept that are not there yet; returns all that are new, to be counted. Late ones may come after
    newer ones of their gateway."""
    seqs = read_seqs(connection, (row[0] for row in rows))
    unique = {row[:2]: row for row in sorted(rows, key=lambda row: row[:2])}
    fresh = [row for row in unique.values() if not seqs[row[0]].has(row[1])]
    if not fresh:
        return []
    if kept := [_values(*row) for row in fresh if row[2].kept != "dropped"]:
        connection.execute(_table.insert(), kept)
    new = {name: each.plus(seq for gateway_id, seq, _ in fresh if gateway_id == name) for name, each in seqs.items()}
    write_seqs(connection, new)
    return [record for _, _, record in fresh]


def _values(gateway_id: str, seq: int, record: RequestRecord) -> dict[str, object]:
    times = {kind: latency_of(record, kind) for kind in LATENCY_COLUMNS}
    buckets = {f"{kind}_bucket": None if value is None else bucket_of(value) for kind, value in times.items()}
    return {
        "gateway_id": gateway_id,
        "seq": seq,
        "request_id": record.request_id,
        "fleet_id": record.fleet_id,
        "model_id": record.model_id,
        "simulated": record.simulated,
        "arrival_unix_s": record.arrival_unix_s,
        "rule": record.rule,
        "prefill_worker": record.prefill_worker,
        "decode_worker": record.decode_worker,
        "api_key_id": record.api_key_id,
        "priority": record.priority,
        "status": record.status,
        "good": record.good,
        "e2e_s": record.e2e_s,
        "ttft_s": record.ttft_s,
        "max_gap_s": record.max_gap_s,
        **buckets,
        "record": msgspec.json.encode(record),
        "num_moves": len(record.moves),
        "weight": record.weight,
        "place": places(record.request_id)[1],
    }


def conditions(query: RequestFilter) -> list[ColumnElement[bool]]:
    """What a record must be to pass the filter."""
    c, found = _table.c, [_table.c.fleet_id == query.fleet_id]
    value, bucket = LATENCY_COLUMNS[query.metric]
    if query.since_unix_s is not None:
        found.append(c.arrival_unix_s >= query.since_unix_s)
    if query.until_unix_s is not None:
        found.append(c.arrival_unix_s < query.until_unix_s)
    if query.above_s is not None:
        found += [bucket.is_not(None), value > query.above_s]
    if query.up_to_s is not None:
        found += [bucket.is_not(None), value <= query.up_to_s]
    if query.rule is not None:
        found.append(c.rule == query.rule)
    if query.worker_id is not None:
        found.append(or_(c.prefill_worker == query.worker_id, c.decode_worker == query.worker_id))
    if query.api_key_id is not None:
        found.append(c.api_key_id == query.api_key_id)
    if query.good is not None:
        found.append(c.good.is_(query.good))
    if query.failed is not None:
        ended_well = (200, CLIENT_CLOSED)
        found.append(c.status.not_in(ended_well) if query.failed else c.status.in_(ended_well))
    if query.moved is not None:
        found.append(c.num_moves > 0 if query.moved else c.num_moves == 0)
    if query.batch is not None:
        found.append(c.priority > 0 if query.batch else c.priority <= 0)
    return found


def find_requests(connection: Connection, query: RequestQuery) -> list[RequestRecord]:
    """Newest or slowest first."""
    c = _table.c
    ids = select(c.record_id).where(*conditions(query)).limit(min(query.limit, MAX_RECORDS))
    if query.order == "slowest":
        order = (func.coalesce(LATENCY_COLUMNS[query.metric][0], -1.0).desc(), c.record_id.desc())
    else:
        order = (c.arrival_unix_s.desc(), c.record_id.desc())
    found = connection.execute(select(c.record).where(c.record_id.in_(ids.order_by(*order))).order_by(*order))
    return [_decoder.decode(blob) for blob in found.scalars()]


def some_of(connection: Connection, ids: Select[tuple[int]], limit: int) -> list[RequestRecord]:
    """At most `limit` of the records with these ids, by chance: always the same, and none more likely than another."""
    c = _table.c
    found = connection.execute(select(c.record).where(c.record_id.in_(ids.order_by(c.place).limit(limit))))
    return [_decoder.decode(blob) for blob in found.scalars()]


def find_request(connection: Connection, request_id: str) -> RequestRecord | None:
    """The newest record of this id."""
    c = _table.c
    wanted = select(c.record).where(c.request_id == request_id).order_by(c.record_id.desc()).limit(1)
    blob = connection.execute(wanted).scalar()
    return None if blob is None else _decoder.decode(blob)
