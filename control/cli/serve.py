"""`phaseline serve`: our gateway in front of an attached fleet, here until Ctrl-C, or kept by the supervisor.

Decided here: what is refused before anything is started. Not here: anything about a request (`control.bridge.serve`),
and how the supervisor keeps it (`control.serving`).
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop

from control.cli.shell import JsonFlag, connect, print_json, say
from control.detached_serve import begin_serving, end_serving, running_supervisor
from control.errors import CommandRefused, NotAllowed, NotFound, SettingsError
from control.fleets.attached.bridge_file import served_at
from control.listener import LISTEN_FD
from control.ports import check_ports
from control.served import Served, read_served, remove_served
from control.settings import Settings, load_settings

if TYPE_CHECKING:
    from control.fleets.attached.types import AttachedInfo
    from engine.text import ModelText


def serve_fleet(
    name: Annotated[str, typer.Argument(help="Which attached fleet; `phaseline allow NAME route` first.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the model's tokenizer.json.", metavar="FOLDER")
    ] = None,
    port: Annotated[int, typer.Option(help="Where the OpenAI API listens.", min=1, max=65535)] = 8010,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it serves; the supervisor of `up` keeps it.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End what --detach began, after the open requests.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Serve the OpenAI API in front of an attached fleet. Roles, weights and drains are the plane's.

    Here until Ctrl-C; with --detach it is started again should it die, and by the next `up`, until --stop.
    """
    settings = load_settings()
    if stop:
        end_serving(settings, name)
        print_json({"fleet": name, "served": False}) if as_json else say(f"fleet {name} is served no more")
        return
    if tokenizer is None:
        raise SettingsError("serve needs --tokenizer, a folder with the model's tokenizer.json", field="tokenizer")
    if detach:
        _detach(settings, Served(fleet=name, tokenizer=str(tokenizer.resolve()), port=port), as_json)
        return
    _serve_here(settings, name, tokenizer, port, as_json)


def _serve_here(settings: Settings, name: str, tokenizer: Path, port: int, as_json: bool) -> None:
    from control.bridge.bridge import speech_of
    from control.bridge.serve import allowed_of, serve  # the gateway is loaded by this verb alone

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at the plane
    is_kept = LISTEN_FD in os.environ  # by the supervisor
    with connect(settings) as client:

        def look() -> AttachedInfo:
            try:
                return allowed_of(client, name)
            except (NotAllowed, NotFound):
                if is_kept:
                    remove_served(settings.run_dir, name)  # it would be started again and again
                raise

        info = look()
        speech_of(info.attachment.kind)
        text = text_of(tokenizer)
        if not is_kept:
            _check_alone(settings, name)
            check_ports([(settings.host, "port", port)])
            _tell_url(settings, name, port, f"until Ctrl-C, or `phaseline forbid {name} route`", as_json)
        own = settings.model_copy(update={"fleet_id": name, "gateway_port": port})
        uvloop.run(serve(own, info, text, look))


def _detach(settings: Settings, served: Served, as_json: bool) -> None:
    """Ask the supervisor for it, and return once it serves. Raises FleetError, and asks no more, when it does not."""
    from control.bridge.bridge import speech_of
    from control.bridge.serve import allowed_of

    running_supervisor(settings)
    known = read_served(settings.run_dir, served.fleet)
    if known is not None and known != served:
        raise CommandRefused(
            f"fleet {served.fleet} is served already, on port {known.port} with {known.tokenizer}; "
            f"`phaseline serve {served.fleet} --stop` ends that",
            field="name",
            value=served.fleet,
        )
    with connect(settings) as client:
        speech_of(allowed_of(client, served.fleet).attachment.kind)
    if known is None:
        _check_alone(settings, served.fleet)
        text_of(Path(served.tokenizer))
        check_ports([(settings.host, "port", served.port)])
    waits_for = begin_serving(settings, served)
    until = f"until `phaseline serve {served.fleet} --stop`" + (f"; not ready yet: {waits_for}" if waits_for else "")
    _tell_url(settings, served.fleet, served.port, until, as_json)


def _check_alone(settings: Settings, name: str) -> None:
    running = served_at(settings.run_dir, name)
    if running is not None:
        is_kept = read_served(settings.run_dir, name) is not None
        how = f"`phaseline serve {name} --stop` ends it" if is_kept else "it was started without --detach"
        raise CommandRefused(
            f"process {running.pid} serves fleet {name} already, at {running.url}/v1; {how}",
            field="name",
            value=name,
            bound="one process a fleet",
        )


def text_of(folder: Path) -> ModelText:
    """Raises SettingsError."""
    from engine.errors import EngineError
    from engine.text import ModelText

    try:
        return ModelText(folder)
    except EngineError as error:
        raise SettingsError(str(error), field="tokenizer", value=str(folder)) from error


def _tell_url(settings: Settings, name: str, port: int, until: str, as_json: bool) -> None:
    url = f"http://{settings.host}:{port}"
    print_json({"fleet": name, "url": url}) if as_json else say(f"fleet {name} is served at {url}/v1 {until}")
