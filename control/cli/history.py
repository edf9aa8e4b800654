"""`series`, `events`, `requests` and `request`: the history, as a table or as JSON."""

from __future__ import annotations

import re
import time
from typing import Annotated, get_args

import typer

from control.cli.shell import JsonFlag, connect, print_json, print_table, say, seconds
from control.errors import SettingsError
from control.stories import event_words, move_words
from control.types import EventKind, LifeKind, MoveKind, PlaneKind, RequestRecord, SeriesResult

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
            _when(at),
            *(None if values.get(label) is None else f"{values[label]:.4g}" for label in labels),
        )
        for at, values in sorted(by_time.items())
    ]
    print_table(("time", *labels), rows, right=labels)
    if result.note:
        say(f"note: {result.note}")


#: What `--kind` takes.
KINDS: tuple[EventKind, ...] = (*get_args(LifeKind), *get_args(MoveKind), *get_args(PlaneKind))


def events(
    since: Annotated[str, typer.Option(help="How far back: 30s, 15m, 1h, 7d.")] = "1h",
    kind: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(KINDS)}; may be repeated.")] = None,
    worker: Annotated[str, typer.Option(help="Only of this worker.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many, newest first.", min=1, max=10_000)] = 100,
    as_json: JsonFlag = False,
) -> None:
    """What happened: workers that died and came back, requests that went on elsewhere, planes that took over."""
    unknown = [each for each in kind or () if each not in KINDS]
    if unknown:
        raise SettingsError(f"--kind {unknown[0]!r} is not one of {', '.join(KINDS)}", field="kind", value=unknown[0])
    wanted = [each for each in KINDS if each in (kind or ())]
    since_unix_s = time.time() - parse_duration(since, "since")
    with connect() as client:
        found = client.fleet_events(since_unix_s, kinds=wanted, worker_id=worker or None, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [(_when(each.at_unix_s), each.kind, event_words(each)) for each in found]
    print_table(("time", "kind", "what"), rows)
    say("moves are known when their requests end: the last seconds fill in")


def request(
    request_id: Annotated[str, typer.Argument(help="Id of the request, from `phaseline requests` or X-Request-ID.")],
    as_json: JsonFlag = False,
) -> None:
    """One request's life: its stages, and where it went on when a worker died or drained."""
    with connect() as client:
        found = client.request(request_id)
    if as_json:
        print_json(found)
        return
    say(f"request {found.request_id}: {found.status} {found.error or found.finish_reason}")
    say(f"  arrived {_when(found.arrival_unix_s)} at {found.gateway_id}, {found.rule}: {found.reason}")
    stages = (("queued", found.queue_s), ("prefill", found.prefill_s), ("handoff", found.handoff_s))
    timed = [f"{name} {seconds(value_s)}" for name, value_s in stages if value_s is not None]
    say(f"  {', '.join(timed) or 'no stage was timed'}; first token after {seconds(found.ttft_s) or 'n/a'}")
    for move in found.moves:
        say(f"  at {seconds(move.at_s)}: {move_words(move)}")
    say(
        f"  {found.output_tokens} of {found.max_tokens} tokens in {seconds(found.e2e_s) or 'n/a'}, "
        f"largest gap {seconds(found.max_gap_s) or 'n/a'}"
    )


def _when(at_unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_unix_s))


def requests(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    since: Annotated[str, typer.Option(help="How far back: 30s, 15m, 1h.")] = "1h",
    order: Annotated[str, typer.Option(help="recent or slowest.")] = "recent",
    moved: Annotated[bool, typer.Option("--moved", help="Only those that went on at another worker.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Request records: who served each, why, and how fast. No prompts are kept."""
    if order not in ("recent", "slowest"):
        raise SettingsError(f"--order {order!r} is not recent or slowest", field="order", value=order)
    since_unix_s = time.time() - parse_duration(since, "since")
    with connect() as client:
        found = client.requests(limit, since_unix_s, order, moved=moved or None)
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
        "went on at",
    )
    print_table(columns, [_row(each) for each in found], right=("in", "cached", "out", "TTFT", "TPOT", "e2e"))


def _row(record: RequestRecord) -> tuple[object, ...]:
    return (
        _when(record.arrival_unix_s),
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
        ", ".join(f"{each.to_worker or 'none'} ({each.kind})" for each in record.moves) or "-",
    )
