"""What the benchmarks share: the model that they run on when none is named, and a row for a person or as JSON."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser with `--json`: one JSON object per row instead of text."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    return parser


def model_folder(named: Path | None) -> Path:
    """The folder that was named, or the model that ships, in the run folder; converted there when it is not yet."""
    if named is not None:
        return named
    from engine.convert import convert_smollm2  # torch, which most benchmarks do without

    run_dir = Path(os.environ.get("PHASELINE_RUN_DIR", "data/run"))
    folder = run_dir / "models" / "smollm2-135m-instruct"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return convert_smollm2(folder)


def show(as_json: bool, text: str, **values: Any) -> None:
    """One row."""
    print(json.dumps(values) if as_json else text, flush=True)
