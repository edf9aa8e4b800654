"""`requests` and `request`: the records of requests, the slow ones, and what is different about them."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from control.cli.history import parse_duration
from control.cli.shell import JsonFlag, connect, print_json, print_table, say, seconds
from control.client import PhaselineClient
from control.differences import priority_class
from control.errors import SettingsError
from control.stories import move_words
from control.types.latencies import Explanation
from control.types.requests import LatencyKind, RequestFilters, RequestRecord

METRICS: tuple[LatencyKind, ...] = ("e2e", "ttft", "gap")
_NUMBERS = ("in", "cached", "out", "TTFT", "TPOT", "gap", "e2e")


def requests(
    limit: Annotated[int, typer.Option(help="At most this many, newest first.", min=1, max=1000)] = 20,
    slowest: Annotated[int, typer.Option(help="The so many slowest instead.", min=0, max=1000)] = 0,
    by: Annotated[str, typer.Option(help="What is slow: e2e, ttft or gap (the largest between two tokens).")] = "e2e",
    since: Annotated[str, typer.Option(help="How far back: 30s, 15m, 1h, 7d.")] = "1h",
    until: Annotated[str, typer.Option(help="How far back the end is; empty is now.")] = "",
    failed: Annotated[
        bool, typer.Option("--failed", help="Only those that were refused, or ended with an error.")
    ] = False,
    moved: Annotated[bool, typer.Option("--moved", help="Only those that went on at another worker.")] = False,
    rule: Annotated[str, typer.Option(help="Only those that this routing rule decided.")] = "",
    worker: Annotated[str, typer.Option(help="Only those that this worker served.")] = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="What is different about those that were not good, or the slowest.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Request records: who served each, why, and how fast. No prompts are kept."""
    metric = next((each for each in METRICS if each == by), None)
    if metric is None:
        raise SettingsError(f"--by {by!r} is not one of {', '.join(METRICS)}", field="by", value=by)
    now_unix_s = time.time()
    range_ = (
        now_unix_s - parse_duration(since, "since"),
        now_unix_s - parse_duration(until, "until") if until else now_unix_s,
    )
    wanted = RequestFilters(
        metric=metric, failed=failed or None, moved=moved or None, rule=rule or None, worker_id=worker or None
    )
    with connect() as client:
        if explain:
            _explain(client, range_, wanted, as_json)
            return
        order = "slowest" if slowest else "recent"
        found = client.requests(slowest or limit, range_[0], order, until_unix_s=range_[1], **wanted)
        counts = client.heatmap(range_[0], range_[1], metric=metric, rule=rule or None).requests
    if as_json:
        print_json(found)
        return
    columns = ("time", "request", "rule", "prefill", "decode", *_NUMBERS, "status", "good", "went on at")
    print_table(columns, [_row(each) for each in found], right=_NUMBERS)
    say(f"{counts.num_requests:,} requests arrived in this time{_kept(counts.kept)}{_dropped(counts.dropped)}")


def _kept(kept: dict[str, int]) -> str:
    told = ", ".join(f"{num:,} {'by chance' if name == 'share' else name}" for name, num in kept.items())
    return f"; records were kept of {sum(kept.values()):,}: {told}" if kept else ""


def _dropped(dropped: dict[str, int]) -> str:
    told = ", ".join(f"{num:,} {name}" for name, num in dropped.items())
    return f"; {told} are only counted" if dropped else ""


def _explain(client: PhaselineClient, range_: tuple[float, float], wanted: RequestFilters, as_json: bool) -> None:
    found = client.explanation(*range_, **wanted)
    if as_json:
        print_json(found)
        return
    _show_explanation(found)


def _show_explanation(found: Explanation) -> None:
    say(f"{found.num_requests:,.0f} requests ({found.asked}) against the other {found.num_rest:,.0f}")
    rows = [
        (
            each.dimension,
            each.value,
            f"{each.share:.1%}",
            f"{each.rest_share:.1%}",
            f"+{each.difference * 100:.1f} points",
        )
        for each in found.differences
    ]
    if rows:
        print_table(
            ("what", "value", "of these", "of the others", "difference"), rows, right=("of these", "of the others")
        )
    else:
        say("nothing is different about them that chance would not show too")
    say(f"note: {found.note}")


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
    say(
        f"  key {found.api_key_name or found.api_key_id or 'n/a'}, {priority_class(found)}; {found.prompt_tokens} "
        f"prompt tokens, {found.cached_tokens} of them cached; good: {_verdict(found) or 'n/a'}"
    )
    stages = (("queued", found.queue_s), ("prefill", found.prefill_s), ("handoff", found.handoff_s))
    timed = [f"{name} {seconds(value_s)}" for name, value_s in stages if value_s is not None]
    say(f"  {', '.join(timed) or 'no stage was timed'}; first token after {seconds(found.ttft_s) or 'n/a'}")
    for move in found.moves:
        say(f"  at {seconds(move.at_s)}: {move_words(move)}")
    say(
        f"  {found.output_tokens} of {found.max_tokens} tokens in {seconds(found.e2e_s) or 'n/a'}, "
        f"largest gap {seconds(found.max_gap_s) or 'n/a'}"
    )


def _verdict(record: RequestRecord) -> str | None:
    """Whether it was good, and which bounds it was past."""
    if record.good is None:
        return None
    return "yes" if record.good else f"no: {', '.join(record.broken)}" if record.broken else "no"


def _when(at_unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_unix_s))


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
        seconds(record.max_gap_s),
        seconds(record.e2e_s),
        f"{record.status} {record.error or record.finish_reason}",
        _verdict(record),
        ", ".join(f"{each.to_worker or 'none'} ({each.kind})" for each in record.moves) or "-",
    )
