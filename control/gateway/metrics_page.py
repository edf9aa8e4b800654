"""The gateway's own counts as Prometheus text. Names and labels are a fixed set: nothing that a client sends is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from control.gateway.mover import MoveCounts
from control.gateway.promises import PromiseBook
from control.types import MoveKind
from engine.histogram import value_of

#: Upper bounds of the stall histogram, in seconds: from one step of a fast model to the longest recomputation.
STALL_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


def metrics_text(moves: MoveCounts) -> str:
    """Counters since the gateway started. Stalls are those of `engine.histogram`: 1% off at most."""
    lines = _head("phaseline_gateway_moves_total", "counter", "Running requests that went on at another worker.")
    lines += [
        f'phaseline_gateway_moves_total{{kind="{kind}"}} {moves.num_by_kind[kind]}' for kind in get_args(MoveKind)
    ]
    lines += _head("phaseline_gateway_moves_given_up_total", "counter", "Migrations that came to nothing.")
    lines.append(f"phaseline_gateway_moves_given_up_total {moves.num_given_up}")
    lines += _head("phaseline_gateway_moved_bytes_total", "counter", "KV bytes that were copied for migrations.")
    lines.append(f"phaseline_gateway_moved_bytes_total {moves.num_bytes}")
    name = "phaseline_gateway_move_stall_seconds"
    lines += _head(name, "histogram", "Last token before a move to the first one after it.")
    for kind in get_args(MoveKind):
        of_kind = {bucket: count for (each, bucket), count in moves.stall_buckets.items() if each == kind}
        lines += _histogram(name, of_kind, f'kind="{kind}"')
    name = "phaseline_gateway_failover_notice_seconds"
    lines += _head(name, "histogram", "A lost worker's last word, or the begin of its hung step, to leaving it.")
    lines += _histogram(name, moves.notice_buckets)
    return "\n".join(lines) + "\n"


def admission_text(promises: PromiseBook, num_waiting: int) -> str:
    """The line, and the places kept for those who were told to come back."""
    lines = _head("phaseline_gateway_line_requests", "gauge", "Requests that wait for room.")
    lines.append(f"phaseline_gateway_line_requests {num_waiting}")
    name = "phaseline_gateway_promises_total"
    lines += _head(name, "counter", "Places promised with a 429; kept: came back in time and got in.")
    counts = {"made": promises.num_made, "kept": promises.num_kept, "lapsed": promises.num_lapsed}
    lines += [f'{name}{{outcome="{outcome}"}} {count}' for outcome, count in counts.items()]
    return "\n".join(lines) + "\n"


def _histogram(name: str, buckets: Mapping[int, int], label: str = "") -> list[str]:
    """`buckets`: of `engine.histogram`; `label`: of all its series."""
    values = [(value_of(bucket), count) for bucket, count in buckets.items()]
    before = f"{label}," if label else ""
    lines = []
    for bound_s in STALL_BOUNDS_S:
        count = sum(n for value_s, n in values if value_s <= bound_s)
        lines.append(f'{name}_bucket{{{before}le="{bound_s:g}"}} {count}')
    total, labels = sum(buckets.values()), f"{{{label}}}" if label else ""
    lines.append(f'{name}_bucket{{{before}le="+Inf"}} {total}')
    lines.append(f"{name}_sum{labels} {sum(value_s * count for value_s, count in values):.6g}")
    lines.append(f"{name}_count{labels} {total}")
    return lines


def _head(name: str, kind: str, words: str) -> list[str]:
    return [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
