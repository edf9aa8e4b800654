"""A worker whose steps take the time that a cost model says: real core, blocks, sockets and handoffs, no computing.

Decided here: when a modelled step or copy ends. Not here: how long it takes (`engine.cost_model`; copies that use one
worker's link at the same time: `engine.shared_link`). Many share one event loop. A step begins where the one before was
planned to end, not where the timer fired, so lateness of the loop does not add up. Always marked simulated.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from engine.connection import bind_loopback, bound_address
from engine.core import PullPlan
from engine.cost_model import CostModel, SeededTokens, paced_result
from engine.device_catalogue import cost_model, model_spec, paced_device
from engine.host import host_id
from engine.readings import DeviceInfo
from engine.seeded_pool import SeededPool
from engine.shared_link import PacedLink
from engine.types import KvLayout, StepPlan, StepResult
from engine.worker_config import WorkerConfig
from engine.worker_parts import Loaded, close_meter, make_core, make_meter, make_server, num_kv_blocks

#: An idle worker wakes at least this often, to let leases and deadlines expire and to show that it lives.
IDLE_WAKE_S = 0.25
#: A loop that is later than this (a stopped process, a starved machine) does not catch up: its steps are late for good.
MAX_LAG_S = 0.1
log = logging.getLogger(__name__)


class PacedWorker:
    """One modelled worker on the running loop."""

    def __init__(self, config: WorkerConfig, executor: Executor, cost: CostModel | None = None) -> None:
        """`cost`: of a device that no catalogue has; `config.device` then says its peaks."""
        self.config = config
        self.has_ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._sock = bind_loopback(config.host)
        self.address = bound_address(self._sock)
        self._cost = scaled(cost or cost_model(config.paced_device, config.paced_model), config.speed)
        self._tokens = SeededTokens(self._cost.model.vocab_size, self._cost.model.eos_token_ids)
        self._meter = make_meter(config, self.address, _device(config), self._cost.model)
        loaded = self._load()
        self._core = make_core(config, loaded, self._meter, self.address)
        self._server = make_server(
            config,
            loaded,
            self._core,
            threading.Lock(),
            executor,
            on_work=self._wake,
            on_stopped=self.has_ended.set,
            take_in=self._take_in,
            give_out=self._give_out,
            verify=self._verify,
        )
        self._link_in = PacedLink(self._cost.handoff_bytes_per_s)
        self._link_out = PacedLink(self._cost.handoff_bytes_per_s)
        self._timer: asyncio.TimerHandle | None = None
        self._is_stepping = False

    def _load(self) -> Loaded:
        config, cost = self.config, self._cost
        layout = seeded_layout(config, cost)
        num_blocks = num_kv_blocks(config, config.kv_bytes, config.block_tokens * cost.work.kv_token_bytes)
        self._pool = SeededPool.for_worker(
            Path(config.shm_dir), config.worker_id, config.epoch, layout.block_bytes, num_blocks
        )
        return Loaded(
            model=cost.model,
            layout=layout,
            store=self._pool,
            weight_dtype_bytes=cost.weight_dtype_bytes,
            kv_dtype_bytes=cost.kv_dtype_bytes,
            simulated=True,
        )

    async def start(self) -> None:
        await self._server.start(self._sock, self.config.fleet_token)
        self._begin(time.monotonic())

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_stepping = True  # nothing begins any more
        await self._server.close()
        self._pool.close()
        close_meter(self._meter, self._core)

    # --- steps ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._is_stepping:
            self._begin(time.monotonic())

    def _begin(self, start_s: float) -> None:
        """Plan the step that begins at `start_s`, and wait until it would have ended; or idle."""
        if self._timer is not None:
            self._timer.cancel()
        now_s = time.monotonic()
        plan = self._core.next_step(now_s)
        if plan is None:
            self._is_stepping = False
            self._timer = self._loop.call_later(IDLE_WAKE_S, self._idle)
            return
        self._is_stepping = True
        result = paced_result(plan, self._cost, self._tokens, start_s)
        self._timer = self._loop.call_later(result.timings[-1].end_s - now_s, self._end, plan, result)

    def _idle(self) -> None:
        self._begin(time.monotonic())
        self._server.publish()

    def _end(self, plan: StepPlan, result: StepResult) -> None:
        try:
            self._finish(plan, result)
        except Exception as error:  # the worker must say why it stands still, whatever it was
            log.exception("worker %s failed", self.config.worker_id)
            self._core.fail(f"{type(error).__name__}: {error}", time.monotonic())
        self._server.publish()

    def _finish(self, plan: StepPlan, result: StepResult) -> None:
        self._pool.compute(plan)
        now_s, end_s = time.monotonic(), result.timings[-1].end_s
        self._server.post(self._core.finish_step(plan, result, now_s))
        self._begin(end_s if now_s - end_s < MAX_LAG_S else now_s)

    # --- copies --------------------------------------------------------------------------------------------------

    async def _take_in(self, num_blocks: int) -> None:
        """A copy that comes: set up, then carried beside all others that come here."""
        await asyncio.sleep(self._cost.handoff_overhead_s)
        await self._link_in.carry(self._modelled_bytes(num_blocks))

    async def _give_out(self, num_blocks: int) -> None:
        await self._link_out.carry(self._modelled_bytes(num_blocks))

    def _modelled_bytes(self, num_blocks: int) -> float:
        return num_blocks * self.config.block_tokens * self._cost.work.kv_token_bytes

    def _verify(self, plan: PullPlan) -> str:
        """Does our copy hold the prompt? "" or what is wrong."""
        block_tokens = self.config.block_tokens
        wrong = self._pool.first_wrong(plan.own_blocks, plan.token_ids, plan.first_block_to_copy * block_tokens)
        return "" if wrong is None else f"the copied KV does not hold the prompt's token at position {wrong}"


def seeded_layout(config: WorkerConfig, cost: CostModel) -> KvLayout:
    """The modelled model's layout, of which 8 bytes a token are really kept."""
    model = cost.model
    return KvLayout(
        model_id=config.model_id,
        weights_digest=f"paced:{config.paced_model}",
        dtype="seeded",
        num_layers=model.num_layers,
        block_tokens=config.block_tokens,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
    )


def scaled(cost: CostModel, speed: float) -> CostModel:
    """The same device and model, `speed` times as fast in everything."""
    if speed == 1.0:
        return cost
    return dataclasses.replace(
        cost,
        peak_flops=cost.peak_flops * speed,
        peak_bytes_per_s=cost.peak_bytes_per_s * speed,
        handoff_bytes_per_s=cost.handoff_bytes_per_s * speed,
        prefill_overhead_s=cost.prefill_overhead_s / speed,
        decode_overhead_s=cost.decode_overhead_s / speed,
        handoff_overhead_s=cost.handoff_overhead_s / speed,
    )


def _device(config: WorkerConfig) -> DeviceInfo:
    """The modelled device. At another speed its peaks count as much more: utilization stays a fraction of them."""
    if config.device is not None:
        return config.device
    dtype = model_spec(config.paced_model).dtype
    device = paced_device(config.paced_device, dtype=dtype, index=config.device_index, host_id=host_id())
    if config.speed == 1.0 or device.peak_flops is None or device.peak_bytes_per_s is None:
        return device
    return msgspec.structs.replace(
        device,
        peak_flops=device.peak_flops * config.speed,
        peak_bytes_per_s=device.peak_bytes_per_s * config.speed,
        peak_source="assumed",
    )
