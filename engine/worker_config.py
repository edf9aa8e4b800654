"""Everything one worker process must be told, as plain values: picklable, so that an orchestrator can carry it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from engine.errors import WorkerConfigError
from engine.host import check_loopback
from engine.readings import DeviceInfo

KINDS: Final = ("cpu", "cuda", "paced")
TRANSPORT_WISHES: Final = ("auto", "shm", "tcp")

#: Field -> bounds, both included.
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "epoch": (0, 2**62),
    "kv_bytes": (1, 2**50),
    "block_tokens": (1, 512),
    "max_batch": (1, 4096),
    "prefill_chunk_tokens": (1, 65_536),
    "max_queue": (1, 100_000),
    "lease_s": (0.001, 86_400),
    "nice": (0, 19),
    "device_index": (0, 1023),
    "speed": (0.01, 10_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One worker. Raises WorkerConfigError naming the field, its value and the bound."""

    worker_id: str
    epoch: int
    kind: str  # cpu | cuda | paced
    shm_dir: str  # holds <worker_id>.meter and <worker_id>-<epoch>.kv
    fleet_token: str = field(repr=False)
    model_id: str
    model_dir: str = ""  # Hugging Face folder; real workers only
    host: str = "127.0.0.1"
    exact: bool | None = None  # None: on for cpu, off for cuda
    kv_bytes: int = 512 * 2**20  # of the real pool, or of the modelled one of a paced worker
    block_tokens: int = 16
    max_batch: int = 16
    prefill_chunk_tokens: int = 128
    max_queue: int = 64
    lease_s: float = 30.0
    nice: int = 0
    device: DeviceInfo | None = None  # as calibrated before the workers started; None: found out here
    device_index: int = 0
    paced_device: str = ""  # key in data/devices.toml
    paced_model: str = ""  # key in data/models.toml
    speed: float = (
        1.0  # paced: steps take 1/speed of the modelled time, and the device's peaks count speed times as much
    )
    handoff_transport: str = "auto"  # auto | shm | tcp

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise WorkerConfigError(f"worker {self.worker_id}: {name} is {value}, must be in {low}..{high}")
        if not self.worker_id or "/" in self.worker_id:
            raise WorkerConfigError(f"worker_id {self.worker_id!r} must be a file name")
        for name, known in (("kind", KINDS), ("handoff_transport", TRANSPORT_WISHES)):
            if getattr(self, name) not in known:
                raise WorkerConfigError(
                    f"worker {self.worker_id}: {name} is {getattr(self, name)!r}, must be one of {', '.join(known)}"
                )
        needed = ("paced_device", "paced_model") if self.kind == "paced" else ("model_dir",)
        for name in (*needed, "shm_dir", "model_id", "fleet_token"):
            if not getattr(self, name):
                raise WorkerConfigError(f"worker {self.worker_id}: {name} is empty, a {self.kind} worker needs it")
        check_loopback(self.host)

    @property
    def is_exact(self) -> bool:
        return self.kind == "cpu" if self.exact is None else self.exact
