"""Worker hosts in processes of their own, and the configs of tests."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import msgspec
from worker_client import TOKEN

from engine import paced
from engine.types import StepPlan, StepResult
from engine.worker import WorkerConfig, WorkerHost

#: Hosts are forked from one process that has loaded torch and has done nothing with it: none of them imports it again.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["engine.real", "engine.model_start", "engine.worker", "engine.paced"])


def paced_config(shm_dir: Path, worker_id: str = "w-0", **changes: Any) -> WorkerConfig:
    """A modelled 70B on an H100, at a hundred times its speed."""
    values: dict[str, Any] = {
        "worker_id": worker_id,
        "epoch": 1,
        "kind": "paced",
        "shm_dir": str(shm_dir),
        "fleet_token": TOKEN,
        "model_id": "llama-70b",
        "paced_device": "h100-sxm-80gb",
        "paced_model": "llama-3.1-70b-fp8",
        "kv_bytes": 4 * 2**30,
        "prefill_chunk_tokens": 512,
        "speed": 100.0,
    }
    return WorkerConfig(**{**values, **changes})


def real_config(shm_dir: Path, model_dir: Path | str, worker_id: str = "w-0", **changes: Any) -> WorkerConfig:
    """The tiny model on the CPU, exact."""
    values: dict[str, Any] = {
        "worker_id": worker_id,
        "epoch": 1,
        "kind": "cpu",
        "shm_dir": str(shm_dir),
        "fleet_token": TOKEN,
        "model_id": "tiny",
        "model_dir": str(model_dir),
        "kv_bytes": 4 * 2**20,
        "prefill_chunk_tokens": 32,
    }
    return WorkerConfig(**{**values, **changes})


class _Hanging:
    """A real worker's runner whose next step, once the process was told to (SIGUSR1), does not end before SIGUSR2."""

    def __init__(self, runner: Any, held: threading.Event) -> None:
        self._runner = runner
        self._goes_on = held

    def run(self, plan: StepPlan) -> StepResult:
        self._goes_on.wait()
        result: StepResult = self._runner.run(plan)
        return result


def _can_hang(kind: str) -> None:
    """Let this process's steps be held from outside; in tests only, the product has no such door."""
    goes_on = threading.Event()
    goes_on.set()
    signal.signal(signal.SIGUSR1, lambda *_: goes_on.clear())
    signal.signal(signal.SIGUSR2, lambda *_: goes_on.set())
    if kind != "paced":
        _can_hang_in_a_forward(goes_on)
    modelled = paced.paced_result

    def result(*arguments: Any) -> StepResult:
        found = modelled(*arguments)
        if goes_on.is_set():
            return found
        last = msgspec.structs.replace(found.timings[-1], end_s=found.timings[-1].end_s + 3600.0)
        return msgspec.structs.replace(found, timings=(*found.timings[:-1], last))

    paced.paced_result = result


def _can_hang_in_a_forward(goes_on: threading.Event) -> None:
    from engine import model_start  # brings torch

    load = model_start.load

    def loaded(config: WorkerConfig) -> tuple[Any, Any]:
        runner, parts = load(config)
        return _Hanging(runner, goes_on), parts

    model_start.load = loaded


def _run(configs: Sequence[WorkerConfig], pipe: Pipe) -> None:
    _can_hang(configs[0].kind)
    host = WorkerHost(configs)
    pipe.send(host.start())
    with contextlib.suppress(EOFError):
        pipe.recv()  # until the test lets go of its end
    pipe.send(host.stop())


class WorkerProcess:
    """One host process; ends with the test, by its own id."""

    def __init__(self, *configs: WorkerConfig) -> None:
        self._pipe, child = _context.Pipe()
        self.process = _context.Process(target=_run, args=(configs, child), daemon=True)
        self.process.start()
        child.close()
        self.addresses: list[str] = self._pipe.recv()

    def pause(self) -> None:
        """Returns when each of its threads stands: one may run on for a moment on another core."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        while {each.read_text().rpartition(") ")[2][0] for each in threads.glob("*/stat")} != {"T"}:
            time.sleep(0.001)

    def resume(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def hang(self) -> None:
        """From its next step on; its event loop lives."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGUSR1)

    def unhang(self) -> None:
        """A real worker's step goes on where it stood; a paced one's does not."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGUSR2)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def stop(self) -> bool:
        """Clean end; True when the host had ended within its bound."""
        if not self.process.is_alive():
            return False
        self.resume()
        self._pipe.send(None)
        stopped: bool = self._pipe.recv()
        self.process.join()
        return stopped


@contextlib.contextmanager
def running(*configs: WorkerConfig) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(*configs)
    try:
        yield worker
    finally:
        if worker.process.is_alive():
            worker.kill()
