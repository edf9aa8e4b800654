"""The parts that screens listen to, by name: the one table behind `app.stream` and the components of `app.push`.

Each is a composition of what the shared reader knows, for everybody in one time zone. Markup is made by `app.cards`,
which escapes all that comes from outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import tzinfo
from zlib import crc32

from app import alerts, cards, figures, foreign, format, limits, tables, theme, wall, words
from app.source import Hub
from app.stream import Build, Part
from control.errors import ControlError
from control.types.events import FleetEvent
from control.types.fleet import Capability, FleetSnapshot

LATEST_S = 3600.0
NUM_LATEST = 8
COURSE_S, COURSE_STEP_S = 900, 10
NOTHING_YET = (
    '<div class="pl pl-muted">Nothing yet. What somebody changes, and what happens to workers and their '
    "requests, appears here and on the lines.</div>"
)


# --- what a page is drawn from ------------------------------------------------------------


def tick(hub: Hub, _: tzinfo) -> Part:
    """The reading: a new one is a reason to draw a chart again."""
    return Part(json.dumps(hub.look().reading))


def drawn(hub: Hub, _: tzinfo) -> Part:
    """What a page's fixed part depends on: is the plane silent, and which workers are there."""
    look = hub.look()
    workers = sorted(each.worker_id for each in look.snapshot.workers) if look.snapshot is not None else []
    return Part(json.dumps(f"{look.is_stale(hub.now())}, {len(workers)}: {crc32(' '.join(workers).encode()):08x}"))


# --- markup ------------------------------------------------------------


def banners(hub: Hub, tz: tzinfo) -> str:
    """Stale state, then the fleet's own notices."""
    look, now, shown = hub.look(), hub.now(), []
    if look.is_stale(now):
        answered = format.clock(look.answered_unix_s, tz)
        text = f"{words.stale_age(look.age_s(now), answered)} Actions are disabled until it answers."
        shown.append(cards.banner(text, "broken", alert=True))
    if look.snapshot is not None and (found := notices(look.snapshot)):
        shown.append(cards.notices(found))
    return "".join(f'<div style="margin-bottom:6px">{banner}</div>' for banner in shown)


def notices(snapshot: FleetSnapshot) -> list[str]:
    """The plane's notices; a simulated fleet is always marked, whoever forgot to."""
    found = [*snapshot.notices, *foreign.notices(snapshot)]
    if snapshot.simulated and not any("simulat" in notice.lower() for notice in found):
        found.insert(0, "Simulated workers: steps take the time that a cost model says; no model is computed.")
    return found


def health(hub: Hub, tz: tzinfo) -> str:
    """ "Are we fine?" in words."""
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return ""
    stale = look.is_stale(hub.now())
    state = "broken" if stale else snapshot.health if snapshot.health in theme.STATE_COLORS else "attention"
    at = snapshot.at_unix_s
    num_gateways, num_workers = snapshot.traffic.num_gateways, len(snapshot.workers)
    is_routed = Capability.ROUTE in snapshot.capabilities
    is_listed = foreign.is_listed(snapshot)
    facts = (
        *foreign.facts(snapshot),
        f"{num_workers} worker{'' if num_workers == 1 else 's'}" if is_listed else "",
        f"{num_gateways} gateway{'' if num_gateways == 1 else 's'}" if is_routed else "",
        f"as of {format.clock(snapshot.at_unix_s, tz)}",
    )
    if snapshot.kind == "none" and not stale:
        return cards.health("No workers", "of this plane's own: others are on the page Fleets", "ok", facts[-1:], at)
    word = "Unknown" if stale else words.HEALTH_WORDS[snapshot.health]
    return cards.health(word, snapshot.health_text, state, facts, at)


def figure_cards(hub: Hub, _: tzinfo) -> str:
    snapshot = hub.look().snapshot
    if snapshot is None:
        return ""
    wanted = (*figures.COURSES, *(figures.ENGINE_COURSES if snapshot.is_attached else ()))
    read = {metric: hub.live(metric, "fleet", COURSE_S, COURSE_STEP_S).result for metric in wanted}
    return cards.figures(figures.figures(snapshot, read))


def load_cards(hub: Hub, _: tzinfo) -> str:
    snapshot = hub.look().snapshot
    if snapshot is None:
        return ""
    return cards.legend([], "Load and headroom") + cards.loads(figures.loads(snapshot))


def limit_card(hub: Hub, _: tzinfo) -> str:
    snapshot = hub.look().snapshot
    return limits.card(snapshot.bottleneck) if snapshot is not None else ""


def latest(hub: Hub, tz: tzinfo) -> str:
    """Commands and events of the last hour in one list, the newest first."""
    rows = tables.latest_rows(hub.commands(), latest_events(hub), NUM_LATEST, tz)
    head = cards.legend([], "Latest commands and events")
    if not rows:
        return head + NOTHING_YET
    return head + cards.table(("At", "What", "State", "Who", "Why", "Result"), rows, "Latest commands and events")


def latest_events(hub: Hub) -> list[FleetEvent]:
    """Of the last hour, newest first; none while they cannot be read: the rest is shown all the same."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return []
    try:
        return hub.events(snapshot.at_unix_s - LATEST_S, snapshot.at_unix_s)
    except ControlError:
        return []


# --- the wall ------------------------------------------------------------


def wall_view(hub: Hub, tz: tzinfo) -> Part:
    """Words and figures of the wall display."""
    return Part(wall.text(wall.view(hub.look(), hub.commands(), latest_events(hub), hub.now(), tz, hub.base_url)))


def wall_lines(hub: Hub, _: tzinfo) -> Part:
    """The two lines: the whole window to begin with, then the youngest points."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return Part("null")
    read = [hub.live(metric, "fleet", wall.WINDOW_S, wall.STEP_S).result for metric in wall.METRICS]
    whole, news = (wall.points(read, snapshot.at_unix_s, last_s) for last_s in (wall.WINDOW_S, wall.NEWS_S))
    return Part(wall.text(whole), wall.text(news))


def _markup(build: Callable[[Hub, tzinfo], str]) -> Build:
    return lambda hub, tz: Part(json.dumps(build(hub, tz), ensure_ascii=False))


PARTS: Mapping[str, Build] = {
    "tick": tick,
    "drawn": drawn,
    "banners": _markup(banners),
    "health": _markup(health),
    "figures": _markup(figure_cards),
    "loads": _markup(load_cards),
    "limits": _markup(limit_card),
    "latest": _markup(latest),
    "alerts": _markup(alerts.firing),
    "alert_list": _markup(alerts.listed),
    "wall": wall_view,
    "wall_lines": wall_lines,
}
