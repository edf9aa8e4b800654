"""A worker that computes: an engine thread that runs steps of a model, beside the process's I/O thread.

Decided here: when a step runs, what wakes the engine, and what a failure to load or to compute does to the worker (it
stays, FAILED, with one line that says why). Not here: what a step holds (`engine.core`) and how it is computed
(`engine.runner`).

The core's lock is held for microseconds around its calls and never during a forward. Only the engine thread is niced:
tokens and orders travel at normal priority.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

from engine.connection import bind_loopback, bound_address
from engine.core import EngineCore
from engine.devices import cpu_device, cuda_device
from engine.errors import EngineError
from engine.host import host_id
from engine.model_config import read_model_config
from engine.pool_file import KvStore
from engine.readings import DeviceInfo
from engine.server import WorkerServer
from engine.step_watch import StepWatch
from engine.thread_progress import of_this_thread
from engine.types import ModelConfig, Role, StepPlan, StepResult, WorkerState
from engine.worker_config import WorkerConfig
from engine.worker_parts import Loaded, close_meter, make_core, make_meter, make_server

#: An idle engine wakes at least this often, to let leases and deadlines expire and to show that it lives.
IDLE_WAKE_S = 0.25
_JOIN_S = 5.0
log = logging.getLogger(__name__)


class Runner(Protocol):
    """What computes a step: `engine.runner.TorchRunner`."""

    def run(self, plan: StepPlan) -> StepResult:
        """Every token of the plan is fed, and sampled where the plan asks for it."""


class RealWorker:
    """One model on one device. The constructor reserves the address and the meter page; `start` begins to load."""

    def __init__(self, config: WorkerConfig, executor: Executor) -> None:
        self.config = config
        self.has_ended = asyncio.Event()
        self._executor = executor
        self._sock = bind_loopback(config.host)
        self.address = bound_address(self._sock)
        model, self._problem = _read_config(config)
        self._meter = make_meter(config, self.address, _device(config), model)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._has_news = False  # guarded by the lock: something outside a step may have made work
        self._stopping = False  # guarded by the lock
        self._thread = threading.Thread(target=self._main, name=f"engine-{config.worker_id}", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._store: KvStore | None = None
        self._core: EngineCore | None = None
        self._server: WorkerServer | None = None

    async def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, _JOIN_S)
        if self._server is not None:
            await self._server.close()
        if self._store is not None:
            self._store.close()
        self._sock.close()
        close_meter(self._meter, self._core)

    # --- the engine thread ---------------------------------------------------------------------------------------

    def _main(self) -> None:
        core: EngineCore | None = None
        try:
            os.nice(self.config.nice)  # of this thread alone, on Linux
            if self._problem is not None:
                raise self._problem
            from engine.model_start import load  # brings torch, which takes seconds: the meter page is there before it

            runner, loaded = load(self.config)
            self._store = loaded.store
            watch = StepWatch(of_this_thread() if self.config.kind == "cpu" else None)
            core = self._core = make_core(self.config, loaded, self._meter, self.address, watch)
            self._serve(core, loaded)
            self._steps(core, runner)
        except Exception as error:  # the worker must say why it cannot serve, whatever it was
            if not self._stopping:
                self._fail(core, error)

    def _serve(self, core: EngineCore, loaded: Loaded) -> None:
        """Open the wire, on the I/O thread's loop, and wait until it is open."""
        server = make_server(
            self.config,
            loaded,
            core,
            self._lock,
            self._executor,
            on_work=self._notify,
            on_stopped=self.has_ended.set,
        )
        with self._lock:
            if self._stopping:
                return
            self._server = server
        asyncio.run_coroutine_threadsafe(server.start(self._sock, self.config.fleet_token), self._loop).result()

    def _notify(self) -> None:
        with self._wake:
            self._has_news = True
            self._wake.notify()

    def _steps(self, core: EngineCore, runner: Runner) -> None:
        """Schedule, run, postprocess, until told to stop."""
        server = self._server
        while server is not None:
            with self._wake:
                if self._stopping:
                    return
                self._has_news = False
                plan = core.next_step(time.monotonic())
                server.post(core.take_outbox())
            if plan is None:
                self._loop.call_soon_threadsafe(server.publish)
                with self._wake:
                    self._wake.wait_for(lambda: self._has_news or self._stopping, IDLE_WAKE_S)
                continue
            result = runner.run(plan)
            with self._lock:
                server.post(core.finish_step(plan, result, time.monotonic()))
            self._loop.call_soon_threadsafe(server.publish)

    def _fail(self, core: EngineCore | None, error: Exception) -> None:
        """FAILED, with one line: requests end with an error, peers and the meter are told, the process stays."""
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, EngineError) else str(error)
        reason = reason.splitlines()[0] if reason else type(error).__name__
        log.error("worker %s failed: %s", self.config.worker_id, reason, exc_info=not isinstance(error, EngineError))
        if core is None:
            self._meter.set_state(Role.UNASSIGNED, WorkerState.FAILED, 0, reason, time.time())
            return
        with self._lock:
            core.fail(reason, time.monotonic())
        if self._server is not None:
            self._loop.call_soon_threadsafe(self._server.publish)


def _read_config(config: WorkerConfig) -> tuple[ModelConfig | None, EngineError | None]:
    """The model's shape, or why it cannot be had: the meter page is there before the model is."""
    try:
        return read_model_config(Path(config.model_dir), config.model_id), None
    except EngineError as error:
        return None, error


def _device(config: WorkerConfig) -> DeviceInfo:
    """What the orchestrator measured before it started the workers, else what can be seen from here."""
    if config.device is not None:
        return config.device
    if config.kind == "cpu":
        return cpu_device(host_id(), None)
    return cuda_device(config.device_index, host_id=host_id())
