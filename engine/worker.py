"""A worker process: one I/O thread for all of its workers, and an engine thread for each worker that really computes.

Decided here: how a process of workers starts and stops. Not here: what a worker does (`engine.real`, `engine.paced`).
The orchestrator builds the configs and calls `start`, which returns the addresses at once; loading goes on behind it
and shows in each worker's meter page (STARTING, then UNASSIGNED, or FAILED with the reason while the process stays).

    host = WorkerHost([WorkerConfig(...), ...])
    addresses = host.start()
    ...
    host.stop()
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from engine.errors import WorkerConfigError
from engine.worker_config import WorkerConfig

__all__ = ["WorkerConfig", "WorkerHost"]

log = logging.getLogger(__name__)


class Worker(Protocol):
    """One worker on the host's loop."""

    address: str
    has_ended: asyncio.Event  # it was ordered to stop

    async def start(self) -> None:
        """Begin to load; returns before that has ended."""

    async def stop(self) -> None:
        """End the engine, close connections, unlink the pool, leave the meter page."""


class WorkerHost:
    """The workers of one process. Paced workers share the process; a real worker has one to itself."""

    def __init__(self, configs: Sequence[WorkerConfig]) -> None:
        if not configs:
            raise WorkerConfigError("a worker host needs at least one worker")
        kinds = {config.kind for config in configs}
        if len(configs) > 1 and kinds != {"paced"}:
            raise WorkerConfigError(f"only paced workers may share a process, not {len(configs)} of {sorted(kinds)}")
        names = [config.worker_id for config in configs]
        if len(set(names)) != len(names):
            raise WorkerConfigError(f"worker ids must differ: {names}")
        self._configs = tuple(configs)
        self.addresses: list[str] = []
        self._started: Future[list[str]] = Future()
        self._thread = threading.Thread(target=self._main, name="worker-io", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start(self) -> list[str]:
        """Start the I/O thread; returns host:port of each worker, in the order of the configs."""
        self._thread.start()
        self.addresses = self._started.result()
        return self.addresses

    def stop(self, timeout_s: float = 10.0) -> bool:
        """End all workers; True when they have ended within the bound. May be called twice."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Block until `stop` has ended everything."""
        self._thread.join()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except Exception as error:
            log.exception("worker host ended by an error")
            if not self._started.done():
                self._started.set_exception(error)

    async def _run(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="kv-copy") as executor:
            workers: list[Worker] = []
            try:
                for config in self._configs:
                    workers.append(_make(config, executor))
                    await workers[-1].start()
                self._started.set_result([worker.address for worker in workers])
                await _first(self._stopping, *(worker.has_ended for worker in workers))
            finally:
                await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True)


async def _first(told: asyncio.Event, *ended: asyncio.Event) -> None:
    """Wait until we are told to stop, or every worker was ordered to."""

    async def all_ended() -> None:
        for event in ended:
            await event.wait()

    waits = [asyncio.create_task(all_ended()), asyncio.create_task(_set(told))]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _make(config: WorkerConfig, executor: ThreadPoolExecutor) -> Worker:
    """Each kind loads its own module: a paced worker needs no torch."""
    if config.kind == "paced":
        from engine.paced import PacedWorker

        return PacedWorker(config, executor)
    from engine.real import RealWorker

    return RealWorker(config, executor)
