"""The command line `phaseline`. Commands are grouped by module; errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from control.cli import (
    alerts,
    attached,
    bench,
    commands,
    demo_history,
    export,
    faults,
    history,
    lifecycle,
    requests,
    tokens,
)
from control.cli.bottleneck import bottleneck
from control.cli.serve import serve_fleet
from control.cli.shell import Exit, exit_code, one_line, remote
from control.cli.traffic import traffic
from control.errors import ControlError

HELP = """Operate LLM inference that is split by phase: start it, see it, resize it.

Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 plane unreachable, 4 refused, stale or not allowed, 5 time limit.
Settings come from PHASELINE_* and phaseline.toml; `phaseline settings` lists them all.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.callback()
def common(
    url: Annotated[str, typer.Option(help="Control API of a plane elsewhere.", metavar="URL")] = "",
    token_file: Annotated[str, typer.Option(help="File with a token for it.", metavar="FILE")] = "",
    fleet: Annotated[str, typer.Option(help="An attached fleet; default: our own.", metavar="NAME")] = "",
) -> None:
    remote.update(url=url, token_file=token_file, fleet=fleet)


for function, name in (
    (lifecycle.up, "up"),
    (lifecycle.down, "down"),
    (lifecycle.upgrade, "upgrade"),
    (lifecycle.logs, "logs"),
    (lifecycle.login, "login"),
    (lifecycle.sample_traffic, "sample-traffic"),
    (lifecycle.doctor, "doctor"),
    (lifecycle.settings, "settings"),
    (lifecycle.version, "version"),
    (commands.status, "status"),
    (attached.attach, "attach"),
    (attached.allow, "allow"),
    (attached.forbid, "forbid"),
    (attached.detach, "detach"),
    (attached.fleets, "fleets"),
    (serve_fleet, "serve"),
    (bottleneck, "bottleneck"),
    (commands.resize, "resize"),
    (commands.flip, "flip"),
    (commands.drain, "drain"),
    (commands.undrain, "undrain"),
    (commands.undo, "undo"),
    (commands.commands, "commands"),
    (history.series, "series"),
    (export.export, "export"),
    (demo_history.demo_history, "demo-history"),
    (history.events, "events"),
    (alerts.alerts, "alerts"),
    (requests.requests, "requests"),
    (requests.request, "request"),
    (traffic, "traffic"),
    (bench.bench, "bench"),
):
    app.command(name)(function)
app.add_typer(commands.route_app, name="route", help="Show or change how requests are routed.")
app.add_typer(faults.app, name="faults", help="Do faults to this host's deployment, and check that nothing was lost.")
app.add_typer(tokens.app, name="token", help="Who may use the control API.")


def run() -> None:
    """Entry point. One line for each error, never a traceback."""
    try:
        sys.exit(app(standalone_mode=False) or Exit.OK)
    except ControlError as error:
        print(f"phaseline: {one_line(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
    except TyperException as error:
        print_usage_error(error)
        sys.exit(Exit.BAD_INPUT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def print_usage_error(error: TyperException) -> None:
    """An unknown command or option, a missing argument. A command without any has printed its help by now."""
    message = " ".join(str(getattr(error, "format_message", lambda: error)()).split())
    command = getattr(getattr(error, "ctx", None), "command_path", "phaseline")
    if message:
        print(f"phaseline: {message} (`{command} --help`)", file=sys.stderr)


if __name__ == "__main__":
    run()
