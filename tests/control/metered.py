"""Workers whose meters run on simulated time, for tests of what is made of readings."""

from __future__ import annotations

from typing import Any

from control.accounting import Accountant
from control.fleets.base import Observation, WorkerLife
from control.points import Ingested
from control.types.workers import Phase, Role, WorkerState
from engine.meter import Clock, Meter, MeterReader
from engine.quanta import SECONDS, on_grid
from engine.readings import DeviceInfo, DeviceReading
from engine.types import PhaseTiming

GPU = DeviceInfo(name="gpu", kind="paced", peak_flops=1000.0, peak_bytes_per_s=100.0, peak_source="datasheet")
CPU = DeviceInfo(
    name="cpu", kind="cpu", ceiling_flops=1000.0, ceiling_bytes_per_s=100.0, thread_flops=500.0, thread_bytes_per_s=80.0
)
T0 = 300 * 3600.0  # at the start of a bucket of every step


class FakeWorker:
    """A real in-memory meter under simulated time; 0 s is T0."""

    def __init__(
        self, worker_id: str = "w0", *, device: DeviceInfo = GPU, epoch: int = 1, at_s: float = 0.0, **more: Any
    ) -> None:
        self.now_s = self.born_s = at_s
        self.set_by_s = 0.0  # somebody set its host's clock
        self.meter = Meter.create(
            None,
            worker_id=worker_id,
            epoch=epoch,
            model_id="tiny",
            address="",
            simulated=False,
            device=device,
            host_id="h0",
            max_context=128,
            clock=Clock(monotonic=lambda: self.now_s, unix=lambda: self.unix_s),
            **more,
        )
        self.reader = MeterReader(self.meter)
        self.cursor = 0
        self.place(Role.DECODE)

    @property
    def unix_s(self) -> float:
        return self.now_s + T0 + self.set_by_s

    @property
    def lived_s(self) -> float:
        return on_grid(self.now_s, SECONDS) - on_grid(self.born_s, SECONDS)

    def place(self, role: Role) -> None:
        self.role = role
        self.meter.set_state(role, WorkerState.READY, 1, "placed", self.unix_s)

    def step(
        self, start: float, end: float, *, role: Role = Role.DECODE, phase: Phase = Phase.DECODE, **work: float
    ) -> None:
        values = {"flops": 0.0, "bytes": 0.0, "tokens": 0, "cpu_s": end - start} | work
        timing = PhaseTiming(phase, start, end, values["cpu_s"])
        self.meter.record(
            role,
            timing,
            tokens=int(values["tokens"]),
            context_tokens=0,
            batch=1,
            flops=values["flops"],
            bytes=values["bytes"],
        )

    def read(self, now_s: float) -> Any:
        self.now_s = now_s
        self.meter.heartbeat(now_s)
        reading = self.reader.read(self.cursor)
        self.cursor = reading.next_cursor
        return reading


def observe(
    accountant: Accountant,
    now_s: float,
    *workers: FakeWorker,
    devices: tuple[DeviceReading, ...] = (),
    lives: tuple[WorkerLife, ...] = (),
) -> Ingested:
    readings = tuple(worker.read(now_s) for worker in workers)
    return accountant.ingest(Observation(at_unix_s=T0 + now_s, readings=readings, devices=devices, lives=lives))
