"""Which records of each gateway are written or counted: number by number, so that each counts once and for ever.

A gateway numbers its records from 1. They come in order, but for those that waited in a spool; so what is known of a
gateway is the newest number, and the ranges below it that have not come. It does not depend on which records are kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import Connection, select

from control.history import schema
from control.history.points import upsert

#: Ranges that are remembered; each is a time in which the history was away. Of older ones nothing comes any more.
MAX_MISSING: Final = 1_000
Ranges = tuple[tuple[int, int], ...]
_decoder = msgspec.json.Decoder(Ranges)


@dataclass(frozen=True, slots=True)
class Seqs:
    """Of one gateway: all numbers up to `last` have come, but those in `missing`, [first, last] each, ascending."""

    last: int = 0
    missing: Ranges = ()

    def has(self, seq: int) -> bool:
        if seq > self.last:
            return False
        at = bisect_right(self.missing, (seq, self.last)) - 1
        return at < 0 or not self.missing[at][0] <= seq <= self.missing[at][1]

    def plus(self, seqs: Iterable[int]) -> Seqs:
        """With these, each of which it does not have."""
        last, missing = self.last, list(self.missing)
        for seq in sorted(seqs):
            if seq > last:
                missing += [(last + 1, seq - 1)] if seq > last + 1 else []
                last = seq
            else:
                at = bisect_right(missing, (seq, last)) - 1
                first, end = missing[at]
                missing[at : at + 1] = [part for part in ((first, seq - 1), (seq + 1, end)) if part[0] <= part[1]]
        return Seqs(last, tuple(missing[-MAX_MISSING:]))


def read_seqs(connection: Connection, gateway_ids: Iterable[str]) -> dict[str, Seqs]:
    """Of each of these gateways; one that never sent anything has come up to 0."""
    c = schema.gateway_seqs.c
    names = set(gateway_ids)
    rows = connection.execute(select(c.gateway_id, c.last_seq, c.missing).where(c.gateway_id.in_(names)))
    found = {name: Seqs(last, _decoder.decode(missing)) for name, last, missing in rows}
    return {name: found.get(name, Seqs()) for name in names}


def write_seqs(connection: Connection, seqs: Mapping[str, Seqs]) -> None:
    statement = upsert(connection, schema.gateway_seqs)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["gateway_id"], set_={"last_seq": new.last_seq, "missing": new.missing}
    )
    rows = [
        {"gateway_id": name, "last_seq": each.last, "missing": msgspec.json.encode(each.missing).decode()}
        for name, each in seqs.items()
    ]
    connection.execute(statement, rows)
