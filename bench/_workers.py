"""Worker processes of a benchmark that kills them: restarted in a moment, from spares that have all loaded already.

A process can be told to hang in its next step while its event loop lives; the product has no such door, it is made
here, around the runner (tiny real workers) or the cost model (paced ones).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgspec

from engine.types import StepPlan, StepResult
from engine.worker import WorkerHost
from engine.worker_config import WorkerConfig

_context = multiprocessing.get_context("forkserver")


class Spares:
    """Processes that wait to be told which worker they are, forked from one that has loaded torch: a restart takes no
    import, and does not take the cores away from what is measured."""

    def __init__(self, num: int, kind: str) -> None:
        _context.set_forkserver_preload(["engine.paced"] if kind == "paced" else ["engine.real", "engine.model_start"])
        self._waiting = [_spawn() for _ in range(num)]

    def take(self) -> tuple[Any, Any]:
        """The oldest, and a new one behind it."""
        self._waiting.append(_spawn())
        return self._waiting.pop(0)

    def end(self) -> None:
        for process, pipe in self._waiting:
            process.kill()
            process.join()
            pipe.close()
        self._waiting.clear()


def _spawn() -> tuple[Any, Any]:
    pipe, child = _context.Pipe()
    process = _context.Process(target=_run, args=(child,), daemon=True)
    process.start()
    child.close()
    return process, pipe


class Worker:
    """One slot: its present process, and the next one under the next epoch."""

    def __init__(self, config: WorkerConfig, spares: Spares) -> None:
        self.config = config
        self._spares = spares
        self.address = ""
        self.is_stopped = False
        self._process: Any = None
        self._pipe: Any = None

    @property
    def worker_id(self) -> str:
        return self.config.worker_id

    @property
    def pid(self) -> int:
        pid: int = self._process.pid
        return pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def start(self) -> None:
        """A new process; returns with its address, before its model is loaded."""
        self.config = replace(self.config, epoch=self.config.epoch + 1)
        self._process, self._pipe = self._spares.take()
        self._pipe.send(self.config)
        self.address = self._pipe.recv()
        self.is_stopped = False

    def fail(self, how: str) -> None:
        """kill | stop | hang"""
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "hang": signal.SIGUSR1}[how]
        self.is_stopped = how != "kill"
        os.kill(self.pid, number)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()


class _Hanging:
    """A runner whose next step, once told to, never ends."""

    def __init__(self, runner: Any, goes_on: threading.Event) -> None:
        self._runner = runner
        self._goes_on = goes_on

    def run(self, plan: StepPlan) -> StepResult:
        self._goes_on.wait()
        result: StepResult = self._runner.run(plan)
        return result


def _run(pipe: Pipe) -> None:
    config: WorkerConfig = pipe.recv()
    goes_on = threading.Event()
    goes_on.set()
    signal.signal(signal.SIGUSR1, lambda *_: goes_on.clear())
    _hold_steps(config.kind, goes_on)
    host = WorkerHost([config])
    pipe.send(host.start()[0])
    with contextlib.suppress(EOFError):
        pipe.recv()
    host.stop()


def _hold_steps(kind: str, goes_on: threading.Event) -> None:
    if kind == "paced":
        from engine import paced

        modelled = paced.paced_result

        def result(*arguments: Any) -> StepResult:
            found = modelled(*arguments)
            if goes_on.is_set():
                return found
            last = msgspec.structs.replace(found.timings[-1], end_s=time.monotonic() + 3600.0)
            return msgspec.structs.replace(found, timings=(*found.timings[:-1], last))

        paced.paced_result = result
        return
    from engine import model_start

    load = model_start.load

    def loaded(own: WorkerConfig) -> tuple[Any, Any]:
        runner, parts = load(own)
        return _Hanging(runner, goes_on), parts

    model_start.load = loaded  # type: ignore[assignment]
