"""What becomes of the sequences on a worker that leaves decode, or that was lost: counted for the gateway's beats.

Decided here: which sequences belong to one departure, when it is over, and for how long it is told. Not here: who goes
and where to (`control.gateway.mover`), and what the plane makes of it (`control.departures`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from control.types.commands import Departure, DepartureKind
from control.types.requests import RequestMove
from control.types.workers import LossCause

#: Losses of one worker that follow each other within this time are one loss.
SAME_LOSS_S: Final = 10.0
#: A sequence whose next token has not come by then is not waited for: its stall is told by its record.
LAST_TOKEN_S: Final = 1.0
#: A departure that is over is told this much longer.
TOLD_S: Final = 600.0


class Decoding(Protocol):
    """A sequence that decodes on the worker that is left."""

    @property
    def wire_id(self) -> str: ...


@dataclass(slots=True)
class _Leaving:
    """One worker's departure, as this gateway sees it."""

    kind: DepartureKind
    since_unix_s: float
    changed_s: float
    seen: set[str] = field(default_factory=set)  # all that decoded there
    there: set[str] = field(default_factory=set)  # of them, those that decode there still
    num_by_kind: Counter[str] = field(default_factory=Counter)
    to_workers: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    num_given_up: int = 0
    stall_s: float | None = None
    cause: LossCause | None = None
    is_closed: bool = False  # it serves decode again: the next departure is another one

    def is_over(self, now_s: float) -> bool:
        all_resumed = self.to_workers.total() >= self.num_by_kind.total()
        return not self.there and (all_resumed or now_s - self.changed_s >= LAST_TOKEN_S)


class Departures:
    """All departures of the last minutes. `has_news`: a beat should not wait for its turn."""

    def __init__(self) -> None:
        self.has_news = asyncio.Event()
        self._found: dict[tuple[str, DepartureKind], _Leaving] = {}

    def there(self, worker_id: str, decoding: Iterable[Decoding]) -> None:
        """These decode now on a worker that leaves decode."""
        found = self._found.get((worker_id, "leaves"))
        ids = {each.wire_id for each in decoding}
        if found is None or found.is_closed:
            if not ids:
                return
            found = self._begin(worker_id, "leaves")
        found.there = ids
        found.seen |= ids

    def stays(self, worker_id: str) -> None:
        """It does not leave decode, or not any more."""
        found = self._found.get((worker_id, "leaves"))
        if found is not None and not found.is_closed:
            found.is_closed = True
            found.there.clear()
            self.has_news.set()

    def left(self, wire_id: str, move: RequestMove) -> None:
        """One sequence has left this worker; its next token is to come."""
        now_s = time.monotonic()
        found = self._found.get((move.from_worker, _kind(move)))
        is_another = found is not None and found.kind == "lost" and now_s - found.changed_s > SAME_LOSS_S
        if found is None or is_another:
            found = self._begin(move.from_worker, _kind(move))
        found.changed_s = now_s
        found.cause = found.cause or move.cause
        found.seen.add(wire_id)
        found.there.discard(wire_id)
        found.num_by_kind[move.kind] += 1
        found.num_bytes += move.num_bytes

    def resumed(self, move: RequestMove, rest_bytes: int) -> None:
        """Its next token has come, and so had the last `rest_bytes` of its KV."""
        now_s = time.monotonic()
        found = self._found.get((move.from_worker, _kind(move)))
        if found is None:
            return
        found.changed_s = now_s
        found.to_workers[move.to_worker] += 1
        found.num_bytes += rest_bytes
        if move.stall_s is not None:
            found.stall_s = max(move.stall_s, found.stall_s or 0.0)
        if found.is_over(now_s):
            self.has_news.set()

    def given_up(self, worker_id: str) -> None:
        """A move from there came to nothing."""
        found = self._found.get((worker_id, "leaves"))
        if found is not None:
            found.num_given_up += 1

    def told(self) -> list[Departure]:
        """For the beat."""
        now_s = time.monotonic()
        for key in [key for key, each in self._found.items() if now_s - each.changed_s > TOLD_S and not each.there]:
            del self._found[key]
        return [
            Departure(
                worker_id=worker_id,
                kind=kind,
                since_unix_s=each.since_unix_s,
                num_sequences=len(each.seen),
                num_moved=each.num_by_kind["migration"],
                num_recomputed=each.num_by_kind["recompute"],
                num_continued=each.num_by_kind["failover"],
                num_left=len(each.there),
                num_given_up=each.num_given_up,
                num_bytes=each.num_bytes,
                stall_s=each.stall_s,
                to_workers=dict(each.to_workers),
                is_over=each.is_over(now_s),
                cause=each.cause,
            )
            for (worker_id, kind), each in self._found.items()
        ]

    def _begin(self, worker_id: str, kind: DepartureKind) -> _Leaving:
        self.has_news.set()
        begun = self._found[worker_id, kind] = _Leaving(kind, time.time(), time.monotonic())
        return begun


def _kind(move: RequestMove) -> DepartureKind:
    return "lost" if move.kind == "failover" else "leaves"
