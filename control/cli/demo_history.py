"""`demo-history`: a month that nobody measured, in a database of its own, to browse in the console.

Decided here: where it goes, and that a database which holds a fleet already is refused. What is in it:
`control.history.demo`, `control.history.demo_days`.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from control.cli.shell import JsonFlag, print_json, say
from control.errors import SettingsError
from control.settings import load_settings

DAY_S = 86_400


def demo_history(
    days: Annotated[int, typer.Option(help="Days, up to the start of today (UTC).", min=1, max=366)] = 30,
    workers: Annotated[int, typer.Option(help="Workers, one in four of them prefill.", min=2, max=1000)] = 200,
    raw_days: Annotated[int, typer.Option(help="Days with single seconds; the others have rollups.", min=1)] = 1,
    out: Annotated[str, typer.Option(help="SQLite file to make; empty: demo-history.db in run_dir.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Fill a database of its own with the history of a fleet that never was, marked simulated. 200 workers take 16 GB.

    Every line of it is the same each time: workers, roles, routing rules, the fleet, requests and latencies.
    """
    from control.history.demo import Demo, fill_all  # the database is loaded by this verb alone
    from control.history.store import History

    settings = load_settings()
    path = (Path(out) if out else settings.run_dir / "demo-history.db").resolve()
    if path.exists():
        raise SettingsError(f"--out {path} is there already", field="out", value=str(path), bound="a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    until_s = int(time.time()) // DAY_S * DAY_S
    demo = Demo(
        fleet_id=settings.fleet_id, until_s=until_s, num_workers=workers, days=days, raw_days=min(days, raw_days)
    )
    history, begun_s = History.open(f"sqlite:///{path}"), time.monotonic()
    for done, total in fill_all(history, demo):
        if not as_json:
            say(f"{done} of {total} shelves of lines, {path.stat().st_size / 1e9:.1f} GB")
    history.close()
    keep_s = (days + 366) * DAY_S
    settings_of = {
        "PHASELINE_DATABASE_URL": f"sqlite:///{path}",
        "PHASELINE_RETENTION_RAW_S": str(keep_s),
        "PHASELINE_RETENTION_ROLLUP_S": str(keep_s),
    }
    browse = " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in settings_of.items()), "phaseline up --fleet none"]
    )
    told = {"file": path, "bytes": path.stat().st_size, "workers": workers, "days": days, "simulated": True}
    if as_json:
        print_json({**told, "spent_s": round(time.monotonic() - begun_s, 1), "browse": browse})
        return
    say(f"{path}: {workers} simulated workers, {days} days. To browse it, in a run folder of its own:")
    say(f"  {browse}")
