"""`phaseline export`: series as a CSV or Parquet file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control.cli.history import parse_duration, parse_window
from control.cli.shell import JsonFlag, connect, print_json, say
from control.errors import SettingsError

if TYPE_CHECKING:
    from control.export import Format


def export(
    metrics: Annotated[list[str], typer.Argument(help="Metric names; `phaseline series list` lists them.")],
    since: Annotated[str, typer.Option(help="How far back: 30s, 15m, 1h, 7d.")] = "24h",
    until: Annotated[str, typer.Option(help="How far back the end is; empty is now.")] = "",
    step: Annotated[str, typer.Option(help="Bucket: 1s, 10s, 1m ..; empty chooses.")] = "",
    by: Annotated[str, typer.Option(help="fleet, role, worker or rule, as the metrics allow.")] = "fleet",
    out: Annotated[str, typer.Option(help="File to write; - is standard output.")] = "-",
    kind: Annotated[
        str, typer.Option("--format", help="csv or parquet; empty: as the file's name ends, else csv.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Write series to a file: a row per metric, group and bucket, with units and provenance. Unknown is empty."""
    from control.export import MAX_METRICS, rows_in  # brings pyarrow, which no other verb needs

    chosen = format_of(kind, out)
    if len(metrics) > MAX_METRICS:
        raise SettingsError(
            f"{len(metrics)} metrics in one file", field="metrics", value=len(metrics), bound=f"at most {MAX_METRICS}"
        )
    if as_json and out == "-":
        raise SettingsError("--json and the file would share standard output", field="out", value=out, bound="a file")
    begin_unix_s, end_unix_s = parse_window(since, until, time.time())
    with connect(timeout_s=60.0) as client:
        data = client.export(
            metrics,
            begin_unix_s,
            end_unix_s if until else None,
            max(1, round(parse_duration(step, "step"))) if step else None,
            by,
            format=chosen,
        )
    if out == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        Path(out).write_bytes(data)
    except OSError as error:
        raise SettingsError(f"--out {out}: {error.strerror}", field="out", value=out) from error
    rows = rows_in(data, chosen)
    told = {"file": out, "format": chosen, "rows": rows, "bytes": len(data), "metrics": metrics}
    print_json(told) if as_json else say(f"{out}: {rows:,} rows, {len(data):,} bytes, {', '.join(metrics)}")


def format_of(kind: str, out: str) -> Format:
    """What `--format` names, else what the file's name ends with, else csv. Raises SettingsError."""
    from control.export import MEDIA_TYPES

    chosen = kind or Path(out).suffix.removeprefix(".")
    if chosen == "parquet":
        return "parquet"
    if kind and chosen != "csv":
        known = " or ".join(MEDIA_TYPES)
        raise SettingsError(f"--format {kind!r} is not {known}", field="format", value=kind, bound=known)
    return "csv"
