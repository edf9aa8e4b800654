"""Series as a table for other tools: one row per metric, group and bucket, as CSV or Parquet. Pure.

A bucket of which nothing is known is an empty cell or a null, never 0. Units and provenance are columns, so that a
file says by itself what its numbers are.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Final, Literal

import pyarrow as pa
from pyarrow import csv, parquet

from control.types.series import SeriesResult

Format = Literal["csv", "parquet"]
MEDIA_TYPES: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
MAX_METRICS: Final = 20
#: Of one file: it is built in the plane's memory, and a fleet of 200 has 200 lines.
MAX_ROWS: Final = 1_000_000
SCHEMA: Final = pa.schema(
    [
        ("fleet_id", pa.string()),
        ("metric", pa.string()),
        ("unit", pa.string()),
        ("provenance", pa.string()),
        ("group", pa.string()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("step_s", pa.int32()),
        ("value", pa.float64()),
        ("min", pa.float64()),
        ("max", pa.float64()),
        ("count", pa.int64()),
        ("partial", pa.bool_()),
    ]
)


def num_rows(results: Iterable[SeriesResult]) -> int:
    """Rows of the file that these make."""
    return sum(len(line.points) for result in results for line in result.series)


def table_of(results: Iterable[SeriesResult]) -> pa.Table:
    """All buckets of all lines, in the order in which they came."""
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for result in results:
        for line in result.series:
            for point in line.points:
                row = {
                    "fleet_id": result.fleet_id,
                    "metric": result.metric,
                    "unit": result.unit,
                    "provenance": result.provenance,
                    "group": line.label,
                    "time": round(point.t_unix_s * 1000),
                    "step_s": result.step_s,
                    "value": point.value,
                    "min": point.min,
                    "max": point.max,
                    "count": point.count,
                    "partial": point.partial,
                }
                for name, value in row.items():
                    columns[name].append(value)
    return pa.table(columns, schema=SCHEMA)


def rows_in(data: bytes, kind: Format) -> int:
    """Rows of a file that `encoded` made."""
    table = csv.read_csv(io.BytesIO(data)) if kind == "csv" else parquet.read_metadata(io.BytesIO(data))
    return int(table.num_rows)


def encoded(table: pa.Table, kind: Format) -> bytes:
    """The file's bytes."""
    out = io.BytesIO()
    if kind == "csv":
        csv.write_csv(table, out)
    else:
        parquet.write_table(table, out, compression="zstd")
    return out.getvalue()
