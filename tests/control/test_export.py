"""Series as a file: what is unknown stays empty, and a file says what its numbers are."""

from __future__ import annotations

import io
from dataclasses import replace

import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest

from control.api.export_routes import refuse_too_many
from control.cli.export import format_of
from control.cli.history import compared_lines, earlier_values, parse_window, spark_lines
from control.errors import CommandRefused, SettingsError
from control.export import SCHEMA, encoded, rows_in, table_of
from control.types.series import Series, SeriesPoint, SeriesResult


def point(at_unix_s: float, value: float) -> SeriesPoint:
    return SeriesPoint(t_unix_s=at_unix_s, value=value, min=value, max=value)


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


def test_each_bucket_is_compared_with_the_one_a_day_earlier() -> None:
    past = replace(result(0.5, None), series=(Series(label="", points=(point(1000.0 - 86_400, 0.5),)),))
    assert earlier_values(result(0.6, 0.8), past, 86_400.0) == {"": {1000.0: 0.5}}
    late = replace(past, series=(Series(label="", points=(point(1000.0, 0.5),)),))
    assert earlier_values(result(0.6, 0.8), late, 7.0) == {"": {1000.0: 0.5}}, "a shift of no whole bucket"


def test_a_file_knows_its_rows() -> None:
    table = table_of([result(0.5, None), result(0.25)])
    assert rows_in(encoded(table, "csv"), "csv") == rows_in(encoded(table, "parquet"), "parquet") == 3


def test_a_file_of_too_many_rows_is_refused_with_the_step_and_the_bound() -> None:
    refuse_too_many([result(0.5, None)], most=2)
    with pytest.raises(CommandRefused, match="3 rows with decode_bandwidth_wall at step_s 10") as found:
        refuse_too_many([result(0.5, None), result(0.25)], most=2)
    assert (found.value.field, found.value.value) == ("step_s", 10)
    assert str(found.value.bound).startswith("at most 2 rows in one file")


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    assert parse_window("1h", "", 10_000.0) == (6_400.0, 10_000.0)
    assert parse_window("1h", "30m", 10_000.0) == (6_400.0, 8_200.0)
    with pytest.raises(SettingsError, match="--until '2h' is not after --since") as found:
        parse_window("1h", "2h", 10_000.0)
    assert (found.value.field, found.value.value, found.value.bound) == ("until", "2h", "less than 1h back")


def test_the_format_is_what_is_asked_for_or_what_the_name_says() -> None:
    names = ("-", "a.csv", "a.parquet", "a.txt")
    assert [format_of("", name) for name in names] == ["csv", "csv", "parquet", "csv"]
    assert format_of("csv", "a.parquet") == "csv"
    with pytest.raises(SettingsError, match="--format 'xml' is not csv or parquet"):
        format_of("xml", "-")
