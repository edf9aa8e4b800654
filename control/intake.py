"""Request records on their way from the gateways into the history: each once, in bounded memory.

Decided here: which of a resent batch are new, and up to where a gateway may forget its copy: only what is durable.
A gateway that finds the intake full is cut off; it keeps its records and sends them again later.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from control.types.requests import RequestRecord

MAX_RECORDS = 20_000
#: Lives of gateways that are remembered: of an older one that comes back, the history knows what is durable.
MAX_GATEWAYS = 1024
Row = tuple[str, int, RequestRecord]


class IntakeFull(Exception):
    """No room: the history has not taken the earlier records yet."""


@dataclass(slots=True)
class Intake:
    """Rows that wait for the next tick (`take`) or for the writer (`committed`)."""

    max_records: int = MAX_RECORDS
    _received: dict[str, int] = field(default_factory=dict)  # newest sequence number per gateway, last opened last
    _waiting: list[Row] = field(default_factory=list)
    _num_unwritten: int = 0

    def open(self, gateway_id: str, durable_seq: int) -> None:
        """A gateway connected; what it sends up to `durable_seq` is old news."""
        self._received[gateway_id] = max(durable_seq, self._received.pop(gateway_id, 0))
        if len(self._received) > MAX_GATEWAYS:
            del self._received[next(iter(self._received))]

    def add(self, gateway_id: str, first_seq: int, records: list[RequestRecord]) -> list[RequestRecord]:
        """Take a batch; returns those that were not here before. Raises IntakeFull and takes none of it."""
        newest = self._received.get(gateway_id, 0)
        fresh = [(gateway_id, seq, each) for seq, each in enumerate(records, first_seq) if seq > newest]
        if len(self._waiting) + self._num_unwritten + len(fresh) > self.max_records:
            raise IntakeFull(f"{self.max_records} request records wait for the history")
        self._waiting += fresh
        if fresh:
            self._received[gateway_id] = fresh[-1][1]
        return [record for _, _, record in fresh]

    def take(self) -> list[Row]:
        """Hand over what came since the last call; it counts against the bound until it is committed."""
        rows, self._waiting = self._waiting, []
        self._num_unwritten += len(rows)
        return rows

    def committed(self, rows: list[Row]) -> dict[str, int]:
        """These rows are durable: the sequence number up to which each gateway may forget."""
        self._num_unwritten -= len(rows)
        acks: dict[str, int] = {}
        for gateway_id, seq, _ in rows:
            acks[gateway_id] = max(seq, acks.get(gateway_id, 0))
        return acks

    def restore(self, rows: list[Row]) -> None:
        """These rows were not written: the next `take` hands them over again."""
        self._num_unwritten -= len(rows)
        self._waiting = [*rows, *self._waiting]
