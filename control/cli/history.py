"""`series` and `requests`: the history, as a table or as JSON."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from control.cli.shell import JsonFlag, connect, print_json, print_table, say, seconds
from control.errors import SettingsError
from control.types import RequestRecord, SeriesResult

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str, name: str) -> float:
    """`90s`, `15m`, `1h`, `7d` or plain seconds. Raises SettingsError naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if found is None or float(found[1]) <= 0:
        raise SettingsError(f"--{name} {text!r} is not a duration such as 30s, 15m, 1h or 7d", field=name, value=text)
    return float(found[1]) * _UNITS_S[found[2] or "s"]


def series(
    metric: Annotated[str, typer.Argument(help="Metric name; `phaseline series list` lists them.")],
    since: Annotated[str, typer.Option(help="How far back: 30s, 15m, 1h, 7d.")] = "1h",
    until: Annotated[str, typer.Option(help="How far back the end is; empty is now.")] = "",
    step: Annotated[str, typer.Option(help="Bucket: 1s, 10s, 1m ..; empty chooses.")] = "",
    by: Annotated[str, typer.Option(help="fleet, role, worker or rule, as the metric allows.")] = "fleet",
    as_json: JsonFlag = False,
) -> None:
    """One metric over time. n/a is a gap, not zero."""
    with connect() as client:
        if metric == "list":
            listed = client.metrics()
            if as_json:
                print_json(listed)
            else:
                rows = [(each.name, each.unit, ", ".join(each.groups), each.provenance, each.help) for each in listed]
                print_table(("metric", "unit", "by", "source", "meaning"), rows)
            return
        now_unix_s = time.time()
        result = client.series(
            metric,
            now_unix_s - parse_duration(since, "since"),
            now_unix_s - parse_duration(until, "until") if until else None,
            max(1, round(parse_duration(step, "step"))) if step else None,
            by,
        )
    print_json(result) if as_json else _show_series(result)


def _show_series(result: SeriesResult) -> None:
    say(f"{result.metric} [{result.unit}], {result.provenance}, {result.step_s} s buckets, by {result.by}")
    labels = [each.label for each in result.series]
    by_time: dict[float, dict[str, float | None]] = {}
    for line in result.series:
        for point in line.points:
            by_time.setdefault(point.t_unix_s, {})[line.label] = point.value
    rows = [
        (
            time.strftime("%H:%M:%S", time.localtime(at)),
            *(None if values.get(label) is None else f"{values[label]:.4g}" for label in labels),
        )
        for at, values in sorted(by_time.items())
    ]
    print_table(("time", *labels), rows, right=labels)
    if result.note:
        say(f"note: {result.note}")


def requests(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    since: Annotated[str, typer.Option(help="How far back: 30s, 15m, 1h.")] = "1h",
    order: Annotated[str, typer.Option(help="recent or slowest.")] = "recent",
    as_json: JsonFlag = False,
) -> None:
    """Request records: who served each, why, and how fast. No prompts are kept."""
    if order not in ("recent", "slowest"):
        raise SettingsError(f"--order {order!r} is not recent or slowest", field="order", value=order)
    with connect() as client:
        found = client.requests(limit, time.time() - parse_duration(since, "since"), order)
    if as_json:
        print_json(found)
        return
    columns = (
        "time",
        "request",
        "rule",
        "prefill",
        "decode",
        "in",
        "cached",
        "out",
        "TTFT",
        "TPOT",
        "e2e",
        "status",
        "good",
    )
    print_table(columns, [_row(each) for each in found], right=("in", "cached", "out", "TTFT", "TPOT", "e2e"))


def _row(record: RequestRecord) -> tuple[object, ...]:
    return (
        time.strftime("%H:%M:%S", time.localtime(record.arrival_unix_s)),
        record.request_id,
        record.rule,
        record.prefill_worker or "-",
        record.decode_worker or "-",
        record.prompt_tokens,
        record.cached_tokens,
        record.output_tokens,
        seconds(record.ttft_s),
        seconds(record.tpot_s),
        seconds(record.e2e_s),
        f"{record.status} {record.error or record.finish_reason}",
        {True: "yes", False: "no", None: None}[record.good],
    )
