"""`phaseline bench`: runs the benchmarks that ship, each in a process of its own. What they measure is theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from control.cli.shell import JsonFlag, print_json, print_table, say
from control.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "engine" / "bench", ROOT / "bench")


def benchmarks() -> dict[str, Path]:
    """Name -> script. Files that begin with _ are helpers."""
    found = {}
    for folder in FOLDERS:
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("_"):
                found[path.stem] = path
    return found


def bench(
    name: Annotated[str, typer.Argument(help="A name from `phaseline bench list`, or `all`.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to the benchmark (after --).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a benchmark. Do it on a machine that does nothing else. Exit code 1 when one fails.

    With --json: a line that names the benchmark, then what it found as JSON, one object a line.
    """
    known = benchmarks()
    if name == "list":
        rows = {each: _headline(path) for each, path in known.items()}
        print_json(rows) if as_json else print_table(("benchmark", "what"), list(rows.items()))
        return
    if name != "all" and name not in known:
        raise SettingsError(f"no benchmark {name!r}; known: {', '.join(known) or 'none'}", field="name", value=name)
    failed = [each for each in (known if name == "all" else [name]) if _run(known[each], arguments or [], as_json)]
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _run(path: Path, arguments: list[str], as_json: bool) -> int:
    say(json.dumps({"benchmark": path.stem}) if as_json else f"== {path.stem}")
    sys.stdout.flush()
    search_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(path), *arguments, *(["--json"] if as_json else [])]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": search_path}, check=False).returncode


def _headline(path: Path) -> str:
    """The first line of the script's docstring."""
    text = path.read_text().lstrip()
    return text[3:].split("\n", 1)[0].removesuffix('"""').strip() if text.startswith('"""') else ""
