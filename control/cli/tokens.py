"""`phaseline token`: principals of the control API. Works on the run folder's files; needs no running plane."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from control.auth import open_auth
from control.cli.shell import JsonFlag, print_json, print_table, say
from control.errors import NotFound
from control.settings import load_settings

app = typer.Typer(no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who; shown as `who` in the record of commands.")],
    role: Annotated[str, typer.Option(help="viewer, operator or service.")] = "viewer",
    as_json: JsonFlag = False,
) -> None:
    """Make a token. It is shown once; only its hash is kept."""
    now_unix_s = time.time()
    token = open_auth(load_settings().run_dir, now_unix_s).create_token(name, role, now_unix_s)
    print_json({"name": name, "role": role, "token": token}) if as_json else say(token)


@app.command("list")
def list_principals(as_json: JsonFlag = False) -> None:
    """Everybody who holds a token."""
    found = open_auth(load_settings().run_dir, time.time()).principals()
    print_json(found) if as_json else print_table(("name", "role"), [(each.name, each.role) for each in found])


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Whose tokens and sessions end.")], as_json: JsonFlag = False
) -> None:
    """Forget every token and session of a name, at once."""
    now_unix_s = time.time()
    count = open_auth(load_settings().run_dir, now_unix_s).revoke(name, now_unix_s)
    if not count:
        raise NotFound(f"no principal is named {name}", field="name", value=name)
    print_json({"name": name, "revoked": count}) if as_json else say(f"{count} revoked")
