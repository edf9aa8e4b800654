"""What runs inside one worker host process. A plain class: the Ray fleet wraps it as an actor, tests call it directly.

Decided here: the epoch of this process start, and that a failure to start is kept and told, so that a person reads it.
Not here: what the workers do (`engine.worker`).
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from control.fleets.host_life import next_life
from control.fleets.hosts import HostSpec
from engine.calibrate import load
from engine.devices import cpu_device
from engine.host import host_id
from engine.worker import WorkerHost
from engine.worker_config import WorkerConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDescription:
    """What a worker host says about its present process."""

    epoch: int
    pid: int
    digest: str
    addresses: dict[str, str]  # worker id -> host:port
    num_starts: int
    last_reason: str
    problem: str


class HostProcess:
    """The workers of one process, started on construction. After a failure the process stays up and says why."""

    def __init__(self, spec: HostSpec) -> None:
        shm_dir = Path(spec.configs[0].shm_dir)
        shm_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        life = next_life(shm_dir, spec.name, spec.worker_ids, time.time())
        keep_log(spec)
        self._host: WorkerHost | None = None
        addresses: list[str] = []
        problem = ""
        try:
            self._host = WorkerHost(configs_here(spec, life.epoch))
            addresses = self._host.start()
        except Exception as error:  # whatever it is, it must reach the plane and not only a log
            log.exception("worker host %s did not start", spec.name)
            problem = f"{type(error).__name__}: {error}"
        self._description = HostDescription(
            epoch=life.epoch,
            pid=os.getpid(),
            digest=spec.digest,
            addresses=dict(zip(spec.worker_ids, addresses, strict=False)),
            num_starts=life.num_starts,
            last_reason=life.last_reason,
            problem=problem,
        )

    def describe(self) -> HostDescription:
        return self._description

    def stop(self) -> bool:
        """End the workers in order; True when they have ended."""
        return self._host.stop() if self._host is not None else True


def configs_here(spec: HostSpec, epoch: int) -> list[WorkerConfig]:
    """The configs with what only this process knows: its epoch, and the CPU it runs on with its measured ceilings."""
    device = None
    if spec.kind == "cpu":
        device = cpu_device(host_id(), load(Path(spec.run_dir)), num_shared_by=spec.num_shared_by)
    return [replace(each, epoch=epoch, device=device) for each in spec.configs]


def keep_log(spec: HostSpec) -> None:
    """Write this process's log below the run folder, where `phaseline logs` finds it; on another host, nowhere."""
    name = spec.worker_ids[0] if len(spec.configs) == 1 else f"{spec.worker_ids[0]}-{spec.worker_ids[-1]}"
    folder = Path(spec.run_dir) / "logs"
    with contextlib.suppress(OSError):
        handler = logging.handlers.RotatingFileHandler(folder / f"{name}.log", maxBytes=4 * 2**20, backupCount=1)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    log.info("process %d starts %s", os.getpid(), ", ".join(spec.worker_ids))
