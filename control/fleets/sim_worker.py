"""One simulated worker: an engine core and its meter, stepped by a cost model on simulated time. No I/O.

The core is the one that real workers run, so scheduling, KV, leases, flips and the meter are not imitated: only the
time of a step is modelled and its tokens are seeded. One clock stands for both Unix and monotonic time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from control.fleets.sim_link import SimLink
from engine.core import CoreConfig, EngineCore, Outbox
from engine.cost_model import CostModel, SeededTokens, paced_result
from engine.meter import Clock, Meter
from engine.meter_reader import MeterReader
from engine.readings import DeviceInfo, MeterReading
from engine.types import KvLayout, StepPlan, StepResult

DEVICES_PER_HOST: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SimMachine:
    """What all workers of a simulated fleet have in common."""

    device: DeviceInfo
    cost: CostModel
    num_blocks: int
    block_tokens: int
    max_batch: int
    prefill_chunk_tokens: int
    max_queue: int
    lease_s: float

    def at_slot(self, index: int) -> SimMachine:
        """The machine of worker number `index`: one device each, eight to a host."""
        host, device = divmod(index, DEVICES_PER_HOST)
        return replace(self, device=msgspec.structs.replace(self.device, index=device, host_id=f"sim-host-{host}"))

    @property
    def layout(self) -> KvLayout:
        model = self.cost.model
        return KvLayout(
            model_id=model.model_id,
            weights_digest="simulated",
            dtype="seeded",
            num_layers=model.num_layers,
            block_tokens=self.block_tokens,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
        )

    def core_config(self, worker_id: str, epoch: int) -> CoreConfig:
        return CoreConfig(
            model=self.cost.model,
            layout=self.layout,
            num_blocks=self.num_blocks,
            worker_id=worker_id,
            epoch=epoch,
            max_batch=self.max_batch,
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            max_queue=self.max_queue,
            lease_s=self.lease_s,
            kv_dtype_bytes=self.cost.kv_dtype_bytes,
            weight_dtype_bytes=self.cost.weight_dtype_bytes,
            address=f"sim:{worker_id}",
        )


class SimWorker:
    """A core, its meter and the step that is running. `at` schedules a call on the fleet's simulated clock.

    `kick` after every call to `core`: it delivers what the core has to tell, and begins a step.
    """

    def __init__(
        self,
        worker_id: str,
        epoch: int,
        machine: SimMachine,
        clock: Callable[[], float],
        at: Callable[[float, Callable[[], None]], None],
        deliver: Callable[[SimWorker, Outbox], None],
        on_status: Callable[[SimWorker], None],
    ) -> None:
        self.worker_id = worker_id
        self.epoch = epoch
        self.machine = machine
        self._clock = clock
        self._at = at
        self._deliver = deliver
        self._on_status = on_status
        self.has_ended = False  # its process was killed: whatever was under way comes to nothing
        self.stands = False  # its process is stopped: a step that is due waits until it goes on
        self._due: tuple[StepPlan, StepResult] | None = None
        self.leaves_decode = False  # by its own word: what decodes here may be moved
        self.step_s: float | None = None  # of its last step
        rate = machine.cost.handoff_bytes_per_s
        self.link_in, self.link_out = SimLink(rate, clock, at), SimLink(rate, clock, at)
        self._cursor = 0
        self._timer_s: float | None = None
        self._tokens = SeededTokens(machine.cost.model.vocab_size, avoid=frozenset(machine.cost.model.eos_token_ids))
        self.meter = Meter.create(
            None,
            worker_id=worker_id,
            epoch=self.epoch,
            model_id=machine.cost.model.model_id,
            address=f"sim:{worker_id}",
            simulated=True,
            device=machine.device,
            host_id=machine.device.host_id,
            max_context=machine.cost.model.max_context,
            clock=Clock(monotonic=clock, unix=clock),
        )
        self._reader = MeterReader(self.meter)
        self.core = EngineCore(config=machine.core_config(worker_id, self.epoch), meter=self.meter)

    def kick(self) -> None:
        """Hand out what there is to tell, and begin a step unless one is running."""
        self._hand_out(self.core.take_outbox())
        self._tell_status()
        if self.core.step_in_flight or self.has_ended or self.stands:
            return
        now_s = self._clock()
        plan = self.core.next_step(now_s)
        if plan is not None:
            result = paced_result(plan, self.machine.cost, self._tokens, now_s)
            self.step_s = result.timings[-1].end_s - now_s
            self._at(result.timings[-1].end_s, lambda: self._finish(plan, result))
        else:
            self._set_timer()
        self._hand_out(self.core.take_outbox())
        self._tell_status()

    def _tell_status(self) -> None:
        status = self.core.status_changed()
        if status is not None:
            self.leaves_decode = status.leaves_decode
            self._on_status(self)

    def _finish(self, plan: StepPlan, result: StepResult) -> None:
        if self.has_ended:
            return
        if self.stands:
            self._due = (plan, result)
            return
        self._hand_out(self.core.finish_step(plan, result, self._clock()))
        self.kick()

    def end(self) -> None:
        """Its process is killed: its page stays, and says so."""
        self.has_ended = True
        self.meter.close()

    def go_on(self) -> None:
        """The process is continued: what was due while it stood is done now."""
        self.stands = False
        due, self._due = self._due, None
        if due is not None:
            self._finish(*due)
        else:
            self.kick()

    def _set_timer(self) -> None:
        """An idle worker still has leases and reservations that end by time."""
        timer_s = self.core.next_timer_s()
        if timer_s is None or (self._timer_s is not None and self._timer_s <= timer_s):
            return
        self._timer_s = timer_s
        self._at(timer_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_s = None
        self.kick()

    def _hand_out(self, outboxes: dict[str, Outbox]) -> None:
        for outbox in outboxes.values():  # one peer: the fleet's own gateway
            self._deliver(self, outbox)

    def read(self) -> MeterReading:
        """The meter page, with the steps since the last read."""
        if not (self.stands or self.has_ended):
            self.meter.heartbeat(self._clock())
        reading = self._reader.read(self._cursor)
        self._cursor = reading.next_cursor
        return reading
