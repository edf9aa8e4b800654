"""From meter readings to numbers per second: a pure state machine over observations (DESIGN section 7).

    reading (cumulative) --difference since the cursor--> work per (role, phase), spread over [start, end)
                         --time since the cursor--------> cover: known seconds, and what their devices could do

Decided here: what counts once, and what a utilization is divided by.
- Each count of a worker is in the sums exactly once, in whole quanta (`control.growth`), so the sums of all seconds
  equal its counters, bit for bit. A missed reading loses nothing; a new epoch starts from zero; nothing is negative.
- The numerator is keyed by the role at the time of the step, the denominator by the roles held since.
- Time is the worker's monotonic one. A clock that is set forward leaves a gap, one that is set back has seconds twice.
- A device that workers share (a host's CPU) counts once in each line, so a worker's wall utilization is its part of the
  whole host and the parts add up to the fleet's. In-phase time on a CPU is thread seconds against one thread's ceiling.
- The datasheet peak where there is one, else the measured ceiling; unknown makes the utilization unknown.
- A step is known when it ends, so its seconds are filled in late; the live window ends before a running step began.

Not decided here: how rows are kept (`control.history`), what a chart shows of them (`control.metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from control.fleet_events import life_events
from control.fleets.base import Observation, WorkerLife
from control.gauges import gauge_rows
from control.growth import COLUMNS, Work, counted, growth, quanta_of
from control.held_roles import Held, divided, held_roles, intervals
from control.points import Ingested, Line, Row, WorkerCursor, WorkerEpoch, add_row, lines_of
from control.recent import Recent, UtilizationView
from control.spreading import Slots, on_time_grid
from control.types.events import FleetEvent
from control.types.workers import Phase, Role, RoleInterval
from engine.histogram import delta
from engine.meter import cursor_records
from engine.readings import DeviceInfo, MeterReading

__all__ = ["Accountant", "Peaks", "UtilizationView", "peaks_of"]

#: Fleets up to this size write their workers' latencies each second, larger ones every 10 s.
_SMALL_FLEET: Final = 64
#: Between two readings of one host's clock in one tick, one of which may be by the clock as it was set before.
_CLOCKS_DIFFER_S: Final = 1.0
_Slot = tuple[int, list[float]]


@dataclass(frozen=True, slots=True)
class Peaks:
    """What utilization divides by on one device, and where that comes from."""

    flops: float | None
    bytes_per_s: float | None
    in_phase_flops: float | None
    in_phase_bytes_per_s: float | None
    basis: str


def peaks_of(device: DeviceInfo) -> Peaks:
    """Datasheet peaks where known, else measured ceilings. A CPU's in-phase second is one thread's."""
    flops = device.peak_flops or device.ceiling_flops
    bytes_per_s = device.peak_bytes_per_s or device.ceiling_bytes_per_s
    basis = "unknown" if flops is None and bytes_per_s is None else "calibrated"
    if device.peak_flops or device.peak_bytes_per_s:
        basis = device.peak_source
    if device.kind == "cpu":
        return Peaks(flops, bytes_per_s, device.thread_flops, device.thread_bytes_per_s, basis)
    return Peaks(flops, bytes_per_s, flops, bytes_per_s, basis)


def device_key(reading: MeterReading) -> str:
    """The device behind a worker: equal for workers that share it."""
    device = reading.device
    if device.kind == "cpu":
        return f"host {reading.host_id or reading.hostname}"
    return device.uuid or f"worker {reading.worker_id}"


@dataclass(slots=True)
class _Batch:
    """What one observation adds, while it is being added up."""

    phases: dict[tuple[Line, Phase, int], Row] = field(default_factory=dict)
    states: dict[tuple[Line, int], Row] = field(default_factory=dict)
    latencies: dict[tuple[Line, str, int], dict[int, int]] = field(default_factory=dict)
    roles: list[RoleInterval] = field(default_factory=list)
    epochs: list[WorkerEpoch] = field(default_factory=list)
    events: list[FleetEvent] = field(default_factory=list)

    def add_latency(self, key: tuple[Line, str, int], counts: Mapping[int, int]) -> None:
        into = self.latencies.setdefault(key, {})
        for bucket, count in counts.items():
            into[bucket] = into.get(bucket, 0) + count


class Accountant:
    """One per fleet. Feed it every observation, in order."""

    def __init__(self, fleet_id: str) -> None:
        self.fleet_id = fleet_id
        self._cursors: dict[str, WorkerCursor] = {}
        self._marks: dict[tuple[Line, str], float] = {}  # until when a device is counted in a line
        self._epochs: dict[str, WorkerEpoch] = {}
        self._told: dict[str, MeterReading] = {}  # the newest that was counted; the very same again adds nothing
        self._recent = Recent()

    def snapshot(self) -> dict[str, WorkerCursor]:
        """Cursors after all that was ingested: save them with the rows, in one transaction."""
        return dict(self._cursors)

    def restore(self, cursors: Mapping[str, WorkerCursor]) -> None:
        """Go on after a restart: nothing is counted twice, and what happened meanwhile is counted."""
        self._cursors, self._told = dict(cursors), {}

    def ingest(self, observation: Observation) -> Ingested:
        """What this observation adds. Readings that are not in it are unknown, not zero."""
        batch, before = _Batch(), dict(self._cursors)
        lives = {each.worker_id: each for each in observation.lives}
        fresh = [self._account(reading, lives.get(reading.worker_id), batch) for reading in observation.readings]
        self._close_departed(observation, batch)
        if batch.epochs:
            self._forget_lives()
        live = [reading for reading, is_fresh in zip(observation.readings, fresh, strict=True) if is_fresh]
        for key, row in gauge_rows(live, observation.devices, int(observation.at_unix_s)).items():
            add_row(batch.states.setdefault(key, {}), row)
        self._recent.add(batch.phases, batch.states)
        self._recent.seen(live, {each.worker_id: each.basis for each in self._epochs.values()})
        return Ingested(
            fleet_id=self.fleet_id,
            at_unix_s=observation.at_unix_s,
            phases=batch.phases,
            states=batch.states,
            latencies=batch.latencies,
            roles=tuple(batch.roles),
            epochs=tuple(batch.epochs),
            events=tuple(batch.events),
            counted_from={
                name: before[name].mark if name in before else None
                for name, cursor in self._cursors.items()
                if cursor is not before.get(name)
            },
        )

    def utilization(self, now_unix_s: float, window_s: int = 5) -> UtilizationView:
        """Per fleet, role and worker, by phase, over the last `window_s` finished whole seconds."""
        return self._recent.utilization(now_unix_s, window_s)

    # --- one reading ------------------------------------------------------------------------------------------------

    def _account(self, reading: MeterReading, life: WorkerLife | None, batch: _Batch) -> bool:
        """Count one reading; True when the worker lives, so that its gauges say something."""
        if self._told.get(reading.worker_id) is reading:
            return reading.alive
        before = self._cursors.get(reading.worker_id)
        if before is not None and reading.epoch < before.epoch:
            self._account_late(reading, before, batch)
            return False
        same_life = before if before is not None and before.epoch == reading.epoch else None
        if same_life is not None and _is_stale(reading, same_life):
            return False
        self._note_epoch(reading, batch)
        held = held_roles(reading, same_life)
        after = self._count(reading, same_life, held, batch)
        is_open = self._count_roles(reading, before, held, after.known_until_unix_s, batch)
        batch.events += life_events(self.fleet_id, reading, before, after.known_until_unix_s, life)
        earlier = same_life.earlier if same_life else before and msgspec.structs.replace(before, earlier=None)
        num_late = same_life.num_late if same_life else 0
        self._cursors[reading.worker_id] = msgspec.structs.replace(
            after, open=is_open, earlier=earlier, num_late=num_late
        )
        self._told[reading.worker_id] = reading
        return reading.alive

    def _account_late(self, reading: MeterReading, current: WorkerCursor, batch: _Batch) -> None:
        """A page of the life before: what of it is not counted yet is counted where it belongs."""
        before = current.earlier
        if before is None or before.epoch != reading.epoch or _is_stale(reading, before):
            return
        held = held_roles(reading, before)
        after = self._count(reading, before, held, batch)
        if (after.mark, after.counters) == (before.mark, before.counters):
            return
        ended = max(after.known_until_unix_s, reading.role_since_unix_s)
        batch.roles += intervals(reading.worker_id, reading.epoch, held, ended)
        self._cursors[reading.worker_id] = msgspec.structs.replace(
            current, earlier=after, num_late=current.num_late + 1
        )

    def _count(
        self, reading: MeterReading, before: WorkerCursor | None, held: list[Held], batch: _Batch
    ) -> WorkerCursor:
        """Add what this reading says beyond `before`, of the same life; returns how far it is counted now."""
        jump_s = _jump_s(reading, before)
        known_from = on_time_grid(before.known_until_unix_s + jump_s if before else _began_unix_s(reading))
        until = reading.at_unix_s if reading.alive else min(reading.at_unix_s, _died_unix_s(reading))
        known = Slots(known_from, max(known_from, on_time_grid(until)))
        counters = counted(reading, before.counters if before else {})
        self._count_work(reading, growth(reading, before, counters, known), known, batch)
        self._count_cover(reading, held, known, jump_s, batch)
        return WorkerCursor(
            epoch=reading.epoch,
            num_records=cursor_records(reading.next_cursor),
            counters=counters,
            histograms=self._count_latencies(reading, before, batch),
            known_until_unix_s=known.end_s,
            role=reading.role,
            state=reading.state,
            role_since_unix_s=reading.role_since_unix_s,
            device_key=device_key(reading),
            open=False,
            resume=reading.resume,
            num_changes=reading.num_changes,
            anchor_s=reading.anchor_s,
            jumped_s=jump_s + (before.jumped_s if before else 0.0),
        )

    def _note_epoch(self, reading: MeterReading, batch: _Batch) -> None:
        known = self._epochs.get(reading.worker_id)
        if known is not None and (known.epoch, known.device) == (reading.epoch, reading.device):
            return
        self._epochs[reading.worker_id] = WorkerEpoch(
            worker_id=reading.worker_id,
            epoch=reading.epoch,
            model_id=reading.model_id,
            simulated=reading.simulated,
            hostname=reading.hostname,
            started_unix_s=reading.started_unix_s,
            device=reading.device,
            basis=peaks_of(reading.device).basis,
        )
        batch.epochs.append(self._epochs[reading.worker_id])

    # --- work -------------------------------------------------------------------------------------------------------

    def _count_work(self, reading: MeterReading, done: list[Work], known: Slots, batch: _Batch) -> None:
        """Give each slot its part of every piece of work, on the fleet's, the role's and the worker's line."""
        slots = _spread(done, known, quanta_of(reading.device))
        peaks, in_thread_time = peaks_of(reading.device), reading.device.kind == "cpu"
        for (role, phase, slot), (width, amounts) in slots.items():
            row = _work_row(width, amounts, in_thread_time, peaks)
            for line in lines_of(reading, role):
                add_row(batch.phases.setdefault((line, phase, slot), {}), row)

    # --- cover ------------------------------------------------------------------------------------------------------

    def _count_cover(self, reading: MeterReading, held: list[Held], known: Slots, jump_s: float, batch: _Batch) -> None:
        """The known time of this worker, divided among the roles that it held."""
        if jump_s < 0:
            self._set_marks_back(device_key(reading), known)
        for role, start, end in divided(held, known.start_s, known.end_s):
            self._cover(reading, role, start, end, known, batch)

    def _cover(self, reading: MeterReading, role: Role, start: float, end: float, known: Slots, batch: _Batch) -> None:
        peaks, key = peaks_of(reading.device), device_key(reading)
        covered = known.cover(start, end)
        for line in lines_of(reading, role):
            mark = self._marks.get((line, key), start)
            self._marks[line, key] = max(mark, end)
            for slot, width, seconds in covered:
                row = {"num_cover_s": float(width), "worker_s": seconds}
                add_row(batch.states.setdefault((line, slot), {}), row)
            for slot, _, seconds in covered if mark <= start else known.cover(mark, end):
                add_row(batch.states.setdefault((line, slot), {}), _device_row(seconds, peaks))

    def _set_marks_back(self, key: str, known: Slots) -> None:
        """The clock of this device's host was set back: its time is lived, and counted, again."""
        for line, each in self._marks:
            if each == key and self._marks[line, each] > known.end_s + _CLOCKS_DIFFER_S:
                self._marks[line, each] = known.start_s

    # --- latencies and roles ----------------------------------------------------------------------------------------

    def _count_latencies(
        self, reading: MeterReading, before: WorkerCursor | None, batch: _Batch
    ) -> dict[str, dict[int, int]]:
        """Add what was observed since; returns the histograms that are counted now."""
        counted = before.histograms if before else {}
        second = int(reading.at_unix_s)
        is_large = len(self._cursors) > _SMALL_FLEET
        if before and reading.alive and is_large and second // 10 == int(before.known_until_unix_s) // 10:
            return counted
        fleet, role, _ = lines_of(reading, reading.role)
        for kind, counts in reading.histograms.items():
            grown = delta(counts, counted.get(kind, {}))
            if grown:
                batch.add_latency((fleet, f"worker_{kind}", second), grown)
                batch.add_latency((role, f"worker_{kind}", second), grown)
        return reading.histograms

    def _count_roles(
        self, reading: MeterReading, before: WorkerCursor | None, held: list[Held], known_until: float, batch: _Batch
    ) -> bool:
        """Close the intervals that ended and open the one that began; True while one is open."""
        same_life = before is not None and before.epoch == reading.epoch
        if before is not None and same_life and not before.open:
            return False
        if same_life and len(held) == 1 and reading.alive:
            return True
        if before is not None and before.open and not same_life:
            ended = max(before.known_until_unix_s, before.role_since_unix_s)
            batch.roles.append(_interval(reading.worker_id, before, ended))
        end = None if reading.alive else max(known_until, reading.role_since_unix_s)
        batch.roles += intervals(reading.worker_id, reading.epoch, held, end)
        return reading.alive

    def _close_departed(self, observation: Observation, batch: _Batch) -> None:
        """Whoever has neither a slot in the fleet nor a reading has left it: what was open ends where it was known."""
        if not observation.lives:
            return
        here = {each.worker_id for each in observation.lives} | {each.worker_id for each in observation.readings}
        for worker_id, cursor in self._cursors.items():
            if cursor.open and worker_id not in here:
                batch.roles.append(
                    _interval(worker_id, cursor, max(cursor.known_until_unix_s, cursor.role_since_unix_s))
                )
                self._cursors[worker_id] = msgspec.structs.replace(cursor, open=False)

    def _forget_lives(self) -> None:
        """Marks of earlier lives, and of devices that no worker has any more."""
        lives = {(worker_id, cursor.epoch) for worker_id, cursor in self._cursors.items()}
        devices = {cursor.device_key for cursor in self._cursors.values()}
        self._marks = {
            (line, key): until
            for (line, key), until in self._marks.items()
            if key in devices and (line.scope != "worker" or (line.name, line.epoch) in lives)
        }


def _is_stale(reading: MeterReading, before: WorkerCursor) -> bool:
    """An answer that was overtaken by a newer one of the same life: all of it is counted."""
    return on_time_grid(reading.at_unix_s) < on_time_grid(before.known_until_unix_s + _jump_s(reading, before))


def _jump_s(reading: MeterReading, before: WorkerCursor | None) -> float:
    """By how much the worker's clock was set since the look before: seconds that never were, or were twice."""
    if before is None or before.anchor_s is None or reading.anchor_s is None:
        return 0.0
    return reading.anchor_s - before.anchor_s


def _began_unix_s(reading: MeterReading) -> float:
    """When this life began, on the clock as it is set now."""
    if reading.anchor_s is None or not reading.changes or reading.num_changes > len(reading.changes):
        return reading.started_unix_s
    return reading.changes[0].since_mono_s + reading.anchor_s


def _died_unix_s(reading: MeterReading) -> float:
    """A dead worker is known until its last sign of life."""
    last_step = reading.steps[-1].end_unix_s if reading.steps else 0.0
    return max(reading.at_unix_s - reading.heartbeat_age_s, last_step)


def _interval(worker_id: str, cursor: WorkerCursor, end_unix_s: float) -> RoleInterval:
    return RoleInterval(
        worker_id=worker_id,
        epoch=cursor.epoch,
        role=cursor.role,
        state=cursor.state,
        start_unix_s=cursor.role_since_unix_s,
        end_unix_s=end_unix_s,
    )


def _spread(done: list[Work], known: Slots, quanta: Sequence[float]) -> dict[tuple[Role, Phase, int], _Slot]:
    """Work per role, phase and slot: the slot's width, and amounts with the fallback time at their end."""
    found: dict[tuple[Role, Phase, int], _Slot] = {}
    for work in done:
        for slot, width, amounts in known.parts(work.start_unix_s, work.end_unix_s, work.amounts, quanta):
            amounts.append(amounts[0] if work.is_fallback else 0.0)
            _, total = found.setdefault((work.role, work.phase, slot), (width, [0.0] * len(amounts)))
            for index, amount in enumerate(amounts):
                total[index] += amount
    return found


def _work_row(width: int, amounts: list[float], in_thread_time: bool, peaks: Peaks) -> Row:
    """Columns of work in one slot, with what the device could have done in that in-phase time."""
    row = dict(zip((*COLUMNS, "fallback_s"), amounts, strict=True))
    row["num_s"] = float(width)
    time_s = row["cpu_s"] if in_thread_time else row["busy_s"]
    for name, peak in (("flops", peaks.in_phase_flops), ("bytes", peaks.in_phase_bytes_per_s)):
        if peak is None:
            row[f"{name}_unknown_s"] = time_s
        else:
            row[f"{name}_room"] = peak * time_s
    return row


def _device_row(seconds: float, peaks: Peaks) -> Row:
    """Columns of device time: what could have been done in it."""
    row = {"device_s": seconds}
    for name, peak in (("flops", peaks.flops), ("bytes", peaks.bytes_per_s)):
        if peak is None:
            row[f"no_{name}_peak_s"] = seconds
        else:
            row[f"{name}_peak"] = peak * seconds
    return row
