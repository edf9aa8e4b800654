"""What every command shares: the client of the running plane, output for people or as JSON, exit codes.

Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 plane (or gateway) unreachable, 4 refused, stale or not allowed,
5 not done within the time limit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control.auth import read_token
from control.client import PhaselineClient
from control.deployment import read_state
from control.errors import (
    CommandRefused,
    ControlError,
    NotAllowed,
    NotFound,
    PlaneUnreachable,
    SettingsError,
    StaleVersion,
)
from control.settings import Settings, load_settings
from control.stories import time_words


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    UNREACHABLE = 3
    REFUSED = 4
    TIMEOUT = 5


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

#: Set by the options before the command; "" means: as the settings and the run folder say.
remote: dict[str, str] = {"url": "", "token_file": "", "fleet": ""}


def exit_code(error: ControlError) -> Exit:
    """First match wins, most specific first."""
    table: tuple[tuple[type[ControlError], Exit], ...] = (
        (PlaneUnreachable, Exit.UNREACHABLE),
        (SettingsError, Exit.BAD_INPUT),
        (NotFound, Exit.BAD_INPUT),
        (CommandRefused, Exit.REFUSED),
        (StaleVersion, Exit.REFUSED),
        (NotAllowed, Exit.REFUSED),
    )
    return next((code for kind, code in table if isinstance(error, kind)), Exit.FAILED)


def one_line(error: ControlError) -> str:
    """What was wrong, with the value and the bound where the words do not name them already."""
    value = "" if error.value is None else printable(str(error.value))[:80]
    said = re.search(rf"(?<!\w){re.escape(value)}(?!\w)", error.detail)
    parts = [f"got {value}"] if value and not said else []
    if error.bound and error.bound.lower() not in error.detail.lower():
        parts.append(f"allowed: {error.bound}")
    return f"{error.detail} ({'; '.join(parts)})" if parts else error.detail


def plane_urls(settings: Settings) -> tuple[str, ...]:
    """Where the plane of this run folder listens: as it was started, which may differ from today's settings."""
    if remote["url"]:
        return (remote["url"].rstrip("/"),)
    own, *others = settings.plane_addresses
    state = read_state(settings.run_dir)
    if state is not None and (state.supervisor.is_alive or state.running):
        own = f"http://{state.settings['host']}:{state.settings['api_port']}"
    return (own, *others)


def connect(settings: Settings | None = None, timeout_s: float = 10.0) -> PhaselineClient:
    """A client with the operator's token. Raises PlaneUnreachable when nothing was ever started in this run folder."""
    settings = settings or load_settings()
    fleet_id = remote["fleet"] or None
    token_file = Path(remote["token_file"]) if remote["token_file"] else None
    if token_file is not None:
        try:
            token = token_file.read_text().strip()
        except OSError as error:
            raise SettingsError(f"--token-file {token_file}: {error.strerror}", field="token-file") from error
        return PhaselineClient(plane_urls(settings), token, timeout_s, fleet_id=fleet_id)
    if not (settings.run_dir / "secrets" / "operator_token").exists():
        raise PlaneUnreachable(f"nothing was started in run_dir {settings.run_dir}; `phaseline up` starts it")
    token = read_token(settings.run_dir, "operator")
    return PhaselineClient(plane_urls(settings), token, timeout_s, fleet_id=fleet_id)


def say(line: str) -> None:
    """A line for a person, plain."""
    typer.echo(line)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(plain(value), indent=2, sort_keys=False))


def plain(value: Any) -> Any:
    """A value of ours as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(each) for each in value]
        return sorted(items) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, Path):
        return str(value)
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Columns named in `right` are numbers. Unlimited width where nobody looks, so that pipes get whole lines."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("n/a" if each is None else printable(str(each))) for each in row))
    wide = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "200"))
    Console(width=wide, highlight=False, soft_wrap=False).print(table)


def printable(text: str) -> str:
    """Words that somebody typed, on one line and without what a terminal would obey."""
    return "".join(each if each.isprintable() else " " for each in text)


def percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def seconds(value: float | None) -> str | None:
    """Three significant digits, in ms below one second."""
    return None if value is None else time_words(value)
