"""What a fleet that nobody has did, second by second, on one of NUM_TEMPLATES days: the same numbers each time. Pure.

Decided here: the numbers. A worker's day depends on its place on its shelf and on the shelf's template; roles and fleet
are the sums of their workers, and rules have requests of their own, which the fleet's are the sum of. In each hour one
second of each worker is its largest and one its smallest, at random places. Frames begin at second 0, lines at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from control.history.chunks import PHASE_KINDS, STATE, TRAFFIC, Kind, latency_kind, phase_kind
from control.history.codec import Floats, Ints
from control.history.frames import COUNT, EMPTY, Frame, Groups, concat
from control.history.schema import SHELF_LINES
from control.points import ONCE_A_SECOND
from control.types.workers import Role
from engine.histogram import GAMMA, MIN_S, NUM_BUCKETS, bucket_of

DAY_S: Final = 86_400
NUM_TEMPLATES: Final = 3
PEAK_FLOPS: Final = 989e12
PEAK_BYTES_S: Final = 3.35e12
#: Requests a second by routing rule, at the day's mean.
RULES: Final[Mapping[str, float]] = {"remote": 4.0, "cached_local": 1.0, "short_local": 1.0}
ROLES: Final = (Role.PREFILL, Role.DECODE)
#: One in so many workers is a prefill worker.
PREFILL_EACH: Final = 4
#: A decode worker prefills short prompts itself: this share of what a prefill worker does.
LOCAL_SHARE: Final = 0.125
GAPS_A_REQUEST: Final = 40
WORKER_LATENCY_EACH_S: Final = 10
_QUANTUM: Final = 2.0**24
Columns = dict[str, Floats]


def template_of(shelf: int, day: int) -> int:
    """Which template this day of this shelf of workers is; `day` counts days since 1970."""
    return (shelf + 2 * day) % NUM_TEMPLATES


def role_of(worker: int) -> Role:
    return Role.PREFILL if worker % PREFILL_EACH == 0 else Role.DECODE


# --- workers ---------------------------------------------------------------------------------------------------------


def utilization(template: int, slot: int, phase: int) -> Floats:
    """Share of the peak, second by second, of one worker's place in a template: a day's wave, noise, and extremes."""
    dice = np.random.default_rng((template, slot, phase))
    t = np.arange(DAY_S)
    wave = 0.45 + 0.25 * np.sin(2 * np.pi * (t / DAY_S - 0.3 + slot / 64))
    found = np.clip(wave + dice.normal(0.0, 0.04, DAY_S), 0.05, 0.9)
    hours = np.arange(0, DAY_S, 3600)
    found[hours + dice.integers(0, 3600, len(hours))] = 0.95 + 0.0001 * (slot + 16 * template)
    found[hours + dice.integers(0, 3600, len(hours))] = 0.01 + 0.0001 * (slot + 16 * template)
    is_local = role_of(slot) is Role.DECODE and PHASE_KINDS[phase] == phase_kind("prefill")
    return np.rint(found * (LOCAL_SHARE if is_local else 1.0) * _QUANTUM) / _QUANTUM


def worker_day(template: int, slot: int) -> dict[Kind, Columns]:
    """All columns of one worker, by kind. A prefill worker does not decode."""
    one = np.ones(DAY_S)
    running = np.random.default_rng((template, slot, 999)).integers(0, 64, DAY_S).astype(np.float64)
    found = {
        STATE: {
            **dict.fromkeys(("num_cover_s", "worker_s", "device_s", "num_load", "num_kv", "sum_num_workers"), one),
            "flops_peak": one * PEAK_FLOPS,
            "bytes_peak": one * PEAK_BYTES_S,
            "sum_num_running": running,
            "sum_kv_usage": running / 64,
            "sum_queued_prefill_tokens": 128 * running,
            "sum_num_waiting": np.floor(running / 8),
            "sum_oldest_wait_s": np.rint(running * 1e3) / 1e4,
        }
    }
    for number, kind in enumerate(PHASE_KINDS):
        if role_of(slot) is Role.DECODE or kind == phase_kind("prefill"):
            found[kind] = _work(utilization(template, slot, number))
    return found


def _work(share: Floats) -> Columns:
    busy = np.rint((0.05 + 0.9 * share) * _QUANTUM) / _QUANTUM
    return {
        "num_s": np.ones(len(share)),
        "busy_s": busy,
        "cpu_s": busy,
        "flops": np.rint(share * PEAK_FLOPS),
        "bytes": np.rint(share * PEAK_BYTES_S),
        "tokens": np.rint(share * 4000),
        "steps": np.rint(share * 30) + 1,
        "flops_room": np.rint(busy * PEAK_FLOPS),
        "bytes_room": np.rint(busy * PEAK_BYTES_S),
    }


def _with_extremes(columns: Columns) -> Columns:
    """Each second has one sample of each gauge."""
    gauges = [name.removeprefix("sum_") for name in columns if name.startswith("sum_")]
    return columns | {f"{side}_{name}": columns[f"sum_{name}"] for name in gauges for side in ("min", "max")}


def as_frames(days: Sequence[Mapping[Kind, Columns]]) -> dict[Kind, Frame]:
    """The days of some lines, numbered from 0, as frames."""
    found: dict[Kind, list[Frame]] = {}
    t, zero = np.arange(DAY_S), np.zeros(DAY_S, np.int64)
    for line, day in enumerate(days):
        for kind, columns in day.items():
            found.setdefault(kind, []).append(Frame(np.full(DAY_S, line), t, zero, _with_extremes(columns)))
    return {kind: concat(frames) for kind, frames in found.items()}


# --- roles and the fleet ---------------------------------------------------------------------------------------------


def group_day(num_workers: int, day: int, roles: Sequence[Role] = ROLES) -> dict[Kind, Columns]:
    """One line of all workers that have one of these roles."""
    shelves = range(-(-num_workers // SHELF_LINES))
    sizes = [min(SHELF_LINES, num_workers - shelf * SHELF_LINES) for shelf in shelves]
    parts = [
        _shelf_sums(template_of(shelf, day), size, role)
        for shelf, size in zip(shelves, sizes, strict=True)
        for role in roles
    ]
    found = _added(parts)
    state = found[STATE]
    state["sum_kv_usage"] = state["sum_kv_usage"] / state["sum_num_workers"]  # all have as many blocks
    state["num_load"] = state["num_kv"] = np.ones(DAY_S)  # one look at all of them
    return found


@lru_cache(maxsize=2 * NUM_TEMPLATES * len(ROLES))
def _shelf_sums(template: int, num_lines: int, role: Role) -> Mapping[Kind, Columns]:
    return _added([worker_day(template, slot) for slot in range(num_lines) if role_of(slot) is role])


def _added(days: Iterable[Mapping[Kind, Columns]]) -> dict[Kind, Columns]:
    """Several lines as one: work adds up, a second counts once, who waits longest does."""
    found: dict[Kind, Columns] = {}
    for day in days:
        for kind, columns in day.items():
            into = found.setdefault(kind, {})
            for name, values in columns.items():
                is_most = name in ONCE_A_SECOND or name == "sum_oldest_wait_s"
                join = np.maximum if is_most else np.add
                into[name] = join(into[name], values) if name in into else values
    return found


# --- requests --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=NUM_TEMPLATES * len(RULES))
def requests_day(template: int, rule: int) -> Mapping[str, Floats]:
    """Traffic of one rule, by second of arrival."""
    dice, t = np.random.default_rng((template, rule, 7)), np.arange(DAY_S)
    rate = list(RULES.values())[rule] * (1.0 + 0.6 * np.sin(2 * np.pi * (t / DAY_S - 0.3)))
    offered = dice.poisson(rate)
    errors = dice.binomial(offered, 0.002)
    good = dice.binomial(offered - errors, 0.97)
    columns = {"offered": offered, "decided": offered, "good": good, "errors": errors}
    columns |= {"rejected": 0 * offered, "cancelled": 0 * offered, "prompt_tokens": 900 * offered}
    columns |= {"cached_tokens": 300 * offered, "output_tokens": (GAPS_A_REQUEST + 1) * (offered - errors)}
    columns |= {"dropped_served": offered - errors, "kept_failed": errors}
    return {name: values.astype(np.float64) for name, values in columns.items()}


def traffic_days(template: int, *, is_fleet: bool) -> list[dict[Kind, Columns]]:
    """The fleet's line, with what gateways hold; or a line for each rule."""
    days: list[dict[Kind, Columns]] = [{TRAFFIC: dict(requests_day(template, rule))} for rule in range(len(RULES))]
    if not is_fleet:
        return days
    fleet = _added(days)
    held = np.random.default_rng((template, 8)).poisson(30.0, DAY_S).astype(np.float64)
    fleet[TRAFFIC] |= {"num_samples": np.ones(DAY_S), "sum_in_flight": held}
    return [fleet]


@lru_cache(maxsize=4)
def latencies_day(template: int, rule: int) -> Mapping[Kind, Frame]:
    """Histograms of one rule's requests as gateways see them, as line 0."""
    served = (requests_day(template, rule)["offered"] - requests_day(template, rule)["errors"]).astype(np.int64)
    t = np.repeat(np.arange(DAY_S), served)
    dice = np.random.default_rng((template, rule, 11))
    ttft = np.exp(dice.normal(-1.6 + 0.3 * rule, 0.4, len(t)))
    tpot = np.exp(dice.normal(-3.4, 0.15, len(t)))
    gap = tpot * np.exp(np.abs(dice.normal(0.0, 0.5, len(t))))
    kinds = {"ttft": ttft, "tpot": tpot, "gap": gap, "e2e": ttft + GAPS_A_REQUEST * tpot}
    found = {latency_kind(kind): _counted(t, _buckets(values)) for kind, values in kinds.items()}
    return found | {latency_kind("itl"): _gaps(GAPS_A_REQUEST * served, dice)}


def worker_latencies_day(template: int, role: int) -> Mapping[Kind, Frame]:
    """Histograms of one role's workers, which large fleets tell every ten seconds, as line 0."""
    dice = np.random.default_rng((template, role, 13))
    t = np.repeat(np.arange(0, DAY_S, WORKER_LATENCY_EACH_S), 40)
    handoff, queue = (np.exp(dice.normal(mean, 0.5, len(t))) for mean in (-3.5, -4.5))
    found = {latency_kind("worker_queue"): _counted(t, _buckets(queue))}
    if ROLES[role] is Role.DECODE:
        found[latency_kind("worker_handoff")] = _counted(t, _buckets(handoff))
    return found


def joined(days: Sequence[Mapping[Kind, Frame]], *, as_one: bool) -> dict[Kind, Frame]:
    """Histograms of several lines, each a line of its own or all as line 0."""
    found: dict[Kind, Frame] = {}
    for kind in {kind: 0 for day in days for kind in day}:
        frames = [
            Frame(each.line_ids + (0 if as_one else line), each.t, each.bucket, each.columns)
            for line, day in enumerate(days)
            if len(each := day.get(kind, EMPTY))
        ]
        found[kind] = concat(frames)
    return found


def _buckets(values_s: Floats) -> Ints:
    """`bucket_of` of each."""
    return np.minimum(np.searchsorted(_EDGES, values_s, side="left"), NUM_BUCKETS - 1)


#: Where each bucket ends, as `bucket_of` says.
_EDGES: Final = MIN_S * GAMMA ** np.arange(NUM_BUCKETS)


def _counted(t: Ints, buckets: Ints) -> Frame:
    groups = Groups.by(t, buckets)
    counts = np.diff(np.append(groups.starts, len(t))).astype(np.float64)
    t, buckets = groups.first(t), groups.first(buckets)
    return Frame(np.zeros(len(t), np.int64), t, buckets, {COUNT: counts})


def _gaps(num_gaps: Ints, dice: np.random.Generator) -> Frame:
    """So many gaps in each second, spread over the buckets around 33 ms."""
    first = bucket_of(0.028)
    share = np.exp(-0.5 * ((np.arange(24) - 9.0) / 5.0) ** 2)
    counts = dice.poisson(np.outer(num_gaps, share / share.sum()))
    t, at = np.nonzero(counts)
    return Frame(np.zeros(len(t), np.int64), t, at + first, {COUNT: counts[t, at].astype(np.float64)})
