"""A fleet at one instant: its pools, its traffic, what it can do, who acts on it; all that a screen needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from control.types.alerts import Alert
from control.types.bottleneck import Bottleneck
from control.types.commands import Departure, Desired
from control.types.values import Provenance
from control.types.workers import PhaseUtilization, Role, WorkerStatus


class Capability(StrEnum):
    """What a fleet adapter can do; console, CLI and API offer only that."""

    OBSERVE = "observe"
    ROUTE = "route"
    RESIZE = "resize"
    FLIP = "flip"
    DRAIN = "drain"
    MIGRATE = "migrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One quantity that engines of an attached fleet do not say: unknown, not 0. `quantity` as in their pages."""

    quantity: str
    state: Literal["off", "absent", "refused"]  # off: its series stands at 0 until a flag turns it on
    series: str  # the name that was looked for
    remedy: str  # what an operator does about it; "" where nothing helps
    worker_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """One pool: desired beside observed, how full beside how hard."""

    role: Role
    num_desired: int | None  # None: of a fleet whose list of workers was never had
    num_ready: int
    num_other: int  # starting, draining, failed
    prefill: PhaseUtilization | None
    decode: PhaseUtilization | None
    load: float | None  # prefill: seconds of queued uncached tokens; decode: (held + reserved) / total blocks
    load_unit: str
    headroom_rps: float | None
    headroom_provenance: Provenance = "derived"
    batch: float | None = None  # sequences that decode, of one worker
    largest_batch: float | None = None  # inside the bound on the time per token, by a line through its steps
    most_workers: int | None = None  # that may be asked for; None: a pool of fixed workers, which flip
    rival: str = ""  # who else sets its size; "" when nobody is known to


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficStatus:
    """What the gateways saw over `window_s`, indexed by arrival. Percentiles from merged histograms."""

    window_s: float
    num_gateways: int
    offered_rps: float | None
    goodput_rps: float | None
    attainment: float | None
    error_rps: float | None
    rejected_rps: float | None
    num_in_flight: int
    oldest_waiting_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None
    tpot_p50_s: float | None
    e2e_p50_s: float | None
    prompt_tokens_per_s: float | None
    output_tokens_per_s: float | None
    by_rule: dict[str, int]
    slo_text: str = ""
    sample_share: float | None = None  # of the offered requests, those of `phaseline up --traffic`
    attainment_by_length: dict[str, float] = field(default_factory=dict)  # class of prompt length -> attainment
    num_overdue: int | None = None  # in flight and past a bound already: bad now, not when they end


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What of the fleet's peaks is achievable, 0..1, and the target zones as fractions of that."""

    compute: float
    bandwidth: float
    provenance: Provenance  # measured on the devices, or an assumed share of a datasheet
    target_in_phase: tuple[float, float]
    target_wall: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blended:
    """The one number of other dashboards: share of the time in which anything ran, whatever it was, and how hard."""

    value: float
    source: Literal["device", "steps"]  # NVML's utilization.gpu of the fleet's devices, or the workers' own steps


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneStatus:
    """The plane that is active: who it is, and since when it acts under which fence."""

    pid: int
    hostname: str
    address: str
    fence: int
    since_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """All that a screen needs to say "are we fine?" at one instant."""

    fleet_id: str
    model_id: str
    kind: str  # ray | sim
    simulated: bool
    capabilities: tuple[Capability, ...]
    at_unix_s: float
    started_unix_s: float
    tick: int
    stale_s: float  # age of the observation behind this snapshot
    health: Literal["ok", "attention", "broken", "starting"]
    health_text: str
    desired: Desired
    workers: tuple[WorkerStatus, ...]
    pools: tuple[PoolStatus, ...]
    prefill: PhaseUtilization | None  # by phase, over the whole fleet
    decode: PhaseUtilization | None
    traffic: TrafficStatus
    notices: tuple[str, ...] = ()  # banners: "thresholds of the local profile: not production values"
    active_command_ids: tuple[int, ...] = ()
    plane: PlaneStatus | None = None
    departures: tuple[Departure, ...] = ()  # of the last minutes
    bottleneck: Bottleneck | None = None  # None: an older plane
    alerts: tuple[Alert, ...] = ()  # pending and firing, pages first
    ceilings: Ceilings | None = None  # None: a peak is not known
    blended: Blended | None = None
    is_attached: bool = False  # somebody else runs it
    refusals: dict[str, str] = field(default_factory=dict)  # by capability: why it is not offered, and what allows it
    missing: tuple[Missing, ...] = ()  # of an attached fleet
