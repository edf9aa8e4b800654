"""Series as a file: what is unknown stays empty, and a file says what its numbers are."""

from __future__ import annotations

import io

import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from control.cli.history import compared_lines, spark_lines
from control.export import SCHEMA, encoded, table_of
from control.types import Series, SeriesPoint, SeriesResult


def result(*values: float | None, label: str = "") -> SeriesResult:
    points = tuple(
        SeriesPoint(t_unix_s=1000.0 + 10 * n, value=value, min=value, max=value) for n, value in enumerate(values)
    )
    return SeriesResult(
        fleet_id="test",
        metric="decode_bandwidth_wall",
        unit="fraction",
        provenance="derived",
        step_s=10,
        since_unix_s=1000.0,
        until_unix_s=1000.0 + 10 * len(values),
        by="fleet",
        series=(Series(label=label, points=points),),
    )


def test_parquet_keeps_types_units_and_gaps() -> None:
    table = pa_parquet.read_table(io.BytesIO(encoded(table_of([result(0.5, None), result(0.25)]), "parquet")))
    assert table.schema.equals(SCHEMA)
    assert table["value"].to_pylist() == [0.5, None, 0.25]
    assert set(table["unit"].to_pylist()) == {"fraction"}
    assert [each.timestamp() for each in table["time"].to_pylist()] == [1000.0, 1010.0, 1000.0]


def test_csv_has_an_empty_cell_where_nothing_is_known() -> None:
    data = encoded(table_of([result(0.5, None)]), "csv")
    assert data.splitlines()[0].startswith(b'"fleet_id","metric","unit","provenance","group","time"')
    assert pa_csv.read_csv(io.BytesIO(data))["value"].to_pylist() == [0.5, None]
    assert encoded(table_of([]), "csv").count(b"\n") == 1  # a head and no row


def test_a_line_is_drawn_as_blocks_with_blanks_for_gaps() -> None:
    (line,) = spark_lines(result(0.0, None, 1.0))
    assert line == "fleet  ▁ █  0 .. 1 fraction"
    (long,) = spark_lines(result(*[float(n) for n in range(600)]))
    assert len(long.split()[1]) == 60
    assert spark_lines(result(None, None)) == []


def test_two_windows_are_compared_in_words() -> None:
    assert compared_lines(result(0.6, 0.8), result(0.5, 0.5), "1d") == [
        "fleet: mean 0.7, 1d earlier 0.5: +0.2 fraction (+40%)"
    ]
    assert compared_lines(result(0.6), result(None), "7d") == ["fleet: mean 0.6, 7d earlier n/a: n/a"]
