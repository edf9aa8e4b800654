"""Control's values to rows: pandas frames for large tables, tuples for small ones, CSV for downloads. Pure.

Unknown stays None and shows as "n/a"; sums and differences that a page shows are made here, not in the views.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo

import pandas as pd

from app import cards, format, words
from app.breaches import Breach
from app.frames import Away, is_percentile, mean, newest
from app.marks import LOOKS, MOVE_KINDS
from control.stories import event_words, loss_words, move_words, time_words
from control.types.commands import Command, Desired
from control.types.events import FleetEvent
from control.types.fleet import FleetSnapshot
from control.types.requests import RequestRecord, SloBound
from control.types.series import SeriesResult
from control.types.workers import PhaseUtilization, Role, RoleInterval

TOGETHER_S = 10.0


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
            "device": ["not named" if each.device == "unknown" else each.device for each in snapshot.workers],
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


def life_rows(
    held: Iterable[RoleInterval],
    events: Iterable[FleetEvent],
    away: Iterable[Away],
    commands: Iterable[Command],
    now_unix_s: float,
    tz: tzinfo,
) -> list[tuple[cards.Cell, ...]]:
    """One worker's life, newest first: from, for, what, and the story behind it."""
    told: list[tuple[float, float | None, str, str]] = [
        (
            each.start_unix_s,
            (each.end_unix_s or now_unix_s) - each.start_unix_s,
            cards.role(each.role) + ("" if each.state == str(each.role) else f" {cards.text(str(each.state))}"),
            words.sentence(each.reason) or "–",
        )
        for each in held
    ]
    told += [
        (
            each.start_unix_s,
            (each.end_unix_s or now_unix_s) - each.start_unix_s,
            cards.event("died") if each.kind == "died" else "away",
            _away_words(each),
        )
        for each in away
    ]
    told += [
        (each.at_unix_s, None, cards.event(LOOKS[each.kind]), words.sentence(event_words(each)))
        for each in events
        if each.kind in MOVE_KINDS
    ]
    told += [
        (each.created_unix_s, None, "command", f"{each.command_id}: {words.command(each)} by {each.who}")
        for each in commands
    ]
    told.sort(key=lambda row: row[0], reverse=True)
    return [
        (
            cards.Cell(format.clock(at, tz) if _same_day(at, now_unix_s, tz) else format.moment(at, tz)),
            cards.Cell("" if length_s is None else format.duration(length_s), num=True),
            cards.Cell(what, html=True),
            cards.Cell(text),
        )
        for at, length_s, what, text in told
    ]


def _same_day(one_unix_s: float, other_unix_s: float, tz: tzinfo) -> bool:
    return datetime.fromtimestamp(one_unix_s, tz).date() == datetime.fromtimestamp(other_unix_s, tz).date()


def _away_words(away: Away) -> str:
    why = words.sentence(away.reason) or ("–" if away.kind else "Nobody saw it end")
    return why + (". It is being started anew" if away.end_unix_s is None else "")


def concerns(command: Command, worker_id: str) -> bool:
    """Whether a command was about this worker: by name, or because it changed its role."""
    if command.action.worker_id == worker_id or worker_id in (command.action.weights or {}):
        return True
    before, after = command.desired_before, command.desired_after
    return before is not None and after is not None and before.roles.get(worker_id) != after.roles.get(worker_id)


def request_rows(records: Sequence[RequestRecord], tz: tzinfo) -> pd.DataFrame:
    """One row per request; times as text with their unit, sorted as they came."""
    return pd.DataFrame(
        {
            "arrived": [format.clock(each.arrival_unix_s, tz) for each in records],
            "outcome": [outcome(each) for each in records],
            "went_on": [went_on(each) for each in records],
            "stall_ms": [_ms_or_none(worst_stall(each)) for each in records],
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
            "past": [broken_words(each) for each in records],
            "request": [each.request_id for each in records],
        }
    )


BOUND_WORDS: Mapping[SloBound, str] = {"ttft": "TTFT", "tpot": "TPOT", "max_gap": "largest gap"}


def broken_words(record: RequestRecord) -> str:
    """Bounds of the SLO that it was past: "TTFT, largest gap"."""
    return ", ".join(BOUND_WORDS[bound] for bound in record.broken)


def went_on(record: RequestRecord) -> str:
    """ "w3 after w1 died, w2 from w3": where it went on, in order."""
    told = []
    for move in record.moves:
        lost = loss_words(move.from_worker, move.cause)
        cause = f"after {lost}" if move.kind == "failover" else f"from {move.from_worker}"
        told.append(f"{move.to_worker or 'nowhere'} {cause}")
    return ", ".join(told)


def worst_stall(record: RequestRecord) -> float | None:
    return max((move.stall_s for move in record.moves if move.stall_s is not None), default=None)


def story(record: RequestRecord) -> list[tuple[str, str, str]]:
    """(after, what, in words): from its arrival over every move to its end."""
    rows = [(0.0, "arrived", words.sentence(words.RULE_WORDS.get(record.rule, record.rule or "not routed")))]
    if record.ttft_s is not None:
        rows.append((record.ttft_s, "token 1", "The first token"))
    rows += [(each.at_s, LOOKS[each.kind], words.sentence(move_words(each))) for each in record.moves]
    rows.sort(key=lambda row: row[0])
    told = [(format.duration(at_s), what, text) for at_s, what, text in rows]
    return [
        *told,
        (format.duration(record.e2e_s), "ended", f"{words.sentence(outcome(record))}, {record.output_tokens} tokens"),
    ]


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


def latest_rows(
    commands: Iterable[Command],
    events: Iterable[FleetEvent],
    limit: int,
    tz: tzinfo,
    breaches: Iterable[Breach] = (),
) -> list[tuple[cards.Cell, ...]]:
    """Commands, events and breaches, newest first: when, what, state or kind, who, why, result. A first start is no
    event."""
    told: list[tuple[float, tuple[cards.Cell, ...]]] = [
        (
            each.created_unix_s,
            (
                cards.Cell(format.clock(each.created_unix_s, tz)),
                cards.Cell(words.command(each)),
                cards.Cell(cards.state(each.state), html=True),
                cards.Cell(each.who),
                cards.Cell(each.why or "–"),
                cards.Cell(each.result),
            ),
        )
        for each in commands
    ]
    for group in _together(event for event in events if event.kind in LOOKS):
        what, result = words.events_parts(group)
        cells = (what, cards.event(LOOKS[group[0].kind]), "–", "–", result)
        at = cards.Cell(format.clock(group[0].at_unix_s, tz))
        told.append((group[0].at_unix_s, (at, *(cards.Cell(text, html=i == 1) for i, text in enumerate(cells)))))
    for each in breaches:
        length = time_words(each.end_unix_s - each.start_unix_s)
        cells = (f"SLO budget burned for {length}", cards.state("burned"), "–", "–", each.text)
        at = cards.Cell(format.clock(each.start_unix_s, tz))
        told.append((each.start_unix_s, (at, *(cards.Cell(text, html=i == 1) for i, text in enumerate(cells)))))
    told.sort(key=lambda row: row[0], reverse=True)
    return [cells for _, cells in told[:limit]]


def _together(events: Iterable[FleetEvent]) -> list[list[FleetEvent]]:
    """Workers that died, or were back, within TOGETHER_S of each other are one line; anything else is its own."""
    groups: list[list[FleetEvent]] = []
    newest: dict[str, list[FleetEvent]] = {}
    for event in sorted(events, key=lambda each: each.at_unix_s):
        group = newest.get(event.kind) if event.kind in ("died", "restarted") else None
        if group is not None and event.at_unix_s - group[-1].at_unix_s <= TOGETHER_S:
            group.append(event)
        else:
            newest[event.kind] = [event]
            groups.append(newest[event.kind])
    return groups


def rule_changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, int, int, int]]:
    """(rule, before, after, difference) for every rule that counts on either side, in the order rules are walked."""
    order = {name: index for index, name in enumerate(words.RULE_WORDS)}
    names = sorted({*before, *after}, key=lambda name: order.get(name, len(order)))
    rows = [(name, before.get(name, 0), after.get(name, 0)) for name in names]
    return [(name, old, new, new - old) for name, old, new in rows if old or new]


def summary(result: SeriesResult) -> list[tuple[str, float | None, float | None, float | None, float | None]]:
    """(group, last, whole, least, largest) of each line. Whole: the mean over buckets with data, or of a percentile
    what it is of all of them together: percentiles are never averaged."""
    rows = []
    for series in result.series:
        low = [low for point in series.points if (low := point.value if point.min is None else point.min) is not None]
        high = [top for point in series.points if (top := point.value if point.max is None else point.max) is not None]
        rows.append(
            (
                series.label or "fleet",
                newest(series.points),
                series.whole if is_percentile(result.metric) else mean(series.points),
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
