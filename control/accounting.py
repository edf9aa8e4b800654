"""From meter readings to numbers per second: a pure state machine over observations (DESIGN section 7).

    reading (cumulative) --difference since the cursor--> work per (role, phase), spread over [start, end)
                         --time since the cursor--------> cover: known seconds, and what their devices could do

Decided here: what counts once, and what a utilization is divided by.
- Counters are the truth; ring records say when. What the ring lost is the rest of the counters, spread over the time
  since the last reading. A missed reading loses nothing; a new epoch starts from zero; nothing is ever negative.
- The numerator is keyed by the role at the time of the step, the denominator by the role held since.
- A device that workers share (a host's CPU) counts once in each line, so a worker's wall utilization is its part of the
  whole host and the parts add up to the fleet's. In-phase time on a CPU is thread seconds against one thread's ceiling.
- The datasheet peak where there is one, else the measured ceiling; unknown makes the utilization unknown.
- A step is known when it ends, so its seconds are filled in late; the live window ends before a running step began.

Not decided here: how rows are kept (`control.history`), what a chart shows of them (`control.metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from control.fleet_events import life_events
from control.fleets.base import Observation, WorkerLife
from control.gauges import gauge_rows
from control.points import Ingested, Line, Row, WorkerCursor, WorkerEpoch, add_row, lines_of
from control.recent import Recent, UtilizationView
from control.spreading import cover, shares, slot_seconds
from control.types import FleetEvent, Phase, Role, RoleInterval
from engine.histogram import delta
from engine.meter import cursor_records
from engine.readings import DeviceInfo, MeterReading, PhaseCounters, StepRecord

__all__ = ["Accountant", "Peaks", "UtilizationView", "peaks_of"]

#: Fleets up to this size write their workers' latencies each second, larger ones every 10 s.
_SMALL_FLEET: Final = 64
_COUNTS: Final = ("busy_s", "cpu_s", "flops", "bytes", "tokens", "steps")
_STEPS: Final = _COUNTS.index("steps")
PhaseTotals = dict[tuple[Role, Phase], list[float]]  # columns of _COUNTS


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
        self._recent = Recent()

    def snapshot(self) -> dict[str, WorkerCursor]:
        """Cursors after all that was ingested: save them with the rows, in one transaction."""
        return dict(self._cursors)

    def restore(self, cursors: Mapping[str, WorkerCursor]) -> None:
        """Go on after a restart: nothing is counted twice, and what happened meanwhile is counted."""
        self._cursors = dict(cursors)

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
        before = self._cursors.get(reading.worker_id)
        if before is not None and reading.epoch < before.epoch:
            return False  # the page of an earlier life, read late
        same_epoch = before if before is not None and before.epoch == reading.epoch else None
        self._note_epoch(reading, batch)
        known_from = same_epoch.known_until_unix_s if same_epoch else reading.started_unix_s
        until = reading.at_unix_s if reading.alive else min(reading.at_unix_s, _died_unix_s(reading))
        known_until = max(known_from, until)
        self._count_work(reading, same_epoch, known_from, known_until, batch)
        self._count_cover(reading, same_epoch, known_from, known_until, batch)
        histograms = self._count_latencies(reading, same_epoch, batch)
        is_open = self._count_roles(reading, before, known_until, batch)
        batch.events += life_events(self.fleet_id, reading, before, known_until, life)
        self._cursors[reading.worker_id] = WorkerCursor(
            epoch=reading.epoch,
            num_records=cursor_records(reading.next_cursor),
            counters=reading.counters,
            histograms=histograms,
            known_until_unix_s=known_until,
            role=reading.role,
            state=reading.state,
            role_since_unix_s=reading.role_since_unix_s,
            device_key=device_key(reading),
            open=is_open,
            resume=reading.resume,
        )
        return reading.alive

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

    def _count_work(
        self, reading: MeterReading, before: WorkerCursor | None, start: float, end: float, batch: _Batch
    ) -> None:
        """Give each second its share of every step, on the fleet's, the role's and the worker's line."""
        work: dict[tuple[Role, Phase, int], list[float]] = {}
        steps = _new_steps(reading, before)
        ring, grown = _sum_of_steps(steps), _growth(reading, before)
        for step in steps:
            counts = _counts(step)
            counts[0] *= _busy_scale(step, ring, grown)
            _spread(work, step.role, step.phase, step.start_unix_s, step.end_unix_s, counts)
        for (role, phase), rest in _lost(ring, grown).items():
            _spread(work, role, phase, start, end, [*rest, rest[0]])
        peaks, in_thread_time = peaks_of(reading.device), reading.device.kind == "cpu"
        for (role, phase, second), counts in work.items():
            row = _work_row(counts, in_thread_time, peaks)
            for line in lines_of(reading, role):
                add_row(batch.phases.setdefault((line, phase, second), {}), row)

    # --- cover ------------------------------------------------------------------------------------------------------

    def _count_cover(
        self, reading: MeterReading, before: WorkerCursor | None, start: float, end: float, batch: _Batch
    ) -> None:
        """The seconds [start, end) of this worker are known; a flip in between splits them between the two roles."""
        flipped = before is not None and before.role != reading.role and start < reading.role_since_unix_s
        split = min(end, max(start, reading.role_since_unix_s)) if flipped else start
        if before is not None:
            self._cover(reading, before.role, start, split, batch)
        self._cover(reading, reading.role, split, end, batch)

    def _cover(self, reading: MeterReading, role: Role, start: float, end: float, batch: _Batch) -> None:
        peaks, key = peaks_of(reading.device), device_key(reading)
        for line in lines_of(reading, role):
            mark = self._marks.get((line, key), start)
            self._marks[line, key] = max(mark, end)
            num_s = float(slot_seconds(end - start))
            for second, seconds in cover(start, end):
                known = {"num_cover_s": num_s, "worker_s": seconds}
                add_row(batch.states.setdefault((line, second), {}), known)
            for second, seconds in cover(max(start, mark), end):
                add_row(batch.states.setdefault((line, second), {}), _device_row(seconds, peaks))

    # --- latencies and roles ----------------------------------------------------------------------------------------

    def _count_latencies(
        self, reading: MeterReading, before: WorkerCursor | None, batch: _Batch
    ) -> dict[str, dict[int, int]]:
        """Add what was observed since; returns the histograms that are counted now."""
        counted = before.histograms if before else {}
        second = int(reading.at_unix_s)
        if before and len(self._cursors) > _SMALL_FLEET and second // 10 == int(before.known_until_unix_s) // 10:
            return counted
        fleet, role, _ = lines_of(reading, reading.role)
        for kind, counts in reading.histograms.items():
            grown = delta(counts, counted.get(kind, {}))
            if grown:
                batch.add_latency((fleet, f"worker_{kind}", second), grown)
                batch.add_latency((role, f"worker_{kind}", second), grown)
        return reading.histograms

    def _count_roles(
        self, reading: MeterReading, before: WorkerCursor | None, known_until: float, batch: _Batch
    ) -> bool:
        """Close the interval that ended and open the one that began; True while one is open."""
        same_life = before is not None and before.epoch == reading.epoch
        if before is not None and same_life and not before.open:
            return False
        same_role = same_life and before is not None and before.role_since_unix_s == reading.role_since_unix_s
        unchanged = same_role and before is not None and (before.role, before.state) == (reading.role, reading.state)
        if unchanged and reading.alive:
            return True
        if before is not None and before.open and not same_role:
            ended = reading.role_since_unix_s if same_life else before.known_until_unix_s
            batch.roles.append(_interval(reading.worker_id, before, max(ended, before.role_since_unix_s)))
        batch.roles.append(
            RoleInterval(
                worker_id=reading.worker_id,
                epoch=reading.epoch,
                role=reading.role,
                state=reading.state,
                start_unix_s=reading.role_since_unix_s,
                end_unix_s=None if reading.alive else max(known_until, reading.role_since_unix_s),
                reason=reading.reason,
            )
        )
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


def _new_steps(reading: MeterReading, before: WorkerCursor | None) -> list[StepRecord]:
    """Records that the cursor has not counted; a reading may bring older ones again."""
    first = cursor_records(reading.next_cursor) - len(reading.steps)
    seen = before.num_records if before else 0
    return reading.steps[max(0, seen - first) :]


def _sum_of_steps(steps: list[StepRecord]) -> PhaseTotals:
    """Columns of _COUNTS, summed per (role, phase)."""
    total: PhaseTotals = {}
    for step in steps:
        into = total.setdefault((step.role, step.phase), list(_NO_COUNTS))
        for index, count in enumerate(_counts(step)[: len(_COUNTS)]):
            into[index] += count
    return total


def _growth(reading: MeterReading, before: WorkerCursor | None) -> PhaseTotals:
    """What the counters grew by since the cursor, per (role, phase)."""
    found: PhaseTotals = {}
    for key, counters in reading.counters.items():
        role, _, phase = key.partition("/")
        earlier = before.counters.get(key, _NOTHING) if before else _NOTHING
        found[Role(role), Phase(phase)] = [getattr(counters, name) - getattr(earlier, name) for name in _COUNTS]
    return found


def _lost(ring: PhaseTotals, grown: PhaseTotals) -> PhaseTotals:
    """Counted work that no ring record explains, per (role, phase). Empty when none was lost."""
    found: PhaseTotals = {}
    for key, counts in grown.items():
        rest = [count - known for count, known in zip(counts, ring.get(key, _NO_COUNTS), strict=True)]
        if rest[_STEPS] >= 1.0:
            found[key] = [max(0.0, value) for value in rest]
    return found


def _busy_scale(step: StepRecord, ring: PhaseTotals, grown: PhaseTotals) -> float:
    """Unix times resolve 0.2 us only: scale the steps' lengths to the counter, when all its steps are here."""
    known, counted = ring[step.role, step.phase], grown.get((step.role, step.phase), _NO_COUNTS)
    complete = known[_STEPS] == counted[_STEPS] and known[0] > 0 and counted[0] > 0
    return counted[0] / known[0] if complete else 1.0


_NOTHING: Final = PhaseCounters()
_NO_COUNTS: Final = [0.0] * len(_COUNTS)


def _counts(step: StepRecord) -> list[float]:
    """The columns of _COUNTS, and no fallback time."""
    busy_s = step.end_unix_s - step.start_unix_s
    return [busy_s, step.cpu_s, step.flops, step.bytes, float(step.tokens), 1.0, 0.0]


def _spread(
    work: dict[tuple[Role, Phase, int], list[float]],
    role: Role,
    phase: Phase,
    start: float,
    end: float,
    counts: list[float],
) -> None:
    """Add each second's share of `counts` over [start, end)."""
    for second, fraction in shares(start, end, slot_seconds(end - start)):
        total = work.setdefault((role, phase, second), [0.0] * len(counts))
        for index, count in enumerate(counts):
            total[index] += count * fraction


def _work_row(counts: list[float], in_thread_time: bool, peaks: Peaks) -> Row:
    """Columns of work in one second, with what the device could have done in that in-phase time."""
    row = dict(zip((*_COUNTS, "fallback_s"), counts, strict=True))
    row["num_s"] = 1.0
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
