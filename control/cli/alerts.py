"""`phaseline alerts`: what somebody should know now, and what has ended lately."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from control.cli.history import parse_duration
from control.cli.shell import JsonFlag, connect, print_json, print_table, say
from control.types.alerts import Alert


def alerts(
    since: Annotated[str, typer.Option(help="Also those that ended: 15m, 1h, 7d back.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many.", min=1, max=1_000)] = 100,
    as_json: JsonFlag = False,
) -> None:
    """Alerts that pend and fire: the SLO's error budget, dead workers, empty pools, the history, a takeover."""
    since_unix_s = time.time() - parse_duration(since, "since") if since else None
    with connect() as client:
        found = client.alerts(since_unix_s, limit=limit)
    if as_json:
        print_json(found)
    elif found:
        print_table(("since", "state", "severity", "alert", "about", "what", "webhook"), [_row(each) for each in found])
    else:
        say("no alert pends or fires")


def _row(alert: Alert) -> tuple[object, ...]:
    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(alert.since_unix_s)),
        alert.state,
        alert.severity,
        alert.name,
        alert.subject or "-",
        alert.text,
        alert.not_told or ", ".join(alert.told) or "-",
    )
