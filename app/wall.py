"""What a wall display says at one reading: words, figures, pools, what happened last, and the two lines' points. Pure.

Text comes formatted, so the browser only places it; points come as whole permille of the peak, null where unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import tzinfo
from typing import Any

from app import foreign, format, frames, lines, marks, theme, words
from app.source import Look
from control.types.commands import Command
from control.types.events import FleetEvent
from control.types.fleet import FleetSnapshot, PoolStatus
from control.types.series import SeriesPoint, SeriesResult

Json = dict[str, Any]
WINDOW_S = 900
STEP_S = 1
NEWS_S = 30  # the youngest points, which may still change
NUM_SHOWN = 6  # two columns of three
BASIS: lines.Basis = "wall"
METRICS: tuple[str, ...] = tuple(line.metric for line in lines.utilization(BASIS, "phase", blended=False))


def view(
    look: Look, commands: Sequence[Command], events: Sequence[FleetEvent], now_unix_s: float, tz: tzinfo, plane: str
) -> Json:
    """All but the points. Without a snapshot: only why there is none."""
    snapshot = look.snapshot
    if snapshot is None:
        text = f"No answer yet: {look.error}" if look.error else f"The plane at {plane} is being asked."
        return {"state": "broken" if look.error else "starting", "word": "No data", "text": text}
    stale = look.is_stale(now_unix_s)
    answered = format.clock(look.answered_unix_s, tz)
    stale_text = words.stale_age(look.age_s(now_unix_s), answered) if stale else ""
    return {
        "state": "broken" if stale else snapshot.health,
        "color": theme.STATE_COLORS.get("broken" if stale else snapshot.health, theme.MIXED),
        "word": "Unknown" if stale else words.HEALTH_WORDS[snapshot.health],
        "text": stale_text or words.sentence(snapshot.health_text),
        "limit": _limit(snapshot) if not stale else "",
        "stale": stale,
        "at": snapshot.at_unix_s,
        "clock": format.clock(snapshot.at_unix_s, tz),
        "fleet": f"{snapshot.fleet_id} · {snapshot.model_id}",
        "simulated": snapshot.simulated,
        "empty": not snapshot.workers,
        "lines": _line_words(snapshot),
        "figures": _figures(snapshot),
        "pools": [_pool(pool) for pool in snapshot.pools if pool.num_desired or pool.num_ready or pool.num_other],
        "events": _events(commands, events, tz),
        "marks": _marks(commands, events, snapshot.at_unix_s),
    }


def _limit(snapshot: FleetSnapshot) -> str:
    """What limits the fleet, where its health does not say so already."""
    found = snapshot.bottleneck.text if snapshot.bottleneck is not None else ""
    return "" if found == snapshot.health_text else words.sentence(found)


def _line_words(snapshot: FleetSnapshot) -> list[Json]:
    drawn = lines.utilization(BASIS, "phase", blended=False)
    return [
        {
            "name": entry.label,
            "value": entry.value,
            "tag": entry.tag,
            "color": line.color,
            "dash": "" if line.dash == lines.SOLID else " ".join(str(part) for part in line.dash),
        }
        for line, entry in zip(drawn, lines.legend(drawn, snapshot, BASIS), strict=True)
    ]


def _figures(snapshot: FleetSnapshot) -> list[Json]:
    traffic = snapshot.traffic
    if foreign.is_unseen(snapshot):
        return [{"label": "Requests", "value": "not seen", "note": "they do not pass our gateway"}]
    return [
        {
            "label": "Goodput",
            "value": format.rate(traffic.goodput_rps),
            "note": f"{format.percent(traffic.attainment)} of {format.rate(traffic.offered_rps)} offered",
        },
        {
            "label": "TTFT p99",
            "value": format.duration(traffic.ttft_p99_s),
            "note": f"p50 {format.duration(traffic.ttft_p50_s)}",
        },
        {
            "label": "ITL p99",
            "value": format.duration(traffic.itl_p99_s),
            "note": f"p50 {format.duration(traffic.itl_p50_s)}",
        },
    ]


def _pool(pool: PoolStatus) -> Json:
    held = "queued" if pool.role == "prefill" else "KV held"
    return {
        "role": str(pool.role),
        "color": theme.ROLE_COLORS[pool.role],
        "value": f"{pool.num_ready} / {pool.num_desired}",
        "note": f"{words.load(pool)} {held}" + (f", {pool.num_other} changing" if pool.num_other else ""),
        "whole": pool.num_ready == pool.num_desired,
    }


def _events(commands: Sequence[Command], events: Sequence[FleetEvent], tz: tzinfo) -> list[Json]:
    """The newest commands and events, in one line each."""
    told: list[tuple[float, Json]] = [
        (
            each.created_unix_s,
            {"what": f"{words.command(each)} ({each.who}): {each.state}", "color": theme.STATE_COLORS[each.state]},
        )
        for each in commands
    ]
    for mark in marks.event_marks(events, near_s=2.0):
        color = theme.EVENT_COLORS[mark.kind]
        told.append((mark.at_unix_s, {"what": mark.label, "kind": mark.kind, "color": color}))
    told.sort(key=lambda each: each[0], reverse=True)
    return [{"at": format.clock(at, tz), **said} for at, said in told[:NUM_SHOWN]]


def _marks(commands: Sequence[Command], events: Sequence[FleetEvent], until: float) -> list[Json]:
    """Rules on the lines: where commands and events were."""
    since = until - WINDOW_S
    asked = [{"t": each.created_unix_s, "kind": ""} for each in commands if each.created_unix_s >= since]
    found = marks.event_marks([each for each in events if each.at_unix_s >= since], near_s=0.008 * WINDOW_S)
    return [*asked, *({"t": each.at_unix_s, "kind": each.kind} for each in found)]


# --- points ------------------------------------------------------------


def points(read: Sequence[SeriesResult | None], until_unix_s: float, last_s: int) -> Json:
    """Both lines over the last `last_s`, one value per second, without the youngest: not every worker has told it."""
    until = int(until_unix_s)
    since = until - last_s
    found = [_permille(frames.points_of(result), since, until) for result in read]
    top = frames.top_of([frames.largest([("", frames.points_of(result))]) for result in read])
    return {"since": since, "until": until, "window": WINDOW_S, "top": top, "lines": found}


def _permille(points: Sequence[SeriesPoint], since: int, until: int) -> list[int | None]:
    values: list[int | None] = [None] * (until - since)
    for point in points[:-1]:
        index = int(point.t_unix_s) - since
        if 0 <= index < len(values) and point.value is not None:
            values[index] = round(1000 * point.value)
    return values


def text(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
