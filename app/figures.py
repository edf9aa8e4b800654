"""The Overview's figures, pool legend and load cards: snapshot and series in, values for `app.cards` out. Pure."""

from __future__ import annotations

from collections.abc import Collection

from app import cards, format, frames, lines, theme, words
from control.types import FleetSnapshot, PoolStatus, SeriesResult

#: The series behind the five sparklines.
COURSES: tuple[str, ...] = (
    "goodput_rps",
    "ttft_p99_s",
    "itl_p99_s",
    "prefill_compute_wall",
    "decode_bandwidth_wall",
)


def figures(snapshot: FleetSnapshot, read: dict[str, SeriesResult | None]) -> list[cards.Figure]:
    """The five cards. Pure."""
    traffic, prefill, decode = snapshot.traffic, snapshot.prefill, snapshot.decode
    seen = "simulated" if snapshot.simulated else "measured"
    course = {metric: frames.course(frames.points_of(result)) for metric, result in read.items()}
    seen_note = f"Seen at the gateways over the last {format.duration(traffic.window_s)}. {traffic.slo_text}"
    return [
        cards.Figure(
            label="Goodput",
            value=format.rate(traffic.goodput_rps),
            tag=seen,
            tag_note=seen_note,
            note=f"{format.percent(traffic.attainment)} of {format.rate(traffic.offered_rps)} offered",
            course=course["goodput_rps"],
            color=theme.OK,
        ),
        cards.Figure(
            label="TTFT p99",
            value=format.duration(traffic.ttft_p99_s),
            tag=seen,
            tag_note=seen_note,
            note=f"p50 {format.duration(traffic.ttft_p50_s)}",
            course=course["ttft_p99_s"],
            color=theme.PREFILL,
        ),
        cards.Figure(
            label="ITL p99",
            value=format.duration(traffic.itl_p99_s),
            tag=seen,
            tag_note=seen_note,
            note=f"p50 {format.duration(traffic.itl_p50_s)}",
            course=course["itl_p99_s"],
            color=theme.DECODE,
            dash="5 3",
        ),
        cards.Figure(
            label="Prefill compute",
            value=format.percent(prefill.wall_compute if prefill else None),
            note=_in_phase_note(prefill.in_phase_compute if prefill else None, prefill.busy if prefill else None),
            tag=lines.mark(snapshot, prefill),
            tag_note=lines.peak_note(prefill),
            course=course["prefill_compute_wall"],
            color=theme.PREFILL,
        ),
        cards.Figure(
            label="Decode bandwidth",
            value=format.percent(decode.wall_bandwidth if decode else None),
            note=_in_phase_note(decode.in_phase_bandwidth if decode else None, decode.busy if decode else None),
            tag=lines.mark(snapshot, decode),
            tag_note=lines.peak_note(decode),
            course=course["decode_bandwidth_wall"],
            color=theme.DECODE,
            dash="5 3",
        ),
    ]


def _in_phase_note(in_phase: float | None, busy: float | None) -> str:
    """The figure is wall utilization; beside it how hard the phase worked while it ran."""
    if in_phase is None and busy == 0:
        return "wall; it did not run"
    return f"wall; in-phase {format.percent(in_phase)}"


def role_legend(snapshot: FleetSnapshot, drawn: Collection[str] = ()) -> list[cards.Line]:
    """Ready workers of each role that has any, wanted, there or on the chart."""
    shown = []
    for pool in snapshot.pools:
        if pool.num_desired or pool.num_ready or pool.num_other:
            text = f"{pool.num_ready} of {pool.num_desired} ready"
            shown.append(_role_line(pool.role, text + (f", {pool.num_other} changing" if pool.num_other else "")))
        elif pool.role in drawn:
            shown.append(_role_line(pool.role, "none now"))
    if "unassigned" in drawn:
        waiting = sum(each.role == "unassigned" for each in snapshot.workers)
        shown.append(_role_line("unassigned", format.count(waiting) if waiting else "none now"))
    return shown


def role_means(drawn: Collection[tuple[str, float | None]]) -> list[cards.Line]:
    """Workers of each role over a window of the past: their mean."""
    return [_role_line(role, f"{format.number(mean)} on average") for role, mean in drawn]


def _role_line(role: str, value: str) -> cards.Line:
    dash = theme.ROLE_DASHES[role]
    drawn_as = "" if dash == [1, 0] else " ".join(str(part) for part in dash)
    return cards.Line(label=role, value=value, color=theme.ROLE_COLORS[role], dash=drawn_as)


def loads(snapshot: FleetSnapshot) -> list[cards.Load]:
    """How full, beside how hard, for each pool; then what waits at the gateways. Pure."""
    pools = [pool_load(pool, snapshot) for pool in snapshot.pools if pool.num_desired or pool.num_ready]
    traffic = snapshot.traffic
    waiting = cards.Load(
        title="At the gateways",
        color=theme.MIXED,
        tag="simulated" if snapshot.simulated else "measured",
        rows=(
            ("In flight", format.count(traffic.num_in_flight)),
            ("Oldest waiting", format.duration(traffic.oldest_waiting_s)),
            ("Past a bound now", format.count(traffic.num_overdue)),
            ("Errors", format.rate(traffic.error_rps)),
            ("Refused (429)", format.rate(traffic.rejected_rps)),
        ),
    )
    return [*pools, waiting]


def pool_load(pool: PoolStatus, snapshot: FleetSnapshot) -> cards.Load:
    prefill = pool.role == "prefill"
    rows = [("Queued work" if prefill else "KV held + reserved", words.load(pool))]
    if pool.batch is not None and not prefill:
        most = format.number(pool.largest_batch) if pool.largest_batch is not None else "n/a"
        rows.append(("Batch / limit", f"{format.number(pool.batch)} / {most}"))
    rows.append(("Headroom", format.rate(pool.headroom_rps)))
    members = [each for each in snapshot.workers if each.role == pool.role]
    if prefill:
        queued = [each.queued_prefill_tokens for each in members]
        known = [each for each in queued if each is not None]
        rows.append(("Queued tokens", format.count(sum(known) if len(known) == len(queued) else None)))
    else:
        rows.append(("Running", format.count(sum(each.num_running for each in members))))
    rows.append(("Waiting", format.count(sum(each.num_waiting for each in members))))
    return cards.Load(
        title=f"{pool.role.capitalize()} pool",
        rows=tuple(rows),
        color=theme.ROLE_COLORS[pool.role],
        fill=None if prefill else pool.load,
        tag="simulated" if snapshot.simulated else pool.headroom_provenance,
        tag_note="Headroom: further requests per second that would still meet the SLO. The limit of a batch is the "
        "largest whose steps stay inside the bound on the time per token, by a line through the steps seen.",
    )
