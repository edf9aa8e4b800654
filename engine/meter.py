"""The meter: one worker's counters, step ring, histograms, load and state, in memory that outlives the worker.

One writer process (any of its threads), any number of readers on the same host, no lock between them: a sequence number
is odd while the writer is inside a change, and a reader retries until it saw the same even number before and after.
The page relies on the store order of x86-64. Counters are written before the ring record that explains them, so a
writer killed in between leaves counters ahead of the ring, never behind. Both are on the grid of `engine.quanta`: what
a step has beyond it waits for the next step, so a counter is less than one quantum behind and its steps add up to it.

What the numbers mean is decided in `engine.work` (FLOPs, bytes) and `control.accounting` (utilization), not here.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from engine import meter_page as page
from engine.errors import MeterError
from engine.histogram import bucket_of
from engine.meter_page import DEFAULT_RING_RECORDS, SUFFIX, Clock, cursor_records
from engine.meter_reader import MeterReader, scan
from engine.quanta import SECONDS, on_grid, work_quanta
from engine.readings import DeviceInfo, RoleChange
from engine.types import PHASES, ROLES, Load, PhaseTiming, Role, WorkerState

__all__ = ["DEFAULT_RING_RECORDS", "SUFFIX", "Clock", "Meter", "MeterReader", "cursor_records", "scan"]

_MAX_REASON: Final = 500
_SHORT_REASON: Final = 64  # of each of the last changes


def _map_new_file(path: Path, size: int) -> mmap.mmap:
    """Reserve the page beside `path`; `os.replace` then swaps it in whole, so no reader sees half a page."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # or a full tmpfs would end the worker with SIGBUS later
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MeterError(f"meter page {path} ({size} bytes) cannot be made: {error.strerror}") from error


@dataclass(slots=True)
class Meter:
    """The writer. Get one from `create`; every method is safe from any thread of the writing process."""

    buffer: mmap.mmap | bytearray
    clock: Clock
    path: Path | None
    _info: page.Info
    _ring_records: int
    _quanta: tuple[float, float, float]  # of cpu_s, flops, bytes
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seq: int = 0
    _num_records: int = 0
    _totals: list[list[float]] = field(default_factory=lambda: [[0.0] * 6 for _ in range(len(ROLES) * len(PHASES))])
    _rests: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(len(ROLES) * len(PHASES))])

    @classmethod
    def create(
        cls,
        path: Path | None,
        *,
        worker_id: str,
        epoch: int,
        model_id: str,
        address: str,
        simulated: bool,
        device: DeviceInfo,
        host_id: str,
        max_context: int,
        clock: Clock | None = None,
        ring_records: int = DEFAULT_RING_RECORDS,
    ) -> Meter:
        """A fresh page at `path` (replacing an earlier epoch's), or in memory. With a `clock` no other clock is read.

        Raises MeterError when the page cannot be made.
        """
        size = page.page_bytes(ring_records)
        fresh = None if path is None else path.with_name(f".{path.name}.{os.getpid()}.new")
        buffer: mmap.mmap | bytearray = bytearray(size) if fresh is None else _map_new_file(fresh, size)
        used = clock or Clock()
        info = page.Info(
            worker_id=worker_id,
            epoch=epoch,
            model_id=model_id,
            address=address,
            hostname=socket.gethostname(),
            host_id=host_id,
            simulated=simulated,
            device=device,
            max_context=max_context,
            started_unix_s=used.unix(),
        )
        work = work_quanta(device)
        meter = cls(buffer, used, path, info, ring_records, (SECONDS, work.flops, work.bytes))
        meter._write_head()
        if path is not None and fresh is not None:
            os.replace(fresh, path)
        return meter

    def _write_head(self) -> None:
        pid, epoch = os.getpid(), self._info.epoch
        ticks = page.process_start_ticks(pid) or 0
        page.FIXED.pack_into(self.buffer, 0, page.MAGIC, page.LAYOUT, self._ring_records, epoch, pid, ticks)
        now = self.clock.monotonic()
        page.F64.pack_into(self.buffer, page.STEP_BEGIN, -1.0)
        page.F64.pack_into(self.buffer, page.HEARTBEAT, now)
        page.F64.pack_into(self.buffer, page.ANCHOR, on_grid(self._info.started_unix_s - now, SECONDS))
        starting, since = WorkerState.STARTING, self._info.started_unix_s
        page.STATE.pack_into(self.buffer, page.STATE_AT, 0, page.STATE_INDEX[starting], 0, since)
        self._note_change(ROLES[0], starting, since, now)
        self._write_info()

    def _write_info(self) -> None:
        blob = msgspec.msgpack.encode(self._info)
        room = page.STEP_AT - page.INFO_AT
        if len(blob) > room:
            raise MeterError(f"worker {self._info.worker_id}: names and reason take {len(blob)} bytes of {room}")
        page.I64.pack_into(self.buffer, page.INFO_LEN, len(blob))
        self.buffer[page.INFO_AT : page.INFO_AT + len(blob)] = blob

    def _enter(self) -> None:
        self._seq += 1
        page.I64.pack_into(self.buffer, page.SEQ, self._seq)

    _leave = _enter  # odd inside, even outside

    def set_state(self, role: Role, state: WorkerState, fence: int, reason: str, now_unix_s: float) -> None:
        """Role and state from now on; `role_since` moves only when one of them changes."""
        with self._lock:
            old_role, old_state, _, since = page.STATE.unpack_from(self.buffer, page.STATE_AT)
            role_index, state_index = page.ROLE_INDEX[role], page.STATE_INDEX[state]
            changed = (role_index, state_index) != (old_role, old_state)
            self._enter()
            page.STATE.pack_into(
                self.buffer, page.STATE_AT, role_index, state_index, fence, now_unix_s if changed else since
            )
            self._info.reason = reason[:_MAX_REASON]
            if changed:
                self._note_change(role, state, now_unix_s, self.clock.monotonic(), reason)
            self._write_info()
            self._leave()

    def _note_change(self, role: Role, state: WorkerState, unix_s: float, mono_s: float, reason: str = "") -> None:
        self._info.changes.append(RoleChange(role, state, unix_s, on_grid(mono_s, SECONDS), reason[:_SHORT_REASON]))
        del self._info.changes[: -page.MAX_CHANGES]
        self._info.num_changes += 1

    def set_load(self, load: Load) -> None:
        with self._lock:
            self._enter()
            page.LOAD.pack_into(
                self.buffer,
                page.LOAD_AT,
                load.queued_prefill_tokens,
                load.num_waiting,
                load.num_running,
                load.num_leased,
                load.kv_blocks_total,
                load.kv_blocks_held,
                load.kv_blocks_reserved,
                load.oldest_wait_s,
            )
            page.STEP.pack_into(self.buffer, page.STEP_AT, load.step_running_s, load.step_limit_s)
            self._leave()

    def heartbeat(self, now_mono_s: float) -> None:
        """The loop is alive. Follows a host clock that somebody set by more than 0.1 s."""
        page.F64.pack_into(self.buffer, page.HEARTBEAT, now_mono_s)
        anchor = on_grid(self.clock.unix() - self.clock.monotonic(), SECONDS)
        if abs(anchor - page.F64.unpack_from(self.buffer, page.ANCHOR)[0]) > 0.1:
            page.F64.pack_into(self.buffer, page.ANCHOR, anchor)

    def step_begin(self, now_mono_s: float) -> None:
        page.F64.pack_into(self.buffer, page.STEP_BEGIN, now_mono_s)

    def step_end(self) -> None:
        page.F64.pack_into(self.buffer, page.STEP_BEGIN, -1.0)

    def record(
        self,
        role: Role,
        timing: PhaseTiming,
        *,
        tokens: int,
        context_tokens: int,
        batch: int,
        flops: float,
        bytes: float,
    ) -> None:
        """Count one timed forward. `context_tokens` sums the contexts of the batch."""
        key = page.ROLE_INDEX[role] * len(PHASES) + page.PHASE_INDEX[timing.phase]
        start_s, end_s = on_grid(timing.start_s, SECONDS), on_grid(timing.end_s, SECONDS)
        with self._lock:
            cpu_s, flops, bytes = self._whole_quanta(key, timing.cpu_s, flops, bytes)
            self._enter()
            totals = self._totals[key]
            for index, count in enumerate((end_s - start_s, cpu_s, flops, bytes, tokens, 1)):
                totals[index] += count
            page.COUNTERS.pack_into(self.buffer, page.COUNTERS_AT + key * page.COUNTERS.size, *totals)
            page.RECORD.pack_into(
                self.buffer,
                page.RING_AT + self._num_records % self._ring_records * page.RECORD.size,
                start_s,
                end_s,
                key,
                tokens,
                context_tokens,
                batch,
                flops,
                bytes,
                cpu_s,
            )
            self._num_records += 1
            page.I64.pack_into(self.buffer, page.NUM_RECORDS, self._num_records)
            self._leave()

    def _whole_quanta(self, key: int, *amounts: float) -> list[float]:
        """These amounts and what is left of earlier ones, in whole quanta; what is left now is kept."""
        rests, found = self._rests[key], []
        for index, (amount, quantum) in enumerate(zip(amounts, self._quanta, strict=True)):
            pending = rests[index] + amount
            whole = on_grid(pending, quantum)
            rests[index] = pending - whole
            found.append(whole)
        return found

    def observe_latency(self, kind: str, value_s: float, n: int = 1) -> None:
        """Count a duration `n` times. `kind` is one of LATENCY_KINDS (else KeyError)."""
        at = page.HISTOGRAMS_AT + page.KIND_INDEX[kind] * page.HISTOGRAM_BYTES + bucket_of(value_s) * 8
        with self._lock:
            page.I64.pack_into(self.buffer, at, page.I64.unpack_from(self.buffer, at)[0] + n)

    def close(self) -> None:
        """The writer is gone; the page stays for its readers and says so."""
        with self._lock:
            if isinstance(self.buffer, mmap.mmap) and self.buffer.closed:
                return
            page.F64.pack_into(self.buffer, page.STEP_BEGIN, -1.0)
            page.I64.pack_into(self.buffer, page.CLOSED, 1)
            if isinstance(self.buffer, mmap.mmap):
                self.buffer.close()
