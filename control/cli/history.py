"""`series` and `events`: the history, as a table or as JSON."""

from __future__ import annotations

import re
import time
from typing import Annotated, get_args

import typer

from control.cli.shell import JsonFlag, connect, print_json, print_table, say
from control.errors import SettingsError
from control.stories import event_words
from control.types.events import EventKind, LifeKind, PlaneKind
from control.types.requests import MoveKind
from control.types.series import Series, SeriesResult

BLOCKS = "▁▂▃▄▅▆▇█"
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str, name: str) -> float:
    """`90s`, `15m`, `1h`, `7d` or plain seconds. Raises SettingsError naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if found is None or float(found[1]) <= 0:
        raise SettingsError(f"--{name} {text!r} is not a duration such as 30s, 15m, 1h or 7d", field=name, value=text)
    return float(found[1]) * _UNITS_S[found[2] or "s"]


def parse_window(since: str, until: str, now_unix_s: float) -> tuple[float, float]:
    """Begin and end of `--since` and `--until`, both so far back. Raises SettingsError where nothing is between."""
    begin_unix_s = now_unix_s - parse_duration(since, "since")
    end_unix_s = now_unix_s - parse_duration(until, "until") if until else now_unix_s
    if end_unix_s <= begin_unix_s:
        raise SettingsError(
            f"--until {until!r} is not after --since", field="until", value=until, bound=f"less than {since} back"
        )
    return begin_unix_s, end_unix_s


def series(
    metric: Annotated[str, typer.Argument(help="Metric name; `phaseline series list` lists them.")],
    since: Annotated[str, typer.Option(help="How far back: 30s, 15m, 1h, 7d.")] = "1h",
    until: Annotated[str, typer.Option(help="How far back the end is; empty is now.")] = "",
    step: Annotated[str, typer.Option(help="Bucket: 1s, 10s, 1m ..; empty chooses.")] = "",
    by: Annotated[str, typer.Option(help="fleet, role, worker or rule, as the metric allows.")] = "fleet",
    compare: Annotated[str, typer.Option(help="The same window so much earlier beside it: 1h, 1d, 7d.")] = "",
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
        begin, end = parse_window(since, until, now_unix_s)
        step_s = max(1, round(parse_duration(step, "step"))) if step else None
        shift_s = parse_duration(compare, "compare") if compare else 0.0
        result = client.series(metric, begin, end if until else None, step_s, by)
        past = client.series(metric, begin - shift_s, end - shift_s, result.step_s, by) if shift_s else None
    if as_json:
        print_json(result if past is None else {"chosen": result, "earlier": past})
        return
    _show_series(result, *((past, compare, shift_s) if past else ()))
    for line in (*spark_lines(result), *(compared_lines(result, past, compare) if past else ())):
        say(line)


def earlier_values(result: SeriesResult, past: SeriesResult, shift_s: float) -> dict[str, dict[float, float | None]]:
    """By label, what the earlier window knew `shift_s` before each bucket of the chosen one."""
    step_s = result.step_s
    return {
        line.label: {(p.t_unix_s + shift_s) // step_s * step_s: p.value for p in line.points} for line in past.series
    }


def _show_series(result: SeriesResult, past: SeriesResult | None = None, ago: str = "", shift_s: float = 0.0) -> None:
    say(f"{result.metric} [{result.unit}], {result.provenance}, {result.step_s} s buckets, by {result.by}")
    labels = [each.label for each in result.series]
    by_time: dict[float, dict[str, float | None]] = {}
    for line in result.series:
        for point in line.points:
            by_time.setdefault(point.t_unix_s, {})[line.label] = point.value
    columns = list(labels)
    if past is not None:
        columns += [f"{label or result.by}, {ago} earlier" for label in labels]
        before = earlier_values(result, past, shift_s)
        for at, values in by_time.items():
            earlier = {f"{label or result.by}, {ago} earlier": before.get(label, {}).get(at) for label in labels}
            values.update(earlier)
    rows = [(_when(at), *(_short(values.get(each)) for each in columns)) for at, values in sorted(by_time.items())]
    print_table(("time", *columns), rows, right=columns)
    if result.note:
        say(f"note: {result.note}")


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def spark_lines(result: SeriesResult, width: int = 60) -> list[str]:
    """Each line as blocks from its least to its largest value; a blank where nothing is known."""
    lines = []
    for each in result.series:
        parts = [each.points[n * len(each.points) // width : (n + 1) * len(each.points) // width] for n in range(width)]
        values = [
            [p.value for p in part if p.value is not None] for part in (parts if len(each.points) > width else [])
        ]
        values = values or [[p.value] if p.value is not None else [] for p in each.points]
        known = [max(part) for part in values if part]
        if known:
            low, high = min(known), max(known)
            blocks = "".join(_block(max(part), low, high) if part else " " for part in values)
            lines.append(f"{each.label or result.by}  {blocks}  {low:.4g} .. {high:.4g} {result.unit}")
    return lines


def _block(value: float, low: float, high: float) -> str:
    return BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] if high > low else BLOCKS[0]


def compared_lines(result: SeriesResult, past: SeriesResult, ago: str) -> list[str]:
    """The means of both windows, line by line, over the buckets of which something is known."""
    earlier = {each.label: _mean(each) for each in past.series}
    lines = []
    for each in result.series:
        now, before = _mean(each), earlier.get(each.label)
        words = "n/a" if now is None or before is None else f"{now - before:+.4g} {result.unit}"
        if now is not None and before:
            words += f" ({now / before - 1:+.0%})"
        shown = ["n/a" if value is None else f"{value:.4g}" for value in (now, before)]
        lines.append(f"{each.label or result.by}: mean {shown[0]}, {ago} earlier {shown[1]}: {words}")
    return lines


def _mean(line: Series) -> float | None:
    known = [point.value for point in line.points if point.value is not None]
    return sum(known) / len(known) if known else None


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


def _when(at_unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_unix_s))
