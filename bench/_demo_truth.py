"""What a generated history must answer: computed from the generator's seconds, with nothing of the history between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import ceil, floor, isclose
from typing import Any, Final

import numpy as np

from control.history.chunks import PHASE_KINDS, STATE, TRAFFIC, Kind
from control.history.codec import Floats, Ints
from control.history.demo import Demo
from control.history.demo_days import (
    DAY_S,
    NUM_TEMPLATES,
    ROLES,
    RULES,
    Columns,
    group_day,
    latencies_day,
    requests_day,
    template_of,
    traffic_days,
    worker_day,
    worker_latencies_day,
)
from control.history.frames import COUNT
from control.history.schema import SHELF_LINES
from control.history.series import SeriesQuery, base_step
from control.metrics import METRICS_BY_NAME
from control.types.series import Series, SeriesResult
from control.types.workers import Role
from engine.histogram import quantile

_PREFILL, _DECODE = PHASE_KINDS
#: Metrics that keep the smallest and the largest second: (kind, what is divided, by what) of one second.
BANDS: Final[Mapping[str, tuple[Kind, str, tuple[Kind, str] | None]]] = {
    "prefill_compute_wall": (_PREFILL, "flops", (STATE, "flops_peak")),
    "decode_bandwidth_wall": (_DECODE, "bytes", (STATE, "bytes_peak")),
    "decode_bandwidth_in_phase": (_DECODE, "bytes", (_DECODE, "bytes_room")),
    "decode_busy": (_DECODE, "busy_s", (STATE, "worker_s")),
    "decode_tokens_per_s": (_DECODE, "tokens", None),
    "kv_usage": (STATE, "sum_kv_usage", None),
    "num_running": (STATE, "sum_num_running", None),
    "num_workers": (STATE, "sum_num_workers", None),
    "in_flight": (TRAFFIC, "sum_in_flight", None),
}
#: Metrics whose buckets are recounted: (what is divided, by what; "" is the time).
RATES: Final = {"offered_rps": ("offered", ""), "goodput_rps": ("good", ""), "attainment": ("good", "decided")}


def agrees(demo: Demo, query: SeriesQuery, found: SeriesResult) -> bool:
    """Whether every line shows every true extreme; of what has no extremes, whether a whole bucket is exactly right."""
    if query.metric in BANDS:
        return all(_shows_extremes(demo, query, found, line) for line in found.series)
    return all(_is_exact(demo, query, found.step_s, line) for line in found.series)


# --- extremes --------------------------------------------------------------------------------------------------------


def _shows_extremes(demo: Demo, query: SeriesQuery, found: SeriesResult, line: Series) -> bool:
    """Whether smallest and largest of all points are those of all seconds that they stand for."""
    step_s = found.step_s
    is_raw = query.until_unix_s >= demo.until_s - demo.raw_days * DAY_S
    whole_s = 1 if is_raw else base_step(step_s)
    since = max(floor(query.since_unix_s / step_s) * step_s, demo.since_s)
    until = min(demo.until_s, ceil(query.until_unix_s / whole_s) * whole_s)
    parts = [
        _extremes(demo, query, line.label, day_s, since, until) for day_s in range(since - since % DAY_S, until, DAY_S)
    ]
    low, high = min(low for low, _ in parts), max(high for _, high in parts)
    lows = [each.min for each in line.points if each.min is not None]
    highs = [each.max for each in line.points if each.max is not None]
    if np.isnan(low):
        return not lows
    return bool(lows) and isclose(min(lows), low, rel_tol=1e-9) and isclose(max(highs), high, rel_tol=1e-9)


def _extremes(demo: Demo, query: SeriesQuery, name: str, day_s: int, since: int, until: int) -> tuple[float, float]:
    place = _place(query.by, name, day_s // DAY_S)
    if since <= day_s and day_s + DAY_S <= until:
        return _day_extremes(demo.num_workers, query.by, name if query.by == "role" else "", place, query.metric)
    values = _seconds(demo.num_workers, query.by, name if query.by == "role" else "", place, query.metric)
    part = values[max(0, since - day_s) : until - day_s]
    return float(part.min()), float(part.max())


def _place(by: str, name: str, day: int) -> tuple[int, int]:
    """Template and place of a line on that day: lines with equal ones do the same."""
    if by != "worker":
        return day % NUM_TEMPLATES, 0
    shelf, slot = divmod(int(name[1:]), SHELF_LINES)
    return template_of(shelf, day), slot


@lru_cache(maxsize=4096)
def _day_extremes(num_workers: int, by: str, role: str, place: tuple[int, int], metric: str) -> tuple[float, float]:
    values = _seconds(num_workers, by, role, place, metric)
    return float(values.min()), float(values.max())


@lru_cache(maxsize=600)
def _seconds(num_workers: int, by: str, role: str, place: tuple[int, int], metric: str) -> Floats:
    """The metric in each second of that day; NaN where it has none."""
    day = _day(num_workers, by, role, place)
    kind, part, whole = BANDS[metric]
    if kind not in day:  # a prefill worker does not decode
        return np.full(DAY_S, np.nan if whole and whole[0] == kind else 0.0)
    values = day[kind][part]
    return values / day[whole[0]][whole[1]] if whole else values


def _day(num_workers: int, by: str, role: str, place: tuple[int, int]) -> Mapping[Kind, Columns]:
    template, slot = place
    if by == "worker":
        return worker_day(template, slot)
    if by == "role":
        return group_day(num_workers, template, [Role(role)])
    return group_day(num_workers, template) | traffic_days(template, is_fleet=True)[0]


# --- rates and percentiles -------------------------------------------------------------------------------------------


def _is_exact(demo: Demo, query: SeriesQuery, step_s: int, line: Series) -> bool:
    """The middle one of the line's whole buckets. An empty one has no value."""
    whole = [
        each
        for each in line.points
        if max(demo.since_s, query.since_unix_s) <= each.t_unix_s
        and each.t_unix_s + step_s <= min(demo.until_s, query.until_unix_s)
    ]
    if not whole:
        return True
    point = whole[len(whole) // 2]
    true = _true_value(query, line.label, int(point.t_unix_s), int(point.t_unix_s) + step_s)
    if true is None or point.value is None:
        return true is point.value
    return isclose(point.value, true, rel_tol=1e-12)


def _true_value(query: SeriesQuery, name: str, since: int, until: int) -> float | None:
    if query.metric in RATES:
        part, whole = (_total(query.by, name, column, since, until) for column in RATES[query.metric])
        return part / whole if whole else None
    kind, q = METRICS_BY_NAME[query.metric].kind, int(query.metric.split("_p")[1].removesuffix("_s")) / 100
    counts: dict[int, int] = {}
    for day_s, first, last in _days(since, until):
        for rows in _rows(query.by, name, kind, day_s // DAY_S % NUM_TEMPLATES):
            starts, buckets, each = rows
            part = slice(starts[first], starts[last])
            for bucket, count in enumerate(np.bincount(buckets[part], each[part]).tolist()):
                counts[bucket] = counts.get(bucket, 0) + int(count)
    return quantile({bucket: count for bucket, count in counts.items() if count}, q)


def _days(since: int, until: int) -> Iterator[tuple[int, int, int]]:
    """(day, first second in it, last) of a range."""
    for day_s in range(since - since % DAY_S, until, DAY_S):
        yield day_s, max(0, since - day_s), min(DAY_S, until - day_s)


def _total(by: str, name: str, column: str, since: int, until: int) -> float:
    if not column:
        return float(until - since)
    rules = range(len(RULES)) if by == "fleet" else [list(RULES).index(name)]
    return sum(
        float(requests_day(day_s // DAY_S % NUM_TEMPLATES, rule)[column][first:last].sum())
        for day_s, first, last in _days(since, until)
        for rule in rules
    )


def _rows(by: str, name: str, kind: str, template: int) -> list[tuple[Ints, Any, Any]]:
    """Histograms behind a line: where each second begins, buckets, counts."""
    if kind.startswith("worker_"):
        roles = [number for number, role in enumerate(ROLES) if by == "fleet" or role.value == name]
        found = [_compact("role", template, role).get(f"latency {kind}") for role in roles]
    else:
        rules = [number for number, rule in enumerate(RULES) if by == "fleet" or rule == name]
        found = [_compact("rule", template, rule).get(f"latency {kind}") for rule in rules]
    return [each for each in found if each is not None]


@lru_cache(maxsize=NUM_TEMPLATES * (len(ROLES) + len(RULES)))
def _compact(scope: str, template: int, number: int) -> dict[Kind, tuple[Ints, Any, Any]]:
    frames = latencies_day(template, number) if scope == "rule" else worker_latencies_day(template, number)
    seconds = np.arange(DAY_S + 1)
    return {
        kind: (
            np.searchsorted(frame.t, seconds),
            frame.bucket.astype(np.int16),
            frame.columns[COUNT].astype(np.float32),
        )
        for kind, frame in frames.items()
    }
