"""What happened in a window: commands, events and missed SLOs, read together for the charts and for the list below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo

from app import alerts, breaches, cards, limited, marks, routing_steps, tables
from app.limited import Limited
from app.routing_steps import Lane
from app.source import Hub
from control.types.alerts import Alert
from control.types.commands import Command, Desired
from control.types.events import EventKind, FleetEvent

NUM_LISTED = 40
VERDICTS: tuple[EventKind, ...] = ("bottleneck",)
VERDICT_BACK_S = 7 * 86_400.0
VERDICTS_EVERY_S = 5.0
HEAD = ("At", "What", "State", "Who", "Why", "Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """Of [since, until)."""

    since_unix_s: float
    until_unix_s: float
    commands: tuple[Command, ...] = ()
    events: tuple[FleetEvent, ...] = ()
    alerts: tuple[Alert, ...] = ()  # those that can reach into it
    wanted_before: Desired | None = None  # at its begin
    verdicts: tuple[FleetEvent, ...] = ()  # of the bottleneck, those before it too

    def lanes(self, since_unix_s: float) -> tuple[Lane, ...]:
        """Routing settings of a chart that begins with the window, or later."""
        return routing_steps.lanes(self.commands, self.wanted_before, since_unix_s)

    def limited(self, since_unix_s: float) -> list[Limited]:
        """What limited, in a chart that begins with the window, or later."""
        return limited.intervals(self.verdicts, since_unix_s, self.until_unix_s)

    def marks(self, since_unix_s: float | None = None) -> dict[str, bytes]:
        """The datasets `commands`, `events` and `breaches` of a chart that begins with the window, or later."""
        since = self.since_unix_s if since_unix_s is None else since_unix_s
        return {
            "breaches": breaches.dataset(self.alerts, since, self.until_unix_s),
            **marks.marks(self.commands, self.events, since, self.until_unix_s),
        }


def read(hub: Hub, since_unix_s: float, until_unix_s: float) -> Happened:
    """May raise."""
    commands = tuple(hub.commands_in(since_unix_s, until_unix_s))
    return Happened(
        since_unix_s=since_unix_s,
        until_unix_s=until_unix_s,
        commands=commands,
        events=tuple(hub.events(since_unix_s, until_unix_s)),
        alerts=tuple(alerts.reaching(hub, since_unix_s)),
        wanted_before=_wanted_before(hub, commands, since_unix_s),
        verdicts=_verdicts(hub, since_unix_s, until_unix_s),
    )


def _verdicts(hub: Hub, since_unix_s: float, until_unix_s: float) -> tuple[FleetEvent, ...]:
    """Of the window, and of the week before it: the last one holds when it begins. None while the plane is silent."""
    if hub.look().error:
        return ()
    begin, end = since_unix_s - VERDICT_BACK_S, until_unix_s
    key = ("verdicts", begin // VERDICTS_EVERY_S, end // VERDICTS_EVERY_S)
    return tuple(hub.cached(key, 60.0, lambda plane: plane.fleet_events(begin, end, kinds=VERDICTS)))


def _wanted_before(hub: Hub, commands: Sequence[Command], since_unix_s: float) -> Desired | None:
    """What was wanted when the window began: as its first command found it, else as the last one before it left it."""
    if commands:
        first = commands[-1]
        if first.desired_before is not None or first.base_version == 0:
            return first.desired_before
        key = ("command before", first.command_id)
        found = hub.cached(key, 600.0, lambda plane: plane.commands(1, first.command_id))
        return found[0].desired_after if found else None
    newest, snapshot = hub.commands(), hub.look().snapshot
    if snapshot is not None and (not newest or newest[0].created_unix_s < since_unix_s):
        return snapshot.desired
    found = hub.cached(
        ("command before", since_unix_s), 600.0, lambda plane: plane.commands(1, until_unix_s=since_unix_s)
    )
    return found[0].desired_after if found else None


def listed(found: Happened, tz: tzinfo) -> str:
    """The list, newest first."""
    missed = [
        each
        for each in breaches.breaches(found.alerts)
        if found.since_unix_s < each.end_unix_s and each.start_unix_s < found.until_unix_s
    ]
    rows = tables.latest_rows(found.commands, found.events, NUM_LISTED, tz, missed)
    if not rows:
        return '<div class="pl pl-muted">Nobody changed anything in this window, and nothing happened to workers.</div>'
    return cards.table(HEAD, rows, "Commands and events of this window")
