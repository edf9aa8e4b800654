"""A worker as it is seen: its role and state, what it holds, how hard each phase works, and which roles it had."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from control.types.values import Provenance
from engine.types import Phase, Role, WorkerState

__all__ = ["Phase", "Role", "WorkerState"]


class LossCause(StrEnum):
    """How a gateway lost a worker."""

    DIED = "died"  # its connection ended, or it failed the request
    STOPPED = "stopped"  # somebody stopped its process: not the request's doing
    HUNG = "hung"  # its step did not end: may be the request's doing, if it happens again


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseUtilization:
    """Utilization of one phase over the last whole seconds. `basis` names the peak: datasheet, calibrated, assumed."""

    wall_compute: float | None
    wall_bandwidth: float | None
    in_phase_compute: float | None
    in_phase_bandwidth: float | None
    busy: float | None  # share of the time in which this phase ran: neither compute nor bandwidth
    tokens_per_s: float | None
    basis: str = "unknown"
    provenance: Provenance = "derived"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkEstimates:
    """The work of a foreign engine by two accounts, both since `since_unix_s`. None: unknown.

    Exported: the engine's own estimate, as it counts. Derived: ours, from the tokens that it says it computed and their
    prompts' lengths. An engine that takes each prompt token to see all others says more than was done.
    """

    since_unix_s: float
    exported_flops: float | None = None
    derived_flops: float | None = None
    exported_bytes: float | None = None
    derived_bytes: float | None = None

    @property
    def flops_difference(self) -> float | None:
        """Exported minus derived."""
        return _difference(self.exported_flops, self.derived_flops)

    @property
    def bytes_difference(self) -> float | None:
        return _difference(self.exported_bytes, self.derived_bytes)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker as it was seen at `at_unix_s`."""

    worker_id: str
    epoch: int
    fleet_id: str
    model_id: str
    simulated: bool
    role: Role
    desired_role: Role
    state: WorkerState
    reason: str  # why it is not ready; "" when it is
    role_since_unix_s: float
    started_unix_s: float
    num_restarts: int
    last_restart_reason: str
    pid: int
    hostname: str
    device: str
    address: str
    version: str
    weight: float
    drained: bool
    alive: bool
    heartbeat_age_s: float
    step_running_s: float | None
    kv_usage: float | None
    kv_blocks_total: int
    kv_blocks_held: int
    kv_blocks_reserved: int
    queued_prefill_tokens: int | None  # None: a foreign engine that does not say
    num_waiting: int | None
    num_running: int | None
    num_leased: int
    prefill: PhaseUtilization | None
    decode: PhaseUtilization | None
    measured_tensor_active: float | None = None  # GPM or DCGM, 0..1, where the device answers
    measured_dram_active: float | None = None
    step_overdue: bool = False  # its running step takes far longer than steps usually do
    is_outdated: bool = False  # its process runs other code, or was started with other settings, than the plane's
    gpu_utilization: float | None = None  # as the device says: share of time in which any kernel ran
    memory_used_bytes: int | None = None  # as the device says, of all its processes
    power_w: float | None = None
    device_note: str = ""  # what the device does not answer, and why; "" where it answers all, or nobody asked it
    nvlink_bytes_per_s: float | None = None  # both ways, of all links
    estimates: WorkEstimates | None = None  # of a foreign engine, whose own account of its work may differ from ours


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleInterval:
    """A worker held `role` over [start, end); end None: still."""

    worker_id: str
    epoch: int
    role: Role
    state: WorkerState
    start_unix_s: float
    end_unix_s: float | None
    reason: str = ""
