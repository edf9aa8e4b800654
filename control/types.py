"""The values that cross control's borders: the console, the CLI, the API and the pure policies share them.

Frozen dataclasses, validated where they come in from outside (pydantic `TypeAdapter`, which FastAPI and
`control.client` use). Units are in the names; fractions are 0..1; None is "unknown" and never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field

from engine.types import Phase, Role, WorkerState

__all__ = ["Phase", "Role", "WorkerState"]

#: API key and key id of the sample traffic that `phaseline up --traffic` sends: the one id that is shown as it is.
SAMPLE_TRAFFIC_KEY = "sample-traffic"

Provenance = Literal["measured", "derived", "assumed", "simulated"]
MoveKind = Literal["failover", "migration", "recompute"]
LifeKind = Literal["started", "died", "stopped", "restarted"]
PlaneKind = Literal["plane", "history", "bottleneck", "permission"]
EventKind = LifeKind | MoveKind | PlaneKind
DepartureKind = Literal["leaves", "lost"]
AlertName = Literal["slo_burn_fast", "slo_burn_slow", "worker_dead", "pool_empty", "history_away", "plane_takeover"]
AlertSeverity = Literal["page", "ticket"]
AlertState = Literal["pending", "firing", "resolved"]
#: A bound of the SLO, by the time that it bounds.
SloBound = Literal["ttft", "tpot", "max_gap"]
#: Times of a request that a heatmap shows. gap: the largest between two of its tokens.
LatencyKind = Literal["ttft", "e2e", "gap"]
#: Why a request's record is kept (`control.sampling`); dropped: it is only counted.
Kept = Literal["slow", "failed", "moved", "share", "dropped"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=100_000, strict=True)]
Number = Annotated[int, Field(ge=0, le=2**53, strict=True)]  # of a command or a version
Words = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")]  # typed by a person; PostgreSQL keeps no NUL


class LossCause(StrEnum):
    """How a gateway lost a worker."""

    DIED = "died"  # its connection ended, or it failed the request
    STOPPED = "stopped"  # somebody stopped its process: not the request's doing
    HUNG = "hung"  # its step did not end: may be the request's doing, if it happens again


class Resource(StrEnum):
    """What a fleet can have too little of, so that requests are lost; `control.bottleneck` says which it is now."""

    PREFILL = "prefill"  # workers' time for prompts
    KV_ROOM = "kv_room"  # KV blocks of those that decode
    DECODE_BANDWIDTH = "decode_bandwidth"  # how fast a decode step is, and so how many sequences it can carry
    HANDOFF = "handoff"  # the link between a prefill worker and a decode worker
    GATEWAY = "gateway"  # what the gateways can hold, and how fast they pass tokens on


class Capability(StrEnum):
    """What a fleet adapter can do; console, CLI and API offer only that."""

    OBSERVE = "observe"
    ROUTE = "route"
    RESIZE = "resize"
    FLIP = "flip"
    DRAIN = "drain"
    MIGRATE = "migrate"


# --- routing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """Live settings of `control.routing.route`. Each field's metadata carries unit and help for forms and docs."""

    min_fleet_devices: Annotated[int, Field(ge=0, le=100_000)] = field(
        default=12, metadata={"unit": "devices", "help": "Smaller fleets serve every request on one worker."}
    )
    local_cache_ratio: Fraction = field(
        default=0.8,
        metadata={"unit": "fraction", "help": "With this share of the prompt's KV on a decode worker, stay there."},
    )
    min_remote_prefill_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = field(
        default=512, metadata={"unit": "tokens", "help": "Uncached prompts shorter than this may stay local."}
    )
    max_local_output_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = field(
        default=256, metadata={"unit": "tokens", "help": "Short prompts stay local only below this expected output."}
    )
    remote_share: Fraction = field(
        default=1.0, metadata={"unit": "fraction", "help": "Canary share of eligible requests that is split."}
    )


class RouteRule(StrEnum):
    """Which rule of DESIGN section 6 decided. The order here is the order in which they are walked."""

    CANNOT_FIT = "cannot_fit"
    NO_CAPACITY = "no_capacity"
    EMPTY_POOL = "empty_pool"
    SMALL_FLEET = "small_fleet"
    CACHED_LOCAL = "cached_local"
    SHORT_LOCAL = "short_local"
    CONTROL_ARM = "control_arm"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRoute:
    """One row of the routing table."""

    worker_id: str
    epoch: int
    address: str
    role: Role
    state: WorkerState
    weight: float = 1.0
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """What every gateway holds: full, versioned, kept on disk. A gateway takes a table only if it is newer."""

    version: int
    fleet_id: str
    model_id: str
    fence: int
    num_devices: int
    policy: RoutingPolicy
    workers: tuple[WorkerRoute, ...]
    expected_output_tokens: int = 128  # recent median


# --- desired state and commands -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What we want. Changed only through a recorded command; `version` counts those changes.

    Roles are explicit per worker, so that a preview names exactly the workers that will flip; pool sizes are derived.
    """

    version: int
    roles: dict[str, Role]
    drained: frozenset[str] = frozenset()
    weights: dict[str, float] = field(default_factory=dict)  # missing means 1.0
    policy: RoutingPolicy = RoutingPolicy()
    pools: dict[str, int] = field(default_factory=dict)  # role -> size, where pools have sizes and no fixed workers

    def pool_size(self, role: Role) -> int:
        if self.pools:
            return self.pools.get(role.value, 0)
        return sum(1 for each in self.roles.values() if each == role)


class Verb(StrEnum):
    RESIZE = "resize"
    FLIP = "flip"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    SET_ROUTING = "set_routing"
    UNDO = "undo"


class CommandState(StrEnum):
    """accepted -> running -> done | failed | superseded; the table is in `control.commands`."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What an operator asks for. Which fields a verb takes: resize(prefill, decode, mixed), flip(worker_id, role),
    drain/undrain(worker_id), set_routing(policy and/or weights: only the keys to change), undo(command_id)."""

    verb: Verb
    prefill: Count | None = None
    decode: Count | None = None
    mixed: Count | None = None
    worker_id: str | None = None
    role: Role | None = None
    policy: dict[str, float | int] | None = None
    weights: dict[str, Weight] | None = None
    command_id: Number | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """One action with its who-needs-to-know. `base_version` None skips the stale check (CLI one-shots only)."""

    action: Action
    why: Words = ""
    idempotency_key: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] = ""
    base_version: Number | None = None
    confirmation: Annotated[str, Field(max_length=200)] = ""  # the pool's name, where the preview asks for it
    fleet_id: str | None = None  # None: the only fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One order the tick will give: the same value in a preview and in the journal."""

    verb: str  # place | flip | drain | undrain | route
    worker_id: str | None
    role: Role | None
    from_role: Role | None
    text: str  # "flip w3 decode -> prefill (2 running sequences finish first)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a command would do, before it does it."""

    base_version: int
    steps: tuple[PlannedStep, ...]
    pools_before: dict[str, int]
    pools_after: dict[str, int]
    warnings: tuple[str, ...] = ()
    needs_confirmation: str = ""  # the word to type; "" when none is needed
    refused: str = ""  # why the command would be refused; "" when it would be accepted
    expected_s: float | None = None  # longest drain, assumed from the running work; None when unknown
    effect: str = ""
    effect_provenance: Provenance = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandStep:
    """One line of a command's journal."""

    at_unix_s: float
    text: str
    worker_id: str | None = None
    state: Literal["planned", "running", "moved", "done", "failed"] = "done"  # moved: what became of its sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """What became of the sequences that decoded on one worker since it began to leave decode, or since it was lost: as
    the gateways count them now, before the requests' records say it for good."""

    worker_id: str
    kind: DepartureKind
    since_unix_s: float
    num_sequences: int  # that decoded there
    num_moved: int = 0  # elsewhere, with their KV
    num_recomputed: int = 0  # elsewhere, computed anew
    num_continued: int = 0  # elsewhere, after it was lost
    num_left: int = 0  # decode there still; what is neither elsewhere nor left has ended there
    num_given_up: int = 0  # moves that came to nothing
    num_bytes: int = 0  # KV that was copied
    stall_s: float | None = None  # the longest so far
    to_workers: dict[str, int] = field(default_factory=dict)
    is_over: bool = False
    cause: LossCause | None = None  # of a loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One operator action, recorded before it takes effect."""

    command_id: int
    fleet_id: str
    action: Action
    state: CommandState
    who: str
    why: str
    idempotency_key: str
    base_version: int
    version_after: int
    created_unix_s: float
    updated_unix_s: float
    steps: tuple[CommandStep, ...] = ()
    result: str = ""  # how it ended, in words
    desired_before: Desired | None = None
    desired_after: Desired | None = None
    undo_of: int | None = None
    undone_by: int | None = None
    can_undo: bool = False
    departures: tuple[Departure, ...] = ()  # while it is carried out: what leaves its workers. Not recorded


# --- what is --------------------------------------------------------------------------------------------------------


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
    num_desired: int
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


BottleneckKind = Literal["unknown", "none", "prefill", "kv_room", "decode_bandwidth", "handoff", "gateway", "two"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceLine:
    """One number that a verdict rests on."""

    name: str
    value: float | None
    unit: str
    provenance: Provenance
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What limits the fleet: the resource of which one more unit would let most more requests be good."""

    kind: BottleneckKind
    resources: tuple[Resource, ...]  # of which one more unit helps: none, one or two
    text: str  # one sentence, with its numbers
    at_unix_s: float
    since_unix_s: float  # since when this is the verdict
    window_s: float
    gains: dict[str, float] = field(default_factory=dict)  # Resource -> share of the offered requests; derived
    evidence: tuple[EvidenceLine, ...] = ()
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a person should know, from when it was first seen to its end; one id all its life, over planes."""

    alert_id: str
    fleet_id: str
    name: AlertName
    subject: str  # the worker, the pool or the takeover; "" for the whole fleet
    severity: AlertSeverity
    state: AlertState
    text: str
    since_unix_s: float  # pending since
    seen_unix_s: float  # what it tells of held last
    fired_unix_s: float | None = None
    resolved_unix_s: float | None = None
    simulated: bool = False
    told: tuple[AlertState, ...] = ()  # which of its states the webhook's receiver has taken
    not_told: str = ""  # why the last one could not be told


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


# --- history --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """One bucket [t, t + step). `value` None is a gap; `partial`: not all of its seconds are known, or over."""

    t_unix_s: float
    value: float | None
    min: float | None = None
    max: float | None = None
    count: int = 0
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its group's label and its points, in time order, gaps included as None.

    `whole`: a percentile over all of these buckets together, from their merged histograms: it cannot be told from their
    values. None: nothing is known, or the metric is no percentile.
    """

    label: str
    points: tuple[SeriesPoint, ...]
    whole: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesResult:
    """Answer to a series query. `metric`'s unit, help and provenance come from the catalogue `control.metrics`."""

    fleet_id: str
    metric: str
    unit: str
    provenance: Provenance
    step_s: int
    since_unix_s: float
    until_unix_s: float
    by: str
    series: tuple[Series, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """The roofline of one kind of device: its peaks, and the ceiling that is achievable under them. None is unknown."""

    name: str
    peak_flops: float | None
    peak_bytes_per_s: float | None
    achievable_flops: float | None
    achievable_bytes_per_s: float | None
    basis: str  # of the peaks: datasheet, calibrated, assumed, unknown
    achievable_provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflinePoint:
    """What one worker did in one phase over [t, t + length): FLOP per byte, and FLOP/s while that phase ran."""

    worker_id: str
    role: Role
    phase: Phase
    roof: str  # name of its device's roof
    t_unix_s: float
    length_s: float
    intensity: float
    flops_per_s: float
    tokens_per_step: float | None  # of decode: the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Workers under the rooflines of their devices."""

    fleet_id: str
    since_unix_s: float
    until_unix_s: float
    roofs: tuple[Roof, ...]
    points: tuple[RooflinePoint, ...]
    simulated: bool
    provenance: Provenance = "derived"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    name: str
    unit: str
    help: str
    provenance: Provenance
    groups: tuple[str, ...]  # allowed values of `by`


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMove:
    """A running request went on at another worker. `failover`: its worker died or hung; `migration`: its KV was moved
    while it decoded; `recompute`: its worker drained, and the KV was computed anew."""

    kind: MoveKind
    from_worker: str
    to_worker: str
    at_s: float  # since the request's arrival: when it was left, or when the move was begun
    notice_s: float | None = None  # failover: last word, or begin of the hung step, to noticing; None: not known
    stall_s: float | None = None  # last token before to the first one after; None: it lacks one of them
    num_bytes: int = 0  # KV that was copied: while it decoded on, and the last blocks, copied while it stood
    reason: str = ""
    predicted_stall_s: float | None = None  # migration: what the estimate said of `stall_s` before it began
    cause: LossCause | None = None  # failover: how the worker was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """What happened to a worker, to the requests that it served, to the plane, or to what it may do to a foreign fleet.

    Of moves there is one event per second, kind and worker that was left; they are known when their requests end, so
    the youngest still fill in.
    """

    fleet_id: str
    kind: EventKind
    at_unix_s: float  # moves: the earliest of that second
    worker_id: str  # whose life it is; moves: the worker that was left; "" for the plane's own
    model_id: str = ""
    simulated: bool = False
    epoch: int = 0  # which life of the worker; 0 for moves; plane: its fence; permission: its millisecond
    reason: str = ""
    away_s: float | None = None  # restarted: since the last sign of its former life; history: until it could be written
    num_requests: int = 0  # moves: how many requests went on elsewhere
    num_failed: int = 0  # of these: ended with an error all the same
    to_workers: dict[str, int] = field(default_factory=dict)  # where they went on, and how many of them
    num_bytes: int = 0  # KV that was copied
    notice_s: float | None = None  # the longest: last sign of life to noticing
    stall_s: float | None = None  # the longest: last token before to the first one after
    cause: LossCause | None = None  # failover: how the worker was lost, the first that is known
    resources: tuple[str, ...] = ()  # bottleneck: what limits from then on; "none" and "unknown" are told as well


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request's life, written by the gateway that served it. Times relative to arrival, in seconds."""

    request_id: str
    fleet_id: str
    model_id: str
    gateway_id: str
    api_key_id: str
    simulated: bool
    arrival_unix_s: float
    attempt: int
    priority: int
    stream: bool
    endpoint: str
    rule: str
    reason: str
    prefill_worker: str
    decode_worker: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_tokens: int
    status: int  # HTTP status
    finish_reason: str
    error: str
    queue_s: float | None
    prefill_s: float | None
    handoff_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    max_gap_s: float | None
    e2e_s: float | None
    good: bool | None  # None: client cancelled
    num_reroutes: int = 0
    itl_buckets: dict[int, int] = field(default_factory=dict)  # engine.histogram bucket -> count
    traceparent: str = ""
    decode_cached_tokens: int | None = None  # of the prompt, most that one worker that can decode held when routed
    moves: tuple[RequestMove, ...] = ()  # in the order they happened
    line_s: float | None = None  # in the gateway's line for room; None: an older gateway, which did not say
    decode_s: float | None = None  # on its decode worker, from the first token, or from when its KV was there
    waited_for: str = ""  # the `Resource` that it waited for in the line, or was refused for want of; "" is unknown
    api_key_name: str = ""  # of the setting `key_names`; "": it has none there
    broken: tuple[SloBound, ...] = ()  # bounds that it was past; one that ended without being served has an error
    kept: Kept = "share"
    weight: float = 1.0  # how many requests like it this record stands for: 1 / the share of them that was kept


class RequestFilters(TypedDict, total=False):
    """Which requests are asked for; what is left out, or None, does not matter."""

    metric: LatencyKind  # which latency bounds and orders are about: e2e when it is left out
    rule: str | None
    worker_id: str | None
    api_key_id: str | None
    good: bool | None
    failed: bool | None  # refused, or ended with an error
    moved: bool | None  # went on at another worker
    batch: bool | None  # of the class batch


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCounts:
    """All requests of a range, and what became of their records. None of it is estimated."""

    num_requests: int
    kept: dict[str, int]  # why -> records; those past their retention are still counted
    dropped: dict[str, int]  # served | refused | cancelled -> requests that are only counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Requests by arrival and latency. Cell i is in column `columns[i]` (from since + column x step on) and in bin
    `bins[i]` (above edges[bin] s, up to edges[bin + 1] s), and holds `counts[i]` > 0 requests."""

    fleet_id: str
    metric: LatencyKind
    since_unix_s: float  # of whole columns
    until_unix_s: float
    step_s: int
    edges_s: tuple[float, ...]
    columns: tuple[int, ...]
    bins: tuple[int, ...]
    counts: tuple[float, ...]
    is_estimated: bool  # counts are sums of weights of the records that are kept, else every request was counted
    bound_s: float | None  # the SLO's; of the time to first token, that of a prompt that is cached whole
    bound_text: str
    simulated: bool
    requests: RecordCounts
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One value of one dimension: its share of the requests that were asked about against its share of the rest."""

    dimension: str
    value: str
    share: float
    rest_share: float
    num_records: int  # of those asked about, with this value
    p_value: float  # of a difference as large by chance, over all values that were compared

    @property
    def difference(self) -> float:
        return self.share - self.rest_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is different about some requests: values that are more frequent among them, the largest difference first."""

    fleet_id: str
    asked: str  # which requests, in words
    since_unix_s: float
    until_unix_s: float
    num_requests: float  # they and the rest: by the weights of their records
    num_rest: float
    num_records: int  # that were looked at, of them and of the rest
    num_rest_records: int
    differences: tuple[Difference, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Good: TTFT <= base + per_token x uncached prompt tokens, TPOT <= tpot_s, largest gap <= max_gap_s."""

    ttft_base_s: float = 1.0
    ttft_per_token_s: float = 0.0005
    tpot_s: float = 0.1
    max_gap_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking. role: viewer looks, operator acts, service is one of our own processes."""

    name: str
    role: Literal["viewer", "operator", "service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457 problem body of the control API."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    field: str | None = None
    value: Any = None
    bound: str | None = None
    retry_helps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """Version and effective configuration (secrets masked)."""

    version: str
    started_unix_s: float
    profile: str
    fleets: tuple[str, ...]
    settings: dict[str, Any]
    principal: Principal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a one-time login code is exchanged for: a bearer token with an end."""

    token: str
    principal: Principal
    expires_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfRouting:
    """Requests per rule: `before` as they were decided, `after` under another policy (derived from their records)."""

    before: dict[str, int]
    after: dict[str, int]
    num_requests: int
    num_changed: int
    since_unix_s: float
    until_unix_s: float
    provenance: Provenance = "derived"
    note: str = ""
