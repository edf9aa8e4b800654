"""The plane's `/metrics`: a fleet as Prometheus sees it. A catalogue, and a pure function from values to one page.

Decided here: which metrics there are, and that their number is bounded: `series_bound`. Only workers add series of
their own, up to `max_workers` of them; the rest of a larger fleet is in the roles' sums, and a metric says how many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Final, get_args

from control.alerts.burn import WINDOWS_S
from control.alerts.webhook import OUTCOMES as DELIVERIES
from control.alerts.webhook import Outcome
from control.exposition.families import SERIES_PER_HISTOGRAM, Family, Page
from control.exposition.request_totals import LATENCIES, OUTCOMES, PATHS, RULES, RequestFamilies, RequestTotals
from control.exposition.work_totals import ROLES, STAGES, WorkTotals
from control.types.alerts import Alert, AlertName, AlertState
from control.types.bottleneck import Bottleneck, Resource
from control.types.fleet import FleetSnapshot
from control.types.requests import MoveKind
from control.types.workers import Phase, PhaseUtilization, Role, WorkerState, WorkerStatus
from engine.types import PHASES


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFacts:
    """How the history takes what is written."""

    is_up: bool
    num_waiting: int
    num_dropped: int
    num_spooled: int
    spooled_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFacts:
    """What is told of, and to whom. `deliveries` None: there is no receiver."""

    open: Sequence[Alert] = ()
    objective: float
    burn_rates: Mapping[int, float | None]
    deliveries: Mapping[Outcome, int] | None = None
    num_waiting: int = 0


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"phaseline_{name}", "gauge", text, labels)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"phaseline_{name}", "counter", text, labels)


FLEET_INFO = _gauge("fleet_info", "1; what is served, and whether workers are simulated.", "model", "kind", "simulated")
HEALTH = _gauge("fleet_health", "1 for the present health in one word, 0 for the others.", "health")
FENCE = _gauge("plane_fence", "Fence of the plane that acts: it rises with each takeover.")
STARTED = _gauge("plane_start_time_seconds", "When this plane began to act, Unix time.")
TICKS = _counter("plane_ticks_total", "Ticks of this plane.")
AGE = _gauge("plane_observation_age_seconds", "Age of the observation behind this page.")
BOTTLENECK = _gauge(
    "bottleneck", "1 for each resource that limits the fleet now, 0 for the others; nothing while unknown.", "resource"
)
GAIN = _gauge(
    "bottleneck_gain_ratio", "Of the offered requests, those that one more unit would save; estimated.", "resource"
)
GATEWAYS = _gauge("gateways", "Gateways that the plane hears.")
IN_FLIGHT = _gauge("requests_in_flight", "Requests that the gateways hold now.")
OLDEST = _gauge("oldest_waiting_seconds", "Age of the oldest request without a first token.")
HISTORY_UP = _gauge("history_up", "1 while the history can be written.")
WAITING = _gauge("history_waiting_writes", "Writes that wait in memory or in the spool.", "where")
SPOOLED = _gauge("history_spooled_bytes", "Size of what waits in the spool.")
LOST = _counter("history_lost_writes_total", "Writes that were lost because the history was away for too long.")
WORKERS = _gauge("workers", "Workers by the role that they have and their state.", "role", "state")
DESIRED = _gauge("pool_desired_workers", "Workers that a pool is to have.", "role")
READY = _gauge("pool_ready_workers", "Workers of a pool that take requests.", "role")
QUEUE = _gauge("pool_queue_seconds", "Prefill: queued uncached tokens over their rate.", "role")
KV = _gauge("pool_kv_usage_ratio", "KV blocks held and reserved / blocks.", "role")
UTILIZATION = _gauge(
    "utilization_ratio",
    "Work / peak over the last seconds; wall: of all the time, in_phase: of the time in which the phase ran.",
    "phase",
    "resource",
    "basis",
)
STEP_SECONDS = _counter("phase_busy_seconds_total", "Time in which steps of a phase ran.", "role", "phase")
FLOPS = _counter("phase_flops_total", "Model FLOPs of the steps, exact for causal attention.", "role", "phase")
BYTES = _counter("phase_bytes_total", "Model bytes that the steps read and wrote.", "role", "phase")
TOKENS = _counter("phase_tokens_total", "Tokens that the steps computed.", "role", "phase")
STEPS = _counter("phase_steps_total", "Steps.", "role", "phase")
ROOM_FLOPS = _counter(
    "phase_possible_flops_total", "Peak FLOP/s x time in phase: in-phase compute divides by it.", "role", "phase"
)
ROOM_BYTES = _counter(
    "phase_possible_bytes_total", "Peak bytes/s x time in phase: in-phase bandwidth divides by it.", "role", "phase"
)
ROLE_SECONDS = _counter("role_worker_seconds_total", "Time that workers held a role.", "role")
ROLE_FLOPS = _counter("role_possible_flops_total", "Peak FLOP/s x all the time: wall compute divides by it.", "role")
ROLE_BYTES = _counter("role_possible_bytes_total", "Peak bytes/s x all the time: wall bandwidth divides by it.", "role")
ALL_FLOPS = _counter("fleet_possible_flops_total", "The same of the whole fleet; a shared device counts once.")
ALL_BYTES = _counter("fleet_possible_bytes_total", "The same of the whole fleet; a shared device counts once.")
OMITTED = _gauge("workers_omitted", "Workers without series of their own, over `metrics_max_workers`.")
WORKER_UP = _gauge("worker_up", "1 while the worker lives; its role is the one it has now.", "worker", "role")
WORKER_EPOCH = _gauge("worker_epoch", "Which life of the worker this is.", "worker")
WORKER_KV = _gauge("worker_kv_usage_ratio", "KV blocks held / blocks.", "worker")
WORKER_QUEUE = _gauge("worker_queued_tokens", "Uncached prompt tokens that wait or are in chunks.", "worker")
WORKER_RUNNING = _gauge("worker_running_sequences", "Sequences in decode.", "worker")
WORKER_RESTARTS = _counter("worker_restarts_total", "Times that its process was started anew.", "worker")
WORKER_SECONDS = _counter("worker_busy_seconds_total", "Time in which steps of a phase ran.", "worker", "role", "phase")
WORKER_FLOPS = _counter("worker_flops_total", "Model FLOPs of the steps.", "worker", "role", "phase")
WORKER_BYTES = _counter("worker_bytes_total", "Model bytes of the steps.", "worker", "role", "phase")
WORKER_TOKENS = _counter("worker_tokens_total", "Tokens of the steps.", "worker", "role", "phase")
STAGE = {
    stage: Family(f"phaseline_worker_{stage}_seconds", "histogram", f"{text}, by the role of the worker.", ("role",))
    for stage, text in (
        ("queue", "On a worker before the first step"),
        ("prefill", "A prefill"),
        ("handoff", "A handoff"),
    )
}
ALERTS = _gauge("alerts", "Alerts of the plane itself.", "name", "state")
OBJECTIVE = _gauge("slo_objective_ratio", "Share of requests that are to be good.")
BURN = _gauge("slo_burn_rate", "How many times too fast the SLO's error budget is used up, over a window.", "window")
DELIVERED = _counter("webhook_deliveries_total", "Alerts to the webhook; failed: one try.", "outcome")
UNDELIVERED = _gauge("webhook_waiting_deliveries", "Alerts that the webhook's receiver has not taken yet.")
REQUESTS = RequestFamilies("phaseline")
HEALTH_WORDS: Final = ("ok", "attention", "broken", "starting")

FAMILIES: Final = (
    *(FLEET_INFO, HEALTH, FENCE, STARTED, TICKS, AGE, GATEWAYS, IN_FLIGHT, OLDEST, HISTORY_UP, WAITING, SPOOLED, LOST),
    *(BOTTLENECK, GAIN),
    *(WORKERS, DESIRED, READY, QUEUE, KV, UTILIZATION),
    *(STEP_SECONDS, FLOPS, BYTES, TOKENS, STEPS, ROOM_FLOPS, ROOM_BYTES),
    *(ROLE_SECONDS, ROLE_FLOPS, ROLE_BYTES, ALL_FLOPS, ALL_BYTES),
    *(OMITTED, WORKER_UP, WORKER_EPOCH, WORKER_KV, WORKER_QUEUE, WORKER_RUNNING, WORKER_RESTARTS),
    *(WORKER_SECONDS, WORKER_FLOPS, WORKER_BYTES, WORKER_TOKENS),
    *(ALERTS, OBJECTIVE, BURN, DELIVERED, UNDELIVERED),
    *STAGE.values(),
    *REQUESTS.all,
)
_PHASE_COLUMNS: Final = (
    (STEP_SECONDS, "busy_s"),
    (FLOPS, "flops"),
    (BYTES, "bytes"),
    (TOKENS, "tokens"),
    (STEPS, "steps"),
    (ROOM_FLOPS, "flops_room"),
    (ROOM_BYTES, "bytes_room"),
)
_WORKER_COLUMNS: Final = (
    (WORKER_SECONDS, "busy_s"),
    (WORKER_FLOPS, "flops"),
    (WORKER_BYTES, "bytes"),
    (WORKER_TOKENS, "tokens"),
)
_COVER_COLUMNS: Final = ((ROLE_SECONDS, "worker_s"), (ROLE_FLOPS, "flops_peak"), (ROLE_BYTES, "bytes_peak"))
_WORKER_GAUGES: Final = 6


def series_bound(num_workers: int, max_workers: int) -> int:
    """No page of one fleet has more series than this, whatever its requests and workers do."""
    by_phase = len(ROLES) * len(PHASES)
    told = 2 * len(get_args(AlertName)) + len(WINDOWS_S) + len(DELIVERIES) + 2
    fixed = 40 + told + 2 * len(Resource) + len(Role) * len(WorkerState) + 4 * len(ROLES) + 8
    work = len(_PHASE_COLUMNS) * by_phase + len(_COVER_COLUMNS) * len(ROLES)
    requests = len(RULES) * len(OUTCOMES) + 3 + len(get_args(MoveKind))
    histograms = (len(LATENCIES) * len(PATHS) + len(STAGES) * len(ROLES)) * SERIES_PER_HISTOGRAM
    per_worker = _WORKER_GAUGES + len(_WORKER_COLUMNS) * by_phase
    return fixed + work + requests + histograms + min(num_workers, max_workers) * per_worker


def plane_page(
    snapshot: FleetSnapshot,
    work: WorkTotals,
    requests: RequestTotals,
    history: HistoryFacts,
    alerts: AlertFacts,
    *,
    max_workers: int,
    now_unix_s: float,
) -> Page:
    """Everything that is known of one fleet now."""
    page = Page(FAMILIES, {"fleet": snapshot.fleet_id})
    page.put(AGE, max(0.0, now_unix_s - snapshot.at_unix_s + snapshot.stale_s))
    _put_plane(page, snapshot, history)
    _put_alerts(page, alerts)
    _put_bottleneck(page, snapshot.bottleneck)
    _put_pools(page, snapshot)
    _put_work(page, work)
    shown = list(islice((each for each in snapshot.workers if each.epoch), max_workers))
    page.put(OMITTED, sum(1 for each in snapshot.workers if each.epoch) - len(shown))
    _put_workers(page, shown, work)
    for stage, family in STAGE.items():
        for role in ROLES:
            page.put_latencies(family, work.stage(role, stage), role.value)
    REQUESTS.fill(page, requests)
    return page


def _put_plane(page: Page, snapshot: FleetSnapshot, history: HistoryFacts) -> None:
    page.put(FLEET_INFO, 1, snapshot.model_id, snapshot.kind, str(snapshot.simulated).lower())
    for health in HEALTH_WORDS:
        page.put(HEALTH, float(snapshot.health == health), health)
    if snapshot.plane is not None:
        page.put(FENCE, snapshot.plane.fence)
    page.put(STARTED, snapshot.started_unix_s)
    page.put(TICKS, snapshot.tick)
    page.put(GATEWAYS, snapshot.traffic.num_gateways)
    page.put(IN_FLIGHT, snapshot.traffic.num_in_flight)
    page.put(OLDEST, snapshot.traffic.oldest_waiting_s)
    page.put(HISTORY_UP, float(history.is_up))
    page.put(WAITING, history.num_waiting, "memory")
    page.put(WAITING, history.num_spooled, "spool")
    page.put(SPOOLED, history.spooled_bytes)
    page.put(LOST, history.num_dropped)


def _put_alerts(page: Page, alerts: AlertFacts) -> None:
    found = Counter((each.name, each.state) for each in alerts.open)
    for name, state in product(get_args(AlertName), _OPEN):
        page.put(ALERTS, found[name, state], name, state)
    page.put(OBJECTIVE, alerts.objective)
    for window_s, rate in alerts.burn_rates.items():
        page.put(BURN, rate, f"{window_s}s")
    page.put(UNDELIVERED, alerts.num_waiting)
    for outcome in DELIVERIES if alerts.deliveries is not None else ():
        page.put(DELIVERED, alerts.deliveries[outcome] if alerts.deliveries else 0, outcome)


_OPEN: Final[tuple[AlertState, ...]] = ("pending", "firing")


def _put_bottleneck(page: Page, found: Bottleneck | None) -> None:
    if found is None or found.kind == "unknown":
        return
    for resource in Resource:
        page.put(BOTTLENECK, float(resource in found.resources), resource.value)
        page.put(GAIN, found.gains.get(resource.value), resource.value)


def _put_pools(page: Page, snapshot: FleetSnapshot) -> None:
    found = Counter((each.role, each.state) for each in snapshot.workers)
    for role, state in product(Role, WorkerState):
        page.put(WORKERS, found[role, state], role.value, state.value)
    for pool in snapshot.pools:
        page.put(DESIRED, pool.num_desired, pool.role.value)
        page.put(READY, None if pool.num_desired is None else pool.num_ready, pool.role.value)
        page.put(QUEUE if pool.load_unit == "s" else KV, pool.load, pool.role.value)
    _put_utilization(page, Phase.PREFILL, snapshot.prefill)
    _put_utilization(page, Phase.DECODE, snapshot.decode)


def _put_utilization(page: Page, phase: Phase, found: PhaseUtilization | None) -> None:
    if found is None:
        return
    page.put(UTILIZATION, found.wall_compute, phase.value, "compute", "wall")
    page.put(UTILIZATION, found.in_phase_compute, phase.value, "compute", "in_phase")
    page.put(UTILIZATION, found.wall_bandwidth, phase.value, "bandwidth", "wall")
    page.put(UTILIZATION, found.in_phase_bandwidth, phase.value, "bandwidth", "in_phase")


def _put_work(page: Page, work: WorkTotals) -> None:
    for role in ROLES:
        for phase in PHASES:
            sums = work.of_role(role, phase)
            for family, column in _PHASE_COLUMNS:
                page.put(family, sums[column], role.value, phase.value)
        cover = work.cover(role)
        for family, column in _COVER_COLUMNS:
            page.put(family, cover[column], role.value)
    page.put(ALL_FLOPS, work.cover(None)["flops_peak"])
    page.put(ALL_BYTES, work.cover(None)["bytes_peak"])


def _put_workers(page: Page, workers: Sequence[WorkerStatus], work: WorkTotals) -> None:
    for each in workers:
        name = each.worker_id
        page.put(WORKER_UP, float(each.alive), name, each.role.value)
        page.put(WORKER_EPOCH, each.epoch, name)
        page.put(WORKER_KV, each.kv_usage, name)
        page.put(WORKER_QUEUE, each.queued_prefill_tokens, name)
        page.put(WORKER_RUNNING, each.num_running, name)
        page.put(WORKER_RESTARTS, each.num_restarts, name)
        for role, phase in product(ROLES, PHASES):
            sums = work.of_worker(name, role, phase)
            for family, column in _WORKER_COLUMNS if sums is not None else ():
                page.put(family, sums[column] if sums else None, name, role.value, phase.value)
