"""`up`, `down`, `upgrade`, `logs`, `login`, `sample-traffic`, `doctor`, `settings`, `version`: what runs here.

Decided here: what is printed, and how options become settings. Not here: anything about processes (`control.launch`,
`control.detached`).
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from control.auth import open_auth
from control.cli.shell import Exit, JsonFlag, connect, plain, print_json, print_table, say
from control.components import TRAFFIC, Endpoint, endpoints
from control.deployment import read_state
from control.detached import environment_of_running, launch_detached, launch_upgrade, run_down, traffic_of_running
from control.doctor import examine
from control.errors import NotFound, PlaneUnreachable, SettingsError
from control.launch import run_up
from control.settings import Settings, load_settings
from control.supervisor import pause_file


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once all is ready; leave it running.")] = False,
    workers: Annotated[int | None, typer.Option(help="Workers (num_workers).")] = None,
    prefill: Annotated[int | None, typer.Option(help="First prefill pool (num_prefill).")] = None,
    mixed: Annotated[int | None, typer.Option(help="First mixed pool (num_mixed).")] = None,
    kind: Annotated[str | None, typer.Option(help="auto, cpu, cuda or paced (worker_kind).")] = None,
    fleet: Annotated[str | None, typer.Option(help="ray, sim, or none: only attached fleets (fleet_kind).")] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face folder or known name (model).")] = None,
    traffic: Annotated[str, typer.Option(help="Sample traffic: a profile of data/traffic/profiles.toml.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Start everything on this machine: Ray, workers, gateway, plane, console. Ctrl-C drains and ends it.

    With --json: once all is ready the addresses and the login link as JSON; progress goes to stderr.
    """
    given = {
        "num_workers": workers,
        "num_prefill": prefill,
        "num_mixed": mixed,
        "worker_kind": kind,
        "fleet_kind": fleet,
        "model": model,
    }
    settings = load_settings(**given)
    check_pools(settings)
    overrides = {f"PHASELINE_{name.upper()}": str(value) for name, value in given.items() if value is not None}
    os.environ.update(overrides)  # every process that is started reads the same settings

    def tell(line: str) -> None:
        typer.echo(line, err=as_json)

    def ready() -> None:
        found = addresses(settings)
        if as_json:
            print_json({each.setting.removesuffix("_port"): url for each, url in found})
        else:
            for line in welcome(found):
                say(line)

    if detach:
        launch_detached(settings, traffic, overrides, tell)
        ready()
        return
    raise typer.Exit(run_up(settings, traffic, tell, ready))


def check_pools(settings: Settings) -> None:
    """The first pools must fit into the fleet. Raises SettingsError naming the setting and the bound."""
    total = settings.num_prefill + settings.num_mixed
    if total > settings.num_workers:
        raise SettingsError(
            f"num_prefill {settings.num_prefill} + num_mixed {settings.num_mixed} is above num_workers "
            f"{settings.num_workers}",
            field="num_prefill",
            value=settings.num_prefill,
            bound=f"<= {settings.num_workers - settings.num_mixed}",
        )


def addresses(settings: Settings) -> list[tuple[Endpoint, str]]:
    """What to open; the console with a login code that works once within ten minutes."""
    now_unix_s = time.time()
    code = open_auth(settings.run_dir, now_unix_s).create_login_code("operator", now_unix_s)
    return [(each, each.url + (f"/?code={code}" if each.name == "console" else "")) for each in endpoints(settings)]


def welcome(found: list[tuple[Endpoint, str]]) -> Iterator[str]:
    """The addresses for a person."""
    yield ""
    for each, url in found:
        yield f"  {each.name:<12} {url}"
    yield ""
    yield "The console's link logs you in once, within ten minutes; `phaseline login` prints another."


def down(as_json: JsonFlag = False) -> None:
    """Drain, within drain_limit_s, and end what `up` started. Nothing else is touched."""
    settings = load_settings()
    was_running = run_down(settings.run_dir, (lambda _line: None) if as_json else say)
    if as_json:
        print_json({"run_dir": settings.run_dir.resolve(), "was_running": was_running})
    else:
        say("ended" if was_running else f"nothing runs in {settings.run_dir}")


def upgrade(as_json: JsonFlag = False) -> None:
    """Replace every process of what runs here by this code, one after the other, while it serves.

    Steps are shown; the first that fails ends it, and what comes after it is left as it was.
    """
    state = read_state(load_settings().run_dir)
    if state is None or not (state.supervisor.is_alive or state.running):
        raise PlaneUnreachable(f"nothing runs in {load_settings().run_dir}; `phaseline up` starts it")
    running = environment_of_running(state)
    os.environ.update({name: value for name, value in running.items() if name not in os.environ})
    settings = load_settings()
    notes = launch_upgrade(settings, traffic_of_running(state), lambda line: typer.echo(line, err=as_json))
    if as_json:
        print_json(notes)
    else:
        print_table(("step", "", "what"), [(each.name, each.state, each.text) for each in notes.steps])
    if notes.state != "done":
        raise typer.Exit(Exit.FAILED)


def login(as_json: JsonFlag = False) -> None:
    """A console link that logs in once, within ten minutes."""
    settings = load_settings()
    with connect(settings) as client:
        code = client.create_login_code()
    console = next(each for each in endpoints(settings) if each.name == "console")
    url = f"{console.url}/?code={code}"
    print_json({"url": url}) if as_json else say(url)


def logs(
    name: Annotated[
        str, typer.Argument(help="Such as plane, gateway, console, ray, supervisor, w0; empty lists them.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing.")] = False,
    lines: Annotated[int, typer.Option("-n", help="Lines from the end.", min=0, max=1_000_000)] = 50,
    as_json: JsonFlag = False,
) -> None:
    """The last lines of a process's log; workers log by host process, such as w0-w3."""
    folder = load_settings().run_dir.resolve() / "logs"
    known = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if not name:
        rows = [(each, path, path.stat().st_size) for each, path in known.items()]
        if as_json:
            print_json({each: {"path": path, "size_bytes": size} for each, path, size in rows})
        else:
            print_table(("name", "path", "bytes"), rows, right=("bytes",))
        return
    if name not in known:
        raise NotFound(
            f"no log {name!r} in {folder}; there are: {', '.join(known) or 'none'}", field="name", value=name
        )
    tail = last_lines(known[name], lines)
    if as_json:
        print_json({"name": name, "path": known[name], "lines": tail})
        return
    for line in tail:
        say(line)
    if follow:
        _follow(known[name])


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines, reading at most 4 KiB a line."""
    if count == 0:
        return []
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - count * 4096))
        return file.read().decode("utf-8", "replace").splitlines()[-count:]


def _follow(path: Path) -> None:
    """Print what is appended until interrupted; begins again when the log was rotated."""
    position = path.stat().st_size
    try:
        while True:
            size = path.stat().st_size
            if size < position:
                position = 0
            if size > position:
                with open(path, "rb") as file:
                    file.seek(position)
                    data = file.read()
                position += len(data)
                typer.echo(data.decode("utf-8", "replace"), nl=False)
            time.sleep(0.25)
    except KeyboardInterrupt:
        return


def sample_traffic(switch: Annotated[str, typer.Argument(help="on or off.")], as_json: JsonFlag = False) -> None:
    """Stop or resume the sample traffic that `up --traffic` sends."""
    if switch not in ("on", "off"):
        raise SettingsError(f"sample-traffic {switch!r} is not on or off", field="switch", value=switch)
    settings = load_settings()
    state = read_state(settings.run_dir)
    if state is None or not state.supervisor.is_alive:
        raise PlaneUnreachable(f"nothing runs in {settings.run_dir}")
    if TRAFFIC not in state.components:
        raise NotFound("`phaseline up` was started without --traffic; `phaseline traffic` sends some now")
    mark = pause_file(settings.run_dir, TRAFFIC)
    mark.unlink(missing_ok=True) if switch == "on" else mark.touch()
    print_json({"sample_traffic": switch}) if as_json else say(f"sample traffic {switch}")


def doctor(as_json: JsonFlag = False) -> None:
    """Look at ports, memory, packages, Ray, GPU and more; exit code 1 when something would keep `up` from working."""
    findings = examine(load_settings())
    if as_json:
        print_json(findings)
    else:
        print_table(("check", "", "finding"), [(each.check, each.level, each.text) for each in findings])
    if any(each.level == "broken" for each in findings):
        raise typer.Exit(Exit.FAILED)


def settings(as_json: JsonFlag = False) -> None:
    """Every setting: its value here, its default, what it means."""
    here = load_settings()
    rows: list[dict[str, Any]] = []
    for name, info in type(here).model_fields.items():
        value = plain(getattr(here, name))
        if name == "database_url":
            value = masked(str(value))
        rows.append({"name": name, "value": value, "default": plain(info.default), "help": info.description})
    if as_json:
        print_json(rows)
    else:
        print_table(("setting", "value", "default", "meaning"), [tuple(each.values()) for each in rows])


def masked(url: str) -> str:
    """A database URL without its password."""
    head, at, tail = url.rpartition("@")
    if not at:
        return url
    scheme, slashes, user = head.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}:***@{tail}"


def version(as_json: JsonFlag = False) -> None:
    """Versions of Phaseline and of what it stands on."""
    found = {name: _version(name) for name in ("phaseline", "ray", "torch", "streamlit", "sqlalchemy")}
    if as_json:
        print_json(found)
    else:
        for name, each in found.items():
            say(f"{name} {each or 'not installed'}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
