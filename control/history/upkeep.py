"""What becomes of a tick's rows: folded by shelf each minute, sealed and rolled up when their block is over, forgotten.

    ticks --fold--> parts --roll--> chunks of 1 s, 10 s, 60 s, 600 s, 3600 s --prune--> nothing

Decided here: when, and how much at once: one piece of work is one shelf, in a transaction of its own, and a call takes
up another one only within its time, so that no command waits long. A block that something late falls into goes through
`roll` again, whole. A crash between any two leaves every row in exactly one place.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import floor
from typing import Final

import numpy as np
from sqlalchemy import Connection, func, select, update

from control.history import schema
from control.history.alerts import prune_alerts
from control.history.chunks import (
    PHASE_KINDS,
    STATE,
    Frames,
    Kind,
    chunk_start,
    drop_parts,
    put_chunk,
    put_parts,
    read_chunk,
    read_parts,
)
from control.history.codec import Ints
from control.history.frames import EMPTY, Frame, concat, merge, roll, with_bands
from control.history.marks import read_marks
from control.history.postgresql import WRITE_LIMIT_S
from control.history.retention import Retention, prune_events, prune_intervals, prune_points, prune_records
from control.history.tail import Tail
from control.history.transactions import Transactions

#: A shelf is folded when so many ticks wait for it, and all of them at once, up to MAX_TICKS.
FOLD_TICKS: Final = 60
MAX_TICKS: Final = 120
#: A block is rolled up so long after its end: most that falls into it has come by then.
SETTLE_S: Final = 20
#: A call of `Upkeep.work` begins no more work after this.
UPKEEP_S: Final = 0.05
FORGET_EVERY_S: Final = 10.0
_COARSE: Final = schema.STEPS[1:]


class Upkeep:
    """Takes up what is due, piece by piece, each in a transaction of its own."""

    def __init__(self, transactions: Transactions, tail: Tail, retention: Retention) -> None:
        self._transactions = transactions
        self._tail = tail
        self._retention = retention
        self._forget_unix_s: float | None = None  # not before then

    def work(self, now_unix_s: float, limit_s: float = UPKEEP_S) -> int:
        """Bring what ticks wrote to where it is kept, and delete what is too old: call it after each tick.

        Each piece of work is a transaction of its own; another one is begun only within `limit_s`, so that nobody
        waits for the writer for long. Returns how many there were: 0 when nothing waits.
        """
        begun_s, num_pieces = time.monotonic(), 0
        while self._fold() or self._roll(now_unix_s) or self._forget(now_unix_s):
            num_pieces += 1
            if time.monotonic() - begun_s > limit_s:
                break
        return num_pieces

    def settle(self, now_unix_s: float) -> None:
        """All of `work` at once, also what would wait for more: before a history is measured or looked at."""
        while self._fold(num_ticks=1) or self._roll(now_unix_s) or self._forget(now_unix_s):
            pass

    def _fold(self, num_ticks: int = FOLD_TICKS) -> bool:
        """Fold one shelf that is due."""
        with self._transactions.reading() as connection:
            due = shelf_to_fold(connection, self._tail.newest(connection), num_ticks)
        if due is None:
            return False
        with self._transactions.writing("fold", WRITE_LIMIT_S) as connection:
            everywhere = fold(connection, self._tail, due, read_marks(connection, "pruned-"))
        self._tail.forget(everywhere)
        return True

    def _roll(self, now_unix_s: float) -> bool:
        """Roll up one block that is due."""
        with self._transactions.reading() as connection:
            due = block_to_roll(connection, floor(now_unix_s))
        if due is None:
            return False
        with self._transactions.writing("roll", WRITE_LIMIT_S) as connection:
            roll_block(connection, *due, read_marks(connection, "pruned-"))
        return True

    def _forget(self, now_unix_s: float) -> bool:
        """Now and then delete one batch of what is too old. True when there is more of it."""
        if self._forget_unix_s is None:
            self._forget_unix_s = now_unix_s + FORGET_EVERY_S
        if now_unix_s < self._forget_unix_s:
            return False
        more = self.prune(now_unix_s)
        self._forget_unix_s = 0.0 if more else now_unix_s + FORGET_EVERY_S
        return more

    def prune(self, now_unix_s: float, retention: Retention | None = None) -> bool:
        """Delete one batch of each kind that is too old, each in its own transaction; True when there is more."""
        keep = retention or self._retention
        more = False
        for step_s in schema.STEPS:
            with self._transactions.writing("prune", WRITE_LIMIT_S) as connection:
                more |= prune_points(connection, step_s, keep, now_unix_s)
        with self._transactions.writing("prune_records", WRITE_LIMIT_S) as connection:
            more |= prune_records(connection, keep.requests_s, keep.max_records, now_unix_s)
        with self._transactions.writing("prune_intervals", WRITE_LIMIT_S) as connection:
            prune_intervals(connection, keep.rollup_s, now_unix_s)
            prune_events(connection, keep.rollup_s, now_unix_s)
            prune_alerts(connection, keep.rollup_s, now_unix_s)
        return more


# --- folding ---------------------------------------------------------------------------------------------------------


def shelf_to_fold(connection: Connection, newest: int, num_ticks: int = FOLD_TICKS) -> int | None:
    """The shelf that waits longest; None when none has waited so long."""
    c = schema.shelves.c
    due = select(c.shelf_id).where(c.folded <= newest - num_ticks).order_by(c.folded, c.shelf_id).limit(1)
    return connection.execute(due).scalar()


def _taken(connection: Connection, shelf_id: int) -> int:
    """Nobody else folds or rolls up this shelf until the transaction ends. Up to which tick it is folded now: the
    planes of several fleets share a history, and one of them may have folded it since somebody saw that it is due."""
    c = schema.shelves.c
    return int(
        connection.execute(select(c.folded).where(c.shelf_id == shelf_id).with_for_update(key_share=True)).scalar_one()
    )


def fold(connection: Connection, tail: Tail, shelf_id: int, pruned: Mapping[int, int]) -> int:
    """Take one shelf's rows out of the next ticks; returns up to which tick every shelf is folded now."""
    folded = _taken(connection, shelf_id)
    ticks = tail.read(connection, folded, MAX_TICKS)
    until = ticks[-1][0] if ticks else folded
    lines = schema.lines.c
    line_ids = np.array(
        connection.execute(select(lines.line_id).where(lines.shelf_id == shelf_id)).scalars().all(), np.int64
    )
    parts: list[tuple[Kind, int, Frame]] = []
    for kind in {kind for _, frames in ticks for kind in frames}:
        frame = merge(concat([_of_lines(frames[kind], line_ids) for _, frames in ticks if kind in frames]))
        is_kept = frame.t >= pruned.get(1, 0)
        if not is_kept.all():
            _add_to_coarse(connection, shelf_id, kind, frame.where(~is_kept), pruned)
        parts += [(kind, block, rows) for block, rows in _by_block(frame.where(is_kept))]
    put_parts(connection, shelf_id, until, parts)
    shelves = schema.shelves
    connection.execute(update(shelves).where(shelves.c.shelf_id == shelf_id).values(folded=until))
    everywhere = int(connection.execute(select(func.min(shelves.c.folded))).scalar() or 0)
    tail.drop(connection, everywhere)
    return everywhere


def _of_lines(frame: Frame, line_ids: Ints) -> Frame:
    return frame.where(np.isin(frame.line_ids, line_ids))


def _by_block(frame: Frame) -> list[tuple[int, Frame]]:
    blocks = frame.t - frame.t % schema.BLOCK_S
    return [(int(block), frame.where(blocks == block)) for block in np.unique(blocks)]


def _add_to_coarse(connection: Connection, shelf_id: int, kind: Kind, frame: Frame, pruned: Mapping[int, int]) -> None:
    """What falls before the seconds that are kept cannot be rolled up from them: it is added to coarser steps."""
    for step_s in _COARSE:
        rolled = roll(frame, step_s)
        rolled = rolled.where(rolled.t >= pruned.get(step_s, 0))
        starts = rolled.t - rolled.t % schema.CHUNK_S[step_s]
        for start in np.unique(starts):
            there = read_chunk(connection, shelf_id, kind, step_s, int(start))
            both = roll(concat([there, rolled.where(starts == start)]), step_s)
            put_chunk(connection, shelf_id, kind, step_s, int(start), both)


# --- rolling up ------------------------------------------------------------------------------------------------------


def block_to_roll(connection: Connection, now_s: int) -> tuple[int, int] | None:
    """Shelf and start of the oldest block that is over and lies in parts."""
    c = schema.parts.c
    over = now_s - SETTLE_S - schema.BLOCK_S
    found = connection.execute(select(c.shelf_id, c.t).where(c.t <= over).order_by(c.t, c.shelf_id).limit(1)).first()
    return None if found is None else (found[0], found[1])


def roll_block(connection: Connection, shelf_id: int, block: int, pruned: Mapping[int, int]) -> None:
    """Seal the seconds of one block of one shelf, and bring all its coarser buckets up to date."""
    _taken(connection, shelf_id)
    seconds = _seconds(connection, shelf_id, block)
    for kind, frame in seconds.items():
        put_chunk(connection, shelf_id, kind, 1, block, frame)
        if kind in PHASE_KINDS:
            frame = with_bands(frame, seconds.get(STATE, EMPTY))
        for step_s in _COARSE:
            frame = roll(frame, step_s)
            if step_s > schema.BLOCK_S:
                frame = _whole_bucket(connection, shelf_id, kind, block, step_s)
            if block - block % step_s >= pruned.get(step_s, 0):
                _replace(connection, shelf_id, kind, step_s, block, frame)
    drop_parts(connection, shelf_id, block)


def _seconds(connection: Connection, shelf_id: int, block: int) -> Frames:
    """All that is known of a block, of the kinds that have something new. Phases and state are rolled up together."""
    parts = read_parts(connection, shelf_id, block)
    together = {*PHASE_KINDS, STATE}
    kinds = parts.keys() | (together if together & parts.keys() else set())
    sealed = {kind: read_chunk(connection, shelf_id, kind, 1, block) for kind in sorted(kinds)}
    found = {kind: merge(concat([frame, *parts.get(kind, ())])) for kind, frame in sealed.items()}
    return {kind: frame for kind, frame in found.items() if len(frame)}


def _whole_bucket(connection: Connection, shelf_id: int, kind: Kind, block: int, step_s: int) -> Frame:
    """A bucket of several blocks, from the step below."""
    finer_s = schema.STEPS[schema.STEPS.index(step_s) - 1]
    start = block - block % step_s
    frame = read_chunk(connection, shelf_id, kind, finer_s, chunk_start(finer_s, start))
    return roll(frame.where((frame.t >= start) & (frame.t < start + step_s)), step_s)


def _replace(connection: Connection, shelf_id: int, kind: Kind, step_s: int, block: int, frame: Frame) -> None:
    """Set this block's buckets of one step; the others of their chunk stay."""
    start = chunk_start(step_s, block)
    first, end = block - block % step_s, block + max(step_s - block % step_s, schema.BLOCK_S)
    there = read_chunk(connection, shelf_id, kind, step_s, start)
    others = there.where((there.t < first) | (there.t >= end))
    put_chunk(connection, shelf_id, kind, step_s, start, merge(concat([others, frame])))
