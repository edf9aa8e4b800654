"""Which worker host processes a fleet has, and what each must be told. Pure; no ray, no torch.

Decided here: names, how paced workers share processes, and the worker's configuration out of the settings. Not here:
where a host runs (Ray) and which role its workers have (the plane).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from control.build import build_id
from control.errors import SettingsError
from control.settings import Settings
from engine.device_catalogue import cost_model, device_spec
from engine.errors import EngineError
from engine.work import resident_weight_bytes
from engine.worker_config import WorkerConfig

#: What takes the place of a setting that nobody has set: the defaults in `control.settings` suit CPU workers.
DEFAULTS_BY_KIND: Final[dict[str, dict[str, int]]] = {
    "cpu": {},
    "cuda": {"max_batch": 64, "prefill_chunk_tokens": 2048, "kv_bytes_per_worker": 8 * 2**30},
    "paced": {"max_batch": 64, "prefill_chunk_tokens": 2048, "max_queue_per_worker": 256},
}
#: Share of a modelled device's memory that holds weights and KV; the rest is for activations. Assumed.
PACED_MEMORY_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """One worker host process. What only the process itself can know (epoch, CPU device) is not in its configs yet."""

    name: str
    configs: tuple[WorkerConfig, ...]
    run_dir: str  # the CPU's calibration and the log live there
    num_shared_by: int  # workers that share this host's CPU

    @property
    def worker_ids(self) -> tuple[str, ...]:
        return tuple(each.worker_id for each in self.configs)

    @property
    def kind(self) -> str:
        return self.configs[0].kind

    @property
    def digest(self) -> str:
        """Changes when a process that runs already was started with other settings than these, or runs other code."""
        return hashlib.sha256(f"{build_id()} {self.configs!r}".encode()).hexdigest()[:16]


def actor_prefix(fleet_id: str) -> str:
    return f"phaseline-{fleet_id}-host-"


def agent_prefix(fleet_id: str) -> str:
    return f"phaseline-{fleet_id}-agent-"


def host_specs(settings: Settings, kind: str, token: str) -> tuple[HostSpec, ...]:
    """The hosts of this fleet, in order of their workers. `kind` is resolved already: cpu, cuda or paced.

    Raises SettingsError when a modelled device or model is unknown, or the model does not fit on it.
    """
    configs = worker_configs(settings, kind, token)
    size = settings.paced_workers_per_process if kind == "paced" else 1
    groups = [configs[start : start + size] for start in range(0, len(configs), size)]
    prefix = actor_prefix(settings.fleet_id)
    return tuple(
        HostSpec(
            name=prefix + (group[0].worker_id if size == 1 else f"g{index}"),
            configs=group,
            run_dir=str(settings.run_dir.resolve()),
            num_shared_by=settings.num_workers,
        )
        for index, group in enumerate(groups)
    )


def worker_configs(settings: Settings, kind: str, token: str) -> tuple[WorkerConfig, ...]:
    paced = kind == "paced"
    kv_bytes = paced_kv_bytes(settings) if paced else setting(settings, kind, "kv_bytes_per_worker")
    return tuple(
        WorkerConfig(
            worker_id=worker_id,
            epoch=0,
            kind=kind,
            shm_dir=str(settings.effective_shm_dir),
            fleet_token=token,
            model_id=settings.model_id,
            model_dir="" if paced else str(settings.model_dir.resolve()),
            host=settings.host,
            exact=settings.exact,
            kv_bytes=kv_bytes,
            block_tokens=settings.block_tokens,
            max_batch=setting(settings, kind, "max_batch"),
            prefill_chunk_tokens=setting(settings, kind, "prefill_chunk_tokens"),
            max_queue=setting(settings, kind, "max_queue_per_worker"),
            lease_s=settings.lease_s,
            nice=settings.worker_nice,
            paced_device=settings.paced_device if paced else "",
            paced_model=settings.paced_model if paced else "",
        )
        for worker_id in settings.worker_ids
    )


def setting(settings: Settings, kind: str, name: str) -> Any:
    """The setting where somebody set it, else the default for this kind of worker."""
    if name in settings.model_fields_set:
        return getattr(settings, name)
    return DEFAULTS_BY_KIND[kind].get(name, getattr(settings, name))


def paced_kv_bytes(settings: Settings) -> int:
    """KV room of a modelled device: its memory less the model's weights, unless the setting says otherwise."""
    if "kv_bytes_per_worker" in settings.model_fields_set:
        return settings.kv_bytes_per_worker
    try:
        cost = cost_model(settings.paced_device, settings.paced_model)
        memory = device_spec(settings.paced_device).memory_bytes
    except (EngineError, ValueError) as error:
        raise SettingsError(f"settings paced_device and paced_model: {error}") from error
    weights = resident_weight_bytes(cost.model, cost.weight_dtype_bytes)
    room = int(memory * PACED_MEMORY_SHARE - weights)
    if room < settings.block_tokens * cost.work.kv_token_bytes:
        raise SettingsError(
            f"setting paced_model: {settings.paced_model} needs {weights / 1e9:.0f} GB of weights, which do not fit on "
            f"{settings.paced_device} ({memory / 1e9:.0f} GB)",
            field="paced_model",
            value=settings.paced_model,
        )
    return room


def resolve_kind(worker_kind: str, num_gpus: float) -> str:
    """`auto` means CUDA where the cluster has GPUs, else the CPU."""
    if worker_kind != "auto":
        return worker_kind
    return "cuda" if num_gpus >= 1 else "cpu"
