"""`phaseline faults`: fault scenarios against the deployment that runs on this host, and what they showed."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from control.cli.shell import Exit, JsonFlag, print_json, print_table, remote, say, seconds
from control.errors import CommandRefused
from control.faults.scenario import Scenario, named, shipped
from control.settings import load_settings

if TYPE_CHECKING:
    from control.faults.report import Report

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_scenarios(as_json: JsonFlag = False) -> None:
    """The scenarios that ship. Unsafe ones may cost requests or commands of others."""
    known = shipped().values()
    if as_json:
        print_json([{"name": s.name, "help": s.help, "safe": s.is_safe, "events": _words(s)} for s in known])
        return
    print_table(
        ("scenario", "what", "events", "safe"),
        [(each.name, each.help, _words(each), "yes" if each.is_safe else "no") for each in known],
    )


@app.command("run")
def run(
    scenario: Annotated[
        str, typer.Argument(help="A name from `phaseline faults list`, a TOML file, or `all`.")
    ] = "all",
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Also what may cost requests or commands of others.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of prompts and choices; default: a new one.", min=0)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send streams, do the scenario's faults to this host's deployment, and check that nothing was lost.

    Exit codes: 0 all checks ok, 1 one failed, 2 bad input, 3 nothing runs here, 4 refused.
    """
    chosen = _chosen(scenario, unsafe)
    if remote["url"]:
        raise CommandRefused("faults are done to a deployment on this host only", field="url", value=remote["url"])
    from control.faults.place import Place  # brings aiohttp, which no other verb needs
    from control.faults.runner import Session

    with Place(load_settings().run_dir) as place:
        _confirm(chosen, yes)
        session = Session(place, secrets.randbelow(10**6) if seed is None else seed)
        reports = []
        for each in chosen:
            reports.append(session.run(each))
            if not as_json:
                _show(reports[-1])
    if as_json:
        print_json([each.as_dict() for each in reports])
    raise typer.Exit(Exit.OK if all(each.ok for each in reports) else Exit.FAILED)


def _chosen(name: str, unsafe: bool) -> list[Scenario]:
    """Raises CommandRefused for an unsafe one that was not asked for as such."""
    if name == "all":
        return [each for each in shipped().values() if unsafe or each.is_safe]
    found = named(name)
    if not found.is_safe and not unsafe:
        told = f"scenario {found.name} may cost requests or commands of others; --unsafe runs it"
        raise CommandRefused(told, field="scenario", value=found.name)
    return [found]


def _confirm(chosen: list[Scenario], yes: bool) -> None:
    if yes:
        return
    names = ", ".join(f"{each.name} ({_words(each)})" for each in chosen)
    if not sys.stdin.isatty():
        raise CommandRefused(f"would do to this deployment: {names}; --yes does it", field="yes", value=False)
    if not typer.confirm(f"Do to this deployment: {names}?"):
        raise CommandRefused("not confirmed", field="yes", value=False)


def _words(scenario: Scenario) -> str:
    """The events in short: "kill at decode, resize"."""
    return ", ".join(f"{each.do} at {each.stage}" if each.stage else each.do for each in scenario.events)


def _show(report: Report) -> None:
    figures = report.figures
    marked = " (simulated workers)" if report.simulated else ""
    say(f"{report.scenario}: {'ok' if report.ok else 'FAILED'}{marked}, {figures.took_s:.1f} s, seed {report.seed}")
    for event in report.events:
        say(f"  {event.at_s:6.2f} s  {event.do} {event.target}: {event.problem or event.detail}")
    print_table(("check", "state", "evidence"), [(each.name, each.state, each.evidence) for each in report.checks])
    say(
        f"  {figures.streams} streams, {figures.errors} errors, {figures.cancelled} hung up on, "
        f"{figures.failovers} begun anew elsewhere, {figures.moved} moved; stall p50 {seconds(figures.stall_p50_s)}, "
        f"p99 {seconds(figures.stall_p99_s)}; moves p99 {seconds(figures.move_stall_p99_s)}"
    )
