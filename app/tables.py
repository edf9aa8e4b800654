"""Control's values to rows: pandas frames for large tables, tuples for small ones, CSV for downloads. Pure.

Unknown stays None and shows as "n/a"; sums and differences that a page shows are made here, not in the views.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo

import pandas as pd

from app import format, words
from app.frames import mean, newest
from control.types import (
    Command,
    Desired,
    FleetSnapshot,
    PhaseUtilization,
    RequestRecord,
    Role,
    RoleInterval,
    SeriesResult,
)


def csv_text(results: Iterable[tuple[str, SeriesResult]]) -> str:
    """Long form: window, metric, unit, provenance, group, t, ISO time, value, min, max, count."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ("window", "metric", "unit", "provenance", "group", "t_unix_s", "time_utc", "value", "min", "max", "count")
    )
    for window, result in results:
        for series in result.series:
            for point in series.points:
                when = datetime.fromtimestamp(point.t_unix_s, UTC).isoformat()
                row = (point.t_unix_s, when, point.value, point.min, point.max, point.count)
                writer.writerow((window, result.metric, result.unit, result.provenance, series.label, *row))
    return out.getvalue()


def worker_rows(snapshot: FleetSnapshot, tz: tzinfo) -> pd.DataFrame:
    """One row per worker. Utilization in percent (the column draws a bar); None is an empty cell."""
    return pd.DataFrame(
        {
            "worker": [each.worker_id for each in snapshot.workers],
            "role": [_role_words(each.role, each.desired_role) for each in snapshot.workers],
            "state": [_state_words(each.state, drained=each.drained, alive=each.alive) for each in snapshot.workers],
            "since": [format.clock(each.role_since_unix_s, tz) for each in snapshot.workers],
            "prefill": [_percent(each.prefill, "wall_compute") for each in snapshot.workers],
            "decode": [_percent(each.decode, "wall_bandwidth") for each in snapshot.workers],
            "kv": [None if each.kv_usage is None else each.kv_usage * 100 for each in snapshot.workers],
            "queued": [each.queued_prefill_tokens for each in snapshot.workers],
            "waiting": [each.num_waiting for each in snapshot.workers],
            "running": [each.num_running for each in snapshot.workers],
            "leased": [each.num_leased for each in snapshot.workers],
            "weight": [each.weight for each in snapshot.workers],
            "device": [each.device for each in snapshot.workers],
            "host": [each.hostname for each in snapshot.workers],
            "version": [each.version for each in snapshot.workers],
            "restarts": [each.num_restarts for each in snapshot.workers],
            "last_restart": [each.last_restart_reason for each in snapshot.workers],
            "why": [each.reason for each in snapshot.workers],
        }
    )


def _percent(phase: PhaseUtilization | None, name: str) -> float | None:
    value: float | None = None if phase is None else getattr(phase, name)
    return None if value is None else value * 100


def _role_words(role: str, desired: str) -> str:
    return str(role) if role == desired else f"{role} → {desired}"


def _state_words(state: str, *, drained: bool, alive: bool) -> str:
    if not alive:
        return f"{state} (gone)"
    return f"{state} (by order)" if drained and state in ("draining", "drained") else str(state)


def interval_rows(found: Iterable[RoleInterval], now_unix_s: float, tz: tzinfo) -> list[tuple[str, str, str, str, str]]:
    """(from, for, role, state, reason), newest first."""
    newest_first = sorted(found, key=lambda each: each.start_unix_s, reverse=True)
    return [
        (
            format.moment(each.start_unix_s, tz),
            format.duration((each.end_unix_s or now_unix_s) - each.start_unix_s),
            str(each.role),
            str(each.state),
            each.reason,
        )
        for each in newest_first
    ]


def request_rows(records: Sequence[RequestRecord], tz: tzinfo) -> pd.DataFrame:
    """One row per request; times as text with their unit, sorted as they came."""
    return pd.DataFrame(
        {
            "arrived": [format.clock(each.arrival_unix_s, tz) for each in records],
            "outcome": [outcome(each) for each in records],
            "rule": [each.rule for each in records],
            "prefill": [each.prefill_worker for each in records],
            "decode": [each.decode_worker for each in records],
            "prompt": [each.prompt_tokens for each in records],
            "cached": [each.cached_tokens for each in records],
            "output": [each.output_tokens for each in records],
            "ttft_ms": [_ms_or_none(each.ttft_s) for each in records],
            "tpot_ms": [_ms_or_none(each.tpot_s) for each in records],
            "gap_ms": [_ms_or_none(each.max_gap_s) for each in records],
            "e2e_s": [each.e2e_s for each in records],
            "request": [each.request_id for each in records],
        }
    )


def _ms_or_none(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000.0


def outcome(record: RequestRecord) -> str:
    """good | late | cancelled | the HTTP status of an error."""
    if record.status >= 400:
        return f"error {record.status}"
    if record.good is None:
        return "cancelled"
    return "good" if record.good else "late"


def command_rows(commands: Sequence[Command], tz: tzinfo) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [each.command_id for each in commands],
            "at": [format.moment(each.created_unix_s, tz) for each in commands],
            "who": [each.who for each in commands],
            "action": [words.action(each.action) for each in commands],
            "why": [each.why for each in commands],
            "state": [str(each.state) for each in commands],
            "version": [f"{each.base_version} → {each.version_after}" for each in commands],
            "took": [format.duration(each.updated_unix_s - each.created_unix_s) for each in commands],
            "result": [each.result for each in commands],
        }
    )


def rule_changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, int, int, int]]:
    """(rule, before, after, difference) for every rule that counts on either side, in the order rules are walked."""
    order = {name: index for index, name in enumerate(words.RULE_WORDS)}
    names = sorted({*before, *after}, key=lambda name: order.get(name, len(order)))
    rows = [(name, before.get(name, 0), after.get(name, 0)) for name in names]
    return [(name, old, new, new - old) for name, old, new in rows if old or new]


def summary(result: SeriesResult) -> list[tuple[str, float | None, float | None, float | None, float | None]]:
    """(group, last, mean, least, largest) of each line. The mean is over buckets with data."""
    rows = []
    for series in result.series:
        low = [low for point in series.points if (low := point.value if point.min is None else point.min) is not None]
        high = [top for point in series.points if (top := point.value if point.max is None else point.max) is not None]
        rows.append(
            (
                series.label or "fleet",
                newest(series.points),
                mean(series.points),
                min(low, default=None),
                max(high, default=None),
            )
        )
    return rows


def sizes_words(wanted: Iterable[int], num_workers: int) -> tuple[bool, str]:
    """Do the pool sizes add up to the fleet? (fits, in words)"""
    total = sum(wanted)
    if total > num_workers:
        return False, f"{total} workers wanted, the fleet has {num_workers}: take {total - num_workers} away somewhere."
    if total < num_workers:
        spare = num_workers - total
        return True, f"{total} of {num_workers} workers; {spare} would be left as a spare without a role."
    return True, f"All {num_workers} workers have a role."


def weight_rows(snapshot: FleetSnapshot, weights: Mapping[str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "worker": [each.worker_id for each in snapshot.workers],
            "role": [str(each.role) for each in snapshot.workers],
            "weight": [weights[each.worker_id] for each in snapshot.workers],
        }
    )


def pool_counts(desired: Desired) -> dict[str, int]:
    return {str(role): desired.pool_size(role) for role in (Role.PREFILL, Role.DECODE, Role.MIXED)}


def table_height(num_rows: int, most: int) -> int:
    """Pixels of a table that shows all its rows, or `most` of them with a scroll bar."""
    return 33 + 31 * min(num_rows, most)
