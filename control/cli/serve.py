"""`phaseline serve`: our gateway in front of an attached fleet."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from control.cli.shell import JsonFlag, connect, print_json, say
from control.errors import SettingsError
from control.settings import load_settings


def serve_fleet(
    name: Annotated[str, typer.Argument(help="Which attached fleet; `phaseline allow NAME route` first.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder with the model's tokenizer.json.", metavar="FOLDER")],
    port: Annotated[int, typer.Option(help="Where the OpenAI API listens.")] = 8010,
    as_json: JsonFlag = False,
) -> None:
    """Serve the OpenAI API in front of an attached fleet, until Ctrl-C. Roles, weights and drains are the plane's."""
    from control.bridge.serve import allowed_of, serve  # the gateway is loaded by this verb alone
    from engine.errors import EngineError
    from engine.text import ModelText

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at the plane
    try:
        text = ModelText(tokenizer)
    except EngineError as error:
        raise SettingsError(str(error), field="tokenizer", value=str(tokenizer)) from error
    settings = load_settings()
    with connect(settings) as client:
        info = allowed_of(client, name)
        own = settings.model_copy(update={"fleet_id": name, "gateway_port": port})
        url = f"http://{settings.host}:{port}"
        if as_json:
            print_json({"fleet": name, "url": url})
        else:
            say(f"fleet {name} is served at {url}/v1 until Ctrl-C, or `phaseline forbid {name} route`")
        uvloop.run(serve(own, info, text, lambda: allowed_of(client, name)))
