"""The parts that screens listen to, by name: the one table behind `app.stream` and the components of `app.push`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo

from app import wall
from app.source import Hub
from app.stream import Build, Part
from control.errors import ControlError
from control.types import FleetEvent

LATEST_S = 3600.0


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


def latest_events(hub: Hub) -> list[FleetEvent]:
    """Of the last hour, newest first; none while they cannot be read: the rest is shown all the same."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return []
    try:
        return hub.events(snapshot.at_unix_s - LATEST_S, snapshot.at_unix_s)
    except ControlError:
        return []


PARTS: Mapping[str, Build] = {"wall": wall_view, "wall_lines": wall_lines}
