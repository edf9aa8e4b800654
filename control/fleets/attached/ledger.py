"""One foreign engine's pages added up as if it had one of our meters: cumulative per (role, phase), per life.

Decided here: what belongs to which life, and under which role work is booked. At the first look nothing is counted:
what an engine did before it was attached is not spread over time that we did not see. A restart begins a new epoch from
zero. Work between two looks goes to the role that the registry had at the earlier one, so a flip books what is left of
one interval to the former role. Not decided here: how tokens become work (`derive`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

import msgspec

from control.fleets.attached.derive import PhaseWork, derive, grown_by, has_restarted, leap_of, owed_tokens, per_bucket
from control.fleets.attached.engine_page import Buckets, Counters, EnginePage
from control.points import WorkerCursor
from control.types.workers import Phase, Role, WorkerState
from engine.histogram import bucket_of
from engine.readings import DeviceInfo, MeterReading, PhaseCounters, WorkEstimates
from engine.types import Load
from engine.work import ModelWork

#: Of one latency bucket so many places at most are told apart when it is spread over our finer ones.
MAX_PLACES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """What the registry says of one engine, whatever its pages say."""

    worker_id: str
    address: str
    model_id: str = ""
    simulated: bool = False
    device: DeviceInfo = field(default_factory=lambda: DeviceInfo(name="unknown", kind="cuda"))
    num_devices: int = 1
    work: ModelWork | None = None  # None: the model's shape is not known


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger goes on from in the next plane, beside what the cursor has."""

    page: EnginePage
    since_unix_s: float
    seen_unix_s: float
    exported_flops: float | None
    exported_bytes: float | None = None
    counters: dict[str, PhaseCounters] = {}  # as they are: the cursor has what of them is counted, in whole quanta


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Resume)


class Ledger:
    """Feed it every page, in order; `reading` is what a meter would say. Times are Unix seconds of the looks.

    `cursor`: what the last plane has counted of this engine. One that cannot be read begins anew.
    """

    def __init__(self, identity: EngineIdentity, cursor: WorkerCursor | None = None) -> None:
        self.identity = identity
        self.page: EnginePage | None = None
        self.role = Role.UNASSIGNED
        self.leap = ""  # why the newest page's growth was left out
        self.exported_flops: float | None = None  # since this life was first seen, as the engine says it
        self.exported_bytes: float | None = None
        self._epoch = 0
        self._since_unix_s = 0.0
        self._role_since_unix_s = 0.0
        self._seen_unix_s = 0.0
        self._counters: dict[str, PhaseCounters] = {}
        self._histograms: dict[str, dict[int, int]] = {}
        self._owed = 0.0
        self._knows_flops = self._knows_bytes = False
        self._resume = b""
        self._reading: MeterReading | None = None  # of the newest page
        if cursor is not None:
            self._epoch = cursor.epoch
            with contextlib.suppress(msgspec.MsgspecError):
                self._go_on_from(cursor, _decoder.decode(cursor.resume))

    def _go_on_from(self, cursor: WorkerCursor, before: Resume) -> None:
        self.page, self.role = before.page, cursor.role
        self.exported_flops, self.exported_bytes = before.exported_flops, before.exported_bytes
        self._since_unix_s, self._seen_unix_s = before.since_unix_s, before.seen_unix_s
        self._role_since_unix_s = cursor.role_since_unix_s
        self._counters, self._histograms = dict(before.counters or cursor.counters), dict(cursor.histograms)
        self._resume = cursor.resume

    @property
    def epoch(self) -> int:
        """Of the engine's life that is seen now; 0 before the first page."""
        return self._epoch

    @property
    def seen_unix_s(self) -> float:
        """When the newest page was asked for."""
        return self._seen_unix_s

    def add(self, page: EnginePage, role: Role, at_unix_s: float) -> None:
        """One look. An older one than the last is ignored."""
        if self.page is not None and at_unix_s <= self._seen_unix_s:
            return
        before, self.leap = self.page, ""
        if before is None:
            self._begin(role, at_unix_s, at_unix_s)
        elif has_restarted(before, page):
            started = self._seen_unix_s if page.started_unix_s is None else page.started_unix_s
            self._begin(role, min(max(started, self._seen_unix_s), at_unix_s), at_unix_s)
            self._count_sound(_from_zero(page), page, at_unix_s - self._since_unix_s)
        else:
            self._count_sound(before, page, at_unix_s - self._seen_unix_s)
        if role is not self.role:
            self.role, self._role_since_unix_s = role, at_unix_s
        self.page, self._seen_unix_s = page, at_unix_s
        bare = replace(page, findings=())
        resume = Resume(
            page=bare,
            since_unix_s=self._since_unix_s,
            seen_unix_s=at_unix_s,
            exported_flops=self.exported_flops,
            exported_bytes=self.exported_bytes,
            counters=self._counters,
        )
        self._resume, self._reading = _encoder.encode(resume), None

    def reading(self, now_unix_s: float, *, is_alive: bool, state: WorkerState, reason: str) -> MeterReading | None:
        """None before the first page. Not alive: as of the last look. The same object until something is new."""
        if self.page is None:
            return None
        known = self._reading
        if known is None or not (is_alive and known.alive and (known.state, known.reason) == (state, reason)):
            known = self._reading = self._read(self.page, now_unix_s, is_alive, state, reason)
        return known

    def _read(
        self, page: EnginePage, now_unix_s: float, is_alive: bool, state: WorkerState, reason: str
    ) -> MeterReading:
        who = self.identity
        gauges = page.gauges
        return MeterReading(
            worker_id=who.worker_id,
            epoch=self._epoch,
            pid=0,
            host_id=who.address,
            hostname=who.address,
            address=who.address,
            model_id=who.model_id or page.model_id,
            simulated=who.simulated,
            device=self._device(),
            role=self.role,
            state=state,
            fence=0,
            reason=reason,
            max_context=0,
            started_unix_s=self._since_unix_s,
            role_since_unix_s=self._role_since_unix_s,
            at_unix_s=self._seen_unix_s,
            heartbeat_age_s=0.0 if is_alive else max(0.0, now_unix_s - self._seen_unix_s),
            step_running_s=None,
            alive=is_alive,
            load=Load(
                num_waiting=int(gauges.num_waiting or 0),
                num_running=int(gauges.num_running or 0),
                kv_blocks_total=0 if gauges.kv_usage is None else 10_000,
                kv_blocks_held=0 if gauges.kv_usage is None else round(gauges.kv_usage * 10_000),
            ),
            counters=self._counters,
            steps=[],
            next_cursor=0,
            num_steps_lost=0,
            histograms=self._histograms,
            resume=self._resume,
            unknown=("queued_prefill_tokens", "oldest_wait_s", *_absent(page)),
            estimates=self._estimates(),
        )

    def _estimates(self) -> WorkEstimates:
        """Without the model's shape our counters hold the engine's own numbers: nothing is derived then.

        An idle engine exports 0 whether or not it counts; one that does not count exports nothing once it has served.
        """
        done = self._counters.values() if self.identity.work else ()
        now = self.page.counters if self.page is not None else Counters()
        return WorkEstimates(
            exported_flops=None if now.exported_flops is None else self.exported_flops,
            derived_flops=sum(each.flops for each in done) if done else None,
            exported_bytes=None if now.exported_bytes is None else self.exported_bytes,
            derived_bytes=sum(each.bytes for each in done) if done and now.steps is not None else None,
        )

    def _begin(self, role: Role, since_unix_s: float, at_unix_s: float) -> None:
        """A life of the engine, known from `since_unix_s` on."""
        self._epoch = max(self._epoch + 1, int(at_unix_s))
        self.role = role
        self._since_unix_s = self._role_since_unix_s = since_unix_s
        self._counters, self._histograms = {}, {}
        self._owed = 0.0
        self.exported_flops = self.exported_bytes = None

    def _count_sound(self, before: EnginePage, now: EnginePage, elapsed_s: float) -> None:
        """Nothing of two looks between which a counter leapt: it would be work that nobody did."""
        self.leap = leap_of(before.counters, now.counters, elapsed_s)
        if not self.leap:
            self._count(before, now, elapsed_s)

    def _count(self, before: EnginePage, now: EnginePage, elapsed_s: float) -> None:
        role = self.role
        done = derive(before, now, role, self.identity.work, elapsed_s, self._owed)
        self._owed = owed_tokens(before, now, role, self._owed)
        exported = grown_by(before.counters, now.counters)
        if self.identity.work is None:
            done = _as_exported(done, role, exported, self.identity.num_devices)
        self.exported_flops = _added(self.exported_flops, exported.exported_flops, self.identity.num_devices)
        self.exported_bytes = _added(self.exported_bytes, exported.exported_bytes, self.identity.num_devices)
        self._knows_flops = all(each.flops is not None for each in done.values())
        self._knows_bytes = all(each.bytes is not None for each in done.values())
        for phase, each in done.items():
            self._book(role, phase, each)
        histograms = {kind: dict(counts) for kind, counts in self._histograms.items()}
        for kind, buckets in now.latencies.items():
            _spread(histograms.setdefault(kind, {}), before.latencies.get(kind, ()), buckets)
        self._histograms = histograms

    def _book(self, role: Role, phase: Phase, work: PhaseWork) -> None:
        if not (work.tokens or work.steps or work.flops or work.bytes):
            return
        key = f"{role.value}/{phase.value}"
        old = self._counters.get(key, PhaseCounters())
        # A new dict each time: readers keep the old one to compare with.
        self._counters = {
            **self._counters,
            key: PhaseCounters(
                busy_s=old.busy_s + (work.busy_s or 0.0),
                flops=old.flops + (work.flops or 0.0),
                bytes=old.bytes + (work.bytes or 0.0),
                tokens=old.tokens + work.tokens,
                # At least one: work without a step would not be looked at (`control.accounting`).
                steps=old.steps + max(1.0, work.steps),
            ),
        }

    def _device(self) -> DeviceInfo:
        """All devices of this engine as one; no peak where the work is not known, so that no ratio is made of it."""
        device, num = self.identity.device, self.identity.num_devices
        return DeviceInfo(
            name=device.name if num == 1 else f"{num} x {device.name}",
            kind=device.kind,
            uuid=self.identity.worker_id,
            host_id=self.identity.address,
            memory_bytes=None if device.memory_bytes is None else device.memory_bytes * num,
            peak_flops=device.peak_flops * num if device.peak_flops and self._knows_flops else None,
            peak_bytes_per_s=device.peak_bytes_per_s * num if device.peak_bytes_per_s and self._knows_bytes else None,
            dtype=device.dtype,
            peak_source=device.peak_source,
        )


def _as_exported(
    done: Mapping[Phase, PhaseWork], role: Role, exported: Counters, num_devices: int
) -> Mapping[Phase, PhaseWork]:
    """The engine's own estimate, where a role is one phase; a mixed engine's number is both phases in one, so none."""
    phase = {Role.PREFILL: Phase.PREFILL, Role.DECODE: Phase.DECODE}.get(role)
    if phase is None:
        return done
    flops, num_bytes = exported.exported_flops, exported.exported_bytes
    work = replace(
        done[phase],
        flops=None if flops is None else flops * num_devices,
        bytes=None if num_bytes is None else num_bytes * num_devices,
    )
    other = {
        each: replace(one, flops=None if flops is None else 0.0, bytes=None if num_bytes is None else 0.0)
        for each, one in done.items()
    }
    return {**other, phase: work}


def _added(total: float | None, grown_per_device: float | None, num_devices: int) -> float | None:
    return total if grown_per_device is None else (total or 0.0) + grown_per_device * num_devices


def _absent(page: EnginePage) -> tuple[str, ...]:
    """What this page does not have: counts, and how long steps took; KV without a total is unknown already."""
    counts = tuple(name for name in ("num_running", "num_waiting") if getattr(page.gauges, name) is None)
    is_timed = page.counters.prefill_busy_s is not None or page.counters.decode_busy_s is not None
    return counts if is_timed else (*counts, "busy_s")


def _from_zero(page: EnginePage) -> EnginePage:
    """The page of an engine that has just started and exports what this one does."""
    known = {f.name: None if getattr(page.counters, f.name) is None else 0.0 for f in fields(Counters)}
    return EnginePage(model_id=page.model_id, counters=Counters(**known))


def _spread(into: dict[int, int], before: Buckets, now: Buckets) -> None:
    """Count what was observed between two histograms in our buckets: evenly over each bucket of theirs, as Prometheus
    interpolates. So a percentile of it is as exact as their bounds, not as ours."""
    for low, high, count in per_bucket(before, now):
        top = low if math.isinf(high) else high
        num = round(count)
        places = min(num, MAX_PLACES)
        for place in range(places):
            share = num * (place + 1) // places - num * place // places
            bucket = bucket_of(low + (top - low) * (place + 0.5) / places)
            into[bucket] = into.get(bucket, 0) + share
