"""What a real and a paced worker have in common: how their parts are put together. Nothing is decided here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from engine.core import CoreConfig, EngineCore, PullPlan
from engine.errors import WorkerConfigError
from engine.handoff import Carry, HandoffAsker
from engine.host import host_id
from engine.meter import Meter
from engine.pool_file import KvStore
from engine.readings import DeviceInfo
from engine.server import WorkerIdentity, WorkerServer
from engine.step_watch import StepWatch
from engine.types import KvLayout, ModelConfig, WorkerState
from engine.wire import Hello
from engine.worker_config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that is ready to be served from a pool."""

    model: ModelConfig
    layout: KvLayout
    store: KvStore
    weight_dtype_bytes: float
    kv_dtype_bytes: float
    simulated: bool


def make_meter(config: WorkerConfig, address: str, device: DeviceInfo, model: ModelConfig | None) -> Meter:
    """The meter page, in state STARTING: from here on the worker can be seen."""
    shm_dir = Path(config.shm_dir)
    shm_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Meter.create(
        shm_dir / f"{config.worker_id}.meter",
        worker_id=config.worker_id,
        epoch=config.epoch,
        model_id=config.model_id,
        address=address,
        simulated=config.kind == "paced",
        device=device,
        host_id=host_id(),
        max_context=model.max_context if model is not None else 0,
    )


def close_meter(meter: Meter, core: EngineCore | None) -> None:
    """The page's last word is STOPPED, unless the worker had failed before: then the reason stays.

    Requests are not told: their gateways see the connection end, and take them to another worker.
    """
    if core is not None and core.state is not WorkerState.FAILED:
        meter.set_state(core.role, WorkerState.STOPPED, core.fence, "stopped in order", time.time())
    meter.close()


def num_kv_blocks(config: WorkerConfig, kv_bytes: float, block_bytes: float) -> int:
    """Whole blocks in `kv_bytes`. Raises WorkerConfigError when not even one fits."""
    num_blocks = int(kv_bytes // block_bytes)
    if num_blocks < 1:
        raise WorkerConfigError(
            f"worker {config.worker_id}: kv_bytes is {kv_bytes:.0f}, one KV block takes {block_bytes:.0f} bytes"
        )
    return num_blocks


def make_core(
    config: WorkerConfig, loaded: Loaded, meter: Meter, address: str, watch: StepWatch | None = None
) -> EngineCore:
    core_config = CoreConfig(
        model=loaded.model,
        layout=loaded.layout,
        num_blocks=loaded.store.num_blocks,
        worker_id=config.worker_id,
        epoch=config.epoch,
        max_batch=config.max_batch,
        prefill_chunk_tokens=config.prefill_chunk_tokens,
        max_queue=config.max_queue,
        lease_s=config.lease_s,
        kv_dtype_bytes=loaded.kv_dtype_bytes,
        weight_dtype_bytes=loaded.weight_dtype_bytes,
        unix_offset_s=time.time() - time.monotonic(),
        address=address,
        pool_path=loaded.store.path,
        host_id=host_id(),
    )
    return EngineCore(config=core_config, meter=meter, watch=watch)


def make_server(
    config: WorkerConfig,
    loaded: Loaded,
    core: EngineCore,
    lock: threading.Lock,
    executor: Executor,
    *,
    on_work: Callable[[], None],
    on_stopped: Callable[[], None],
    take_in: Carry | None = None,
    give_out: Carry | None = None,
    verify: Callable[[PullPlan], str] | None = None,
) -> WorkerServer:
    asker = HandoffAsker(
        hello=Hello(f"{config.worker_id}/{config.epoch}", "worker", config.fleet_token),
        layout=loaded.layout,
        store=loaded.store,
        own_host_id=host_id(),
        executor=executor,
        wish=config.handoff_transport,
        carry=take_in,
    )
    identity = WorkerIdentity(
        worker_id=config.worker_id,
        epoch=config.epoch,
        model_id=config.model_id,
        layout=loaded.layout,
        max_context=loaded.model.max_context,
        simulated=loaded.simulated,
    )
    return WorkerServer(
        identity=identity,
        core=core,
        lock=lock,
        store=loaded.store,
        asker=asker,
        clock=time.monotonic,
        on_work=on_work,
        verify=verify,
        on_stopped=on_stopped,
        give_out=give_out,
    )
