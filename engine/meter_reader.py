"""Reading a meter page: one consistent copy, turned into a `MeterReading`. Never writes, never waits for the writer."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from engine import meter_page as page
from engine.errors import MeterError
from engine.histogram import NUM_BUCKETS
from engine.quanta import SECONDS, on_grid
from engine.readings import LATENCY_KINDS, MeterReading, PhaseCounters, StepRecord
from engine.types import PHASES, ROLES, Load

if TYPE_CHECKING:
    from engine.meter import Meter

_READ_ATTEMPTS: Final = 2000


class MeterReader:
    """Reads one page, from a file or from a meter in this process. Follows a file that a new epoch has replaced."""

    def __init__(self, source: Path | Meter) -> None:
        """Raises MeterError when the file is absent or not a meter page."""
        self._path: Path | None
        self._buffer: mmap.mmap | bytearray
        self._inode = -1
        if isinstance(source, Path):
            self._path, self._clock = source, page.Clock()
        else:
            self._path, self._clock, self._buffer = source.path, source.clock, source.buffer
        if self._path is not None:
            self._open()

    def _open(self) -> None:
        assert self._path is not None
        try:
            with open(self._path, "rb") as file:
                self._inode = os.fstat(file.fileno()).st_ino
                self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise MeterError(f"meter page {self._path} cannot be read: {error}") from error
        if len(self._buffer) < page.RING_AT or self._buffer[:8] != page.MAGIC:
            raise MeterError(f"{self._path} is not a meter page")
        _, layout, ring_records, _, _, _ = page.FIXED.unpack_from(self._buffer, 0)
        if layout != page.LAYOUT or len(self._buffer) != page.page_bytes(ring_records):
            raise MeterError(f"meter page {self._path} has layout {layout}; this version reads {page.LAYOUT}")

    def _is_replaced(self) -> bool:
        """Whether another epoch put a new page under the same name."""
        if self._path is None:
            return False
        try:
            return os.stat(self._path).st_ino != self._inode
        except OSError:
            return False  # unlinked: the mapping still holds the last values

    def _has_unread(self, cursor: int) -> bool:
        """Whether a reader who has followed this page so far has not seen its last steps yet."""
        _, _, _, epoch, _, _ = page.FIXED.unpack_from(self._buffer, 0)
        (num_records,) = page.I64.unpack_from(self._buffer, page.NUM_RECORDS)
        follows = cursor >> page.CURSOR_SHIFT == epoch & page.EPOCH_MASK
        return bool(follows and page.cursor_records(cursor) < num_records)

    def read(self, cursor: int = 0) -> MeterReading:
        """All of the page now, with the step records since `cursor` (0: as many as the ring holds).

        A page that was replaced is read to its end first: what a worker did right before it died is not lost.
        """
        if self._is_replaced() and not self._has_unread(cursor):
            self.close()
            self._open()
        copy = self._copy_consistent(cursor)
        return _to_reading(copy, self._clock, in_process=self._path is None)

    def _copy_consistent(self, cursor: int) -> _PageCopy:
        buffer = self._buffer
        for attempt in range(_READ_ATTEMPTS):
            (before,) = page.I64.unpack_from(buffer, page.SEQ)
            if before % 2 == 0:
                copy = _copy_page(buffer, cursor)
                if page.I64.unpack_from(buffer, page.SEQ)[0] == before:
                    return copy
            if attempt % 50 == 49:
                time.sleep(0)  # let a writer thread of this process go on
        # Only a writer that died (or was stopped) inside a change keeps the number odd: its page is read as it lies.
        return _copy_page(buffer, cursor)

    def close(self) -> None:
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()


@dataclass(frozen=True, slots=True)
class _PageCopy:
    head: bytes
    histograms: bytes
    records: bytes
    num_lost: int
    num_records: int


def _copy_page(buffer: mmap.mmap | bytearray, cursor: int) -> _PageCopy:
    """Raw copy of what one reading needs. May be torn; the caller checks the sequence number."""
    head = bytes(buffer[: page.HISTOGRAMS_AT])
    (num_records,) = page.I64.unpack_from(head, page.NUM_RECORDS)
    _, _, ring_records, epoch, _, _ = page.FIXED.unpack_from(head, 0)
    seen = page.cursor_records(cursor)
    if cursor >> page.CURSOR_SHIFT != epoch & page.EPOCH_MASK or seen > num_records:
        seen = 0
    first = max(seen, num_records - ring_records)
    begin, end = first % ring_records, num_records % ring_records
    ring = page.RING_AT
    if first == num_records:
        records = b""
    elif begin < end:
        records = bytes(buffer[ring + begin * page.RECORD.size : ring + end * page.RECORD.size])
    else:
        tail = bytes(buffer[ring + begin * page.RECORD.size : ring + ring_records * page.RECORD.size])
        records = tail + bytes(buffer[ring : ring + end * page.RECORD.size])
    return _PageCopy(head, bytes(buffer[page.HISTOGRAMS_AT : page.RING_AT]), records, first - seen, num_records)


def _to_reading(copy: _PageCopy, clock: page.Clock, *, in_process: bool) -> MeterReading:
    head = copy.head
    info = _decode_info(head)
    role, state, fence, role_since = page.STATE.unpack_from(head, page.STATE_AT)
    (step_begin,) = page.F64.unpack_from(head, page.STEP_BEGIN)
    (anchor,) = page.F64.unpack_from(head, page.ANCHOR)
    _, _, _, _, pid, start_ticks = page.FIXED.unpack_from(head, 0)
    closed = bool(page.I64.unpack_from(head, page.CLOSED)[0])
    now = on_grid(clock.monotonic(), SECONDS)
    alive = not closed and (in_process or page.process_start_ticks(pid) == start_ticks)
    return MeterReading(
        worker_id=info.worker_id,
        epoch=info.epoch,
        pid=pid,
        host_id=info.host_id,
        hostname=info.hostname,
        address=info.address,
        model_id=info.model_id,
        simulated=info.simulated,
        device=info.device,
        role=ROLES[role],
        state=page.STATES[state],
        fence=fence,
        reason=info.reason,
        max_context=info.max_context,
        started_unix_s=info.started_unix_s,
        role_since_unix_s=role_since,
        at_unix_s=now + anchor,
        heartbeat_age_s=max(0.0, now - page.F64.unpack_from(head, page.HEARTBEAT)[0]),
        step_running_s=None if step_begin < 0 else max(0.0, now - on_grid(step_begin, SECONDS)),
        alive=alive,
        load=_load(head),
        counters=_counters(head),
        steps=[_step(fields, anchor) for fields in page.RECORD.iter_unpack(copy.records)],
        next_cursor=(info.epoch & page.EPOCH_MASK) << page.CURSOR_SHIFT | copy.num_records,
        num_steps_lost=copy.num_lost,
        histograms=_histograms(copy.histograms),
        changes=tuple(info.changes),
        num_changes=info.num_changes,
        anchor_s=anchor,
    )


def _decode_info(head: bytes) -> page.Info:
    (length,) = page.I64.unpack_from(head, page.INFO_LEN)
    try:
        return msgspec.msgpack.decode(head[page.INFO_AT : page.INFO_AT + length], type=page.Info)
    except msgspec.MsgspecError as error:
        raise MeterError(f"meter page is damaged: {error}") from error


def _load(head: bytes) -> Load:
    """What the page holds of it: the first fields, and the running step's."""
    first = dict(zip(Load.__struct_fields__, page.LOAD.unpack_from(head, page.LOAD_AT), strict=False))
    running_s, limit_s = page.STEP.unpack_from(head, page.STEP_AT)
    return Load(**first, step_running_s=running_s, step_limit_s=limit_s)


def _counters(head: bytes) -> dict[str, PhaseCounters]:
    """Only the (role, phase) pairs in which a step ran."""
    found: dict[str, PhaseCounters] = {}
    for index in range(len(ROLES) * len(PHASES)):
        values = page.COUNTERS.unpack_from(head, page.COUNTERS_AT + index * page.COUNTERS.size)
        if values[5]:
            role, phase = ROLES[index // len(PHASES)], PHASES[index % len(PHASES)]
            busy_s, cpu_s, flops, num_bytes, tokens, steps = values
            found[f"{role}/{phase}"] = PhaseCounters(
                busy_s=busy_s, cpu_s=cpu_s, flops=flops, bytes=num_bytes, tokens=tokens, steps=steps
            )
    return found


def _step(fields: tuple[float | int, ...], anchor: float) -> StepRecord:
    start, end, key, tokens, context_tokens, batch, flops, num_bytes, cpu_s = fields
    role, phase = divmod(int(key), len(PHASES))
    return StepRecord(
        start + anchor,
        end + anchor,
        ROLES[role],
        PHASES[phase],
        int(tokens),
        int(context_tokens),
        int(batch),
        flops,
        num_bytes,
        cpu_s,
    )


def _histograms(raw: bytes) -> dict[str, dict[int, int]]:
    table = np.frombuffer(raw, dtype="<i8").reshape(len(LATENCY_KINDS), NUM_BUCKETS)
    found: dict[str, dict[int, int]] = {}
    for kind, row in zip(LATENCY_KINDS, table, strict=True):
        buckets = np.flatnonzero(row)
        if buckets.size:
            found[kind] = dict(zip(buckets.tolist(), row[buckets].tolist(), strict=True))
    return found


def scan(shm_dir: Path) -> list[Path]:
    """Meter pages on this host, by name; empty when the folder is not there."""
    return sorted(path for path in shm_dir.glob(f"*{page.SUFFIX}") if not path.name.startswith("."))
