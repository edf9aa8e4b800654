"""Request records: written once each, found again by id, by time or by slowness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import TypeAdapter
from sqlalchemy import Connection, func, or_, select, tuple_

from control.history import schema
from control.history.points import upsert
from control.types import RequestRecord

MAX_RECORDS: Final = 100_000
_record = TypeAdapter(RequestRecord)
_table = schema.request_records


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestQuery:
    """Records of one fleet that arrived in [since, until). `slowest` orders by the whole request's time."""

    fleet_id: str
    limit: int = 100
    since_unix_s: float | None = None
    until_unix_s: float | None = None
    order: Literal["recent", "slowest"] = "recent"
    rule: str | None = None
    worker_id: str | None = None
    good: bool | None = None
    moved: bool | None = None  # whether it went on at another worker


def last_seq(connection: Connection, gateway_id: str) -> int:
    """Newest record of a gateway that is written; 0 when there is none."""
    seqs = schema.gateway_seqs.c
    return connection.execute(select(seqs.last_seq).where(seqs.gateway_id == gateway_id)).scalar() or 0


def add_records(connection: Connection, rows: Sequence[tuple[str, int, RequestRecord]]) -> list[RequestRecord]:
    """Write those that are not there yet; returns them. One that waited may come after newer ones of its gateway."""
    newest = {gateway_id: last_seq(connection, gateway_id) for gateway_id in {row[0] for row in rows}}
    late = [(gateway_id, seq) for gateway_id, seq, _ in rows if seq <= newest[gateway_id]]
    there = _there(connection, late)
    unique = {row[:2]: row for row in sorted(rows, key=lambda row: row[:2])}
    fresh = [row for key, row in unique.items() if key not in there]
    newest |= {gateway_id: max(seq, newest[gateway_id]) for gateway_id, seq, _ in fresh}
    if not fresh:
        return []
    connection.execute(_table.insert(), [_values(*row) for row in fresh])
    statement = upsert(connection, schema.gateway_seqs)
    statement = statement.on_conflict_do_update(
        index_elements=["gateway_id"], set_={"last_seq": statement.excluded.last_seq}
    )
    connection.execute(statement, [{"gateway_id": name, "last_seq": seq} for name, seq in newest.items()])
    return [record for _, _, record in fresh]


def _there(connection: Connection, keys: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of these (gateway, sequence number) that are written."""
    found: set[tuple[str, int]] = set()
    for start in range(0, len(keys), 200):
        wanted = select(_table.c.gateway_id, _table.c.seq).where(
            tuple_(_table.c.gateway_id, _table.c.seq).in_(keys[start : start + 200])
        )
        found |= {(gateway_id, seq) for gateway_id, seq in connection.execute(wanted)}
    return found


def _values(gateway_id: str, seq: int, record: RequestRecord) -> dict[str, object]:
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
        "status": record.status,
        "good": record.good,
        "e2e_s": record.e2e_s,
        "ttft_s": record.ttft_s,
        "record": _record.dump_json(record),
        "num_moves": len(record.moves),
    }


def find_requests(connection: Connection, query: RequestQuery) -> list[RequestRecord]:
    c = _table.c
    wanted = select(c.record).where(c.fleet_id == query.fleet_id).limit(min(query.limit, MAX_RECORDS))
    if query.since_unix_s is not None:
        wanted = wanted.where(c.arrival_unix_s >= query.since_unix_s)
    if query.until_unix_s is not None:
        wanted = wanted.where(c.arrival_unix_s < query.until_unix_s)
    if query.rule is not None:
        wanted = wanted.where(c.rule == query.rule)
    if query.worker_id is not None:
        wanted = wanted.where(or_(c.prefill_worker == query.worker_id, c.decode_worker == query.worker_id))
    if query.good is not None:
        wanted = wanted.where(c.good.is_(query.good))
    if query.moved is not None:
        wanted = wanted.where(c.num_moves > 0 if query.moved else c.num_moves == 0)
    if query.order == "slowest":
        wanted = wanted.order_by(func.coalesce(c.e2e_s, -1.0).desc(), c.record_id.desc())
    else:
        wanted = wanted.order_by(c.arrival_unix_s.desc(), c.record_id.desc())
    return [_record.validate_json(blob) for blob in connection.execute(wanted).scalars()]


def find_request(connection: Connection, request_id: str) -> RequestRecord | None:
    """The newest record of this id."""
    c = _table.c
    wanted = select(c.record).where(c.request_id == request_id).order_by(c.record_id.desc()).limit(1)
    blob = connection.execute(wanted).scalar()
    return None if blob is None else _record.validate_json(blob)
