"""What a meter says when it is read: cumulative counters, the step ring since a cursor, histograms, load.

Written by the worker (`engine.meter`), read by anybody on the same host, carried to the plane by a node agent.
All counters are monotonic within one (worker_id, epoch). Times in a reading are Unix seconds of the worker's host.
"""

from __future__ import annotations

import msgspec

from engine.types import Load, Phase, Role, WorkerState

#: Latency kinds that a worker measures. Gateways measure ttft, itl, tpot and e2e again, from the client's side.
LATENCY_KINDS: tuple[str, ...] = ("queue", "prefill", "handoff", "ttft", "itl", "tpot", "e2e")


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One device and its two peaks. FLOP/s dense and decimal. None means unknown, which is not zero."""

    name: str  # key in data/devices.toml, or the name the driver gives
    kind: str  # cpu | cuda | paced
    index: int = 0
    uuid: str = ""
    host_id: str = ""
    memory_bytes: int | None = None
    peak_flops: float | None = None  # datasheet, for `dtype`
    peak_bytes_per_s: float | None = None
    ceiling_flops: float | None = None  # measured on this device, all cores together
    ceiling_bytes_per_s: float | None = None
    thread_flops: float | None = None  # CPU only: what one thread reaches; its in-phase time is thread seconds
    thread_bytes_per_s: float | None = None
    dtype: str = "float32"
    peak_source: str = "unknown"  # datasheet | calibrated | assumed | unknown
    num_shared_by: int = 1  # workers that share this device (a CPU host)


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """A second, measured source. None where the device does not answer."""

    uuid: str
    at_unix_s: float
    tensor_active: float | None = None  # GPM, 0..1
    dram_active: float | None = None  # GPM, 0..1
    sm_active: float | None = None
    gpu_utilization: float | None = None  # "some kernel ran": the blended number
    memory_used_bytes: int | None = None
    power_w: float | None = None
    note: str = ""
    nvlink_bytes_per_s: float | None = None  # both ways, of all links


class PhaseCounters(msgspec.Struct, kw_only=True):
    """Work done in one (role, phase) since the epoch began.

    `busy_s` is wall time of the forwards, `cpu_s` thread CPU seconds of them (in-phase time on a CPU device).
    """

    busy_s: float = 0.0
    cpu_s: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    tokens: float = 0.0
    steps: float = 0.0


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    """One timed forward, over [start_unix_s, end_unix_s)."""

    start_unix_s: float
    end_unix_s: float
    role: Role
    phase: Phase
    tokens: int
    context_tokens: int  # sum over the batch of each sequence's context length
    batch: int  # sequences in the forward
    flops: float
    bytes: float
    cpu_s: float


class RoleChange(msgspec.Struct, frozen=True, array_like=True):
    """Role and state from a moment on, which no later setting of the host's clock moves on the monotonic one."""

    role: Role
    state: WorkerState
    since_unix_s: float  # as the clock said then
    since_mono_s: float
    reason: str = ""  # its beginning


class WorkEstimates(msgspec.Struct, frozen=True, kw_only=True):
    """The work of a foreign engine by two accounts, both over the time since its epoch began. None is unknown.

    Exported: as the engine's own model of itself counts. Derived: from the tokens that it says it computed.
    """

    exported_flops: float | None = None
    derived_flops: float | None = None
    exported_bytes: float | None = None
    derived_bytes: float | None = None


class MeterReading(msgspec.Struct, kw_only=True):
    """One worker, as its meter page says."""

    worker_id: str
    epoch: int
    pid: int
    host_id: str
    hostname: str
    address: str
    model_id: str
    simulated: bool
    device: DeviceInfo
    role: Role
    state: WorkerState
    fence: int
    reason: str
    max_context: int
    started_unix_s: float
    role_since_unix_s: float
    at_unix_s: float
    heartbeat_age_s: float
    step_running_s: float | None  # seconds since the running step began; None when idle
    alive: bool  # the process exists (pid and start time match)
    load: Load
    counters: dict[str, PhaseCounters]  # key "role/phase"
    steps: list[StepRecord]  # since the reader's cursor, oldest first
    next_cursor: int  # pass it to the next read
    num_steps_lost: int  # overwritten before they were read; the counters still have them
    histograms: dict[str, dict[int, int]]  # latency kind -> bucket index -> cumulative count (engine.histogram)
    resume: bytes = b""  # of a reader that adds up pages itself: what it goes on from after a restart
    unknown: tuple[str, ...] = ()  # fields of `load` that nobody measures here: their 0 says nothing
    changes: tuple[RoleChange, ...] = ()  # the last ones, oldest first; none from who does not say
    num_changes: int = 0  # since the epoch began
    anchor_s: float | None = None  # Unix minus monotonic seconds of the worker's host; another: its clock was set
    estimates: WorkEstimates | None = None  # of a foreign engine; ours count what they do
