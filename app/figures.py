"""The Overview's figures, pool legend and load cards: snapshot and series in, values for `app.cards` out. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from app import cards, foreign, format, frames, lines, theme, words
from control.types.fleet import FleetSnapshot, PoolStatus, TrafficStatus
from control.types.series import SeriesResult
from control.types.workers import PhaseUtilization

#: The series behind the five sparklines.
COURSES: tuple[str, ...] = (
    "goodput_rps",
    "ttft_p99_s",
    "itl_p99_s",
    "prefill_compute_wall",
    "decode_bandwidth_wall",
)
#: And of an attached fleet, whose requests may not come through our gateways.
ENGINE_COURSES: tuple[str, ...] = ("worker_ttft_p99_s", "worker_itl_p99_s")
DASHED = "5 3"
BY_ENGINES = "Of the last ten seconds, from the engines' own histograms: as exact as their bounds are fine."


def figures(snapshot: FleetSnapshot, read: dict[str, SeriesResult | None]) -> list[cards.Figure]:
    """The five cards. Pure."""
    course = {metric: frames.course(frames.points_of(result)) for metric, result in read.items()}
    prefill, decode = snapshot.prefill, snapshot.decode
    return [
        _goodput(snapshot, course["goodput_rps"]),
        _latency(snapshot, "ttft", theme.PREFILL, "", read),
        _latency(snapshot, "itl", theme.DECODE, DASHED, read),
        _work(
            snapshot,
            prefill,
            cards.Figure(
                label="Prefill compute",
                value=format.percent(prefill.wall_compute if prefill else None),
                note=_in_phase_note(prefill.in_phase_compute if prefill else None, prefill.busy if prefill else None),
                course=course["prefill_compute_wall"],
                color=theme.PREFILL,
            ),
            "prefill",
        ),
        _work(
            snapshot,
            decode,
            cards.Figure(
                label="Decode bandwidth",
                value=format.percent(decode.wall_bandwidth if decode else None),
                note=_in_phase_note(decode.in_phase_bandwidth if decode else None, decode.busy if decode else None),
                course=course["decode_bandwidth_wall"],
                color=theme.DECODE,
                dash=DASHED,
            ),
            "decode",
        ),
    ]


def _goodput(snapshot: FleetSnapshot, course: tuple[float | None, ...]) -> cards.Figure:
    traffic = snapshot.traffic
    drawn = cards.Figure(label="Goodput", value=format.rate(traffic.goodput_rps), course=course, color=theme.OK)
    if traffic.goodput_rps is None:
        return _unknown(drawn, _no_requests(snapshot))
    note = f"{format.percent(traffic.attainment)} of {format.rate(traffic.offered_rps)} offered"
    return replace(drawn, note=note, tag=_seen(snapshot), tag_note=_seen_note(traffic))


def _no_requests(snapshot: FleetSnapshot) -> foreign.Unknown | None:
    if not foreign.is_unseen(snapshot):
        return None
    return foreign.Unknown(foreign.unseen_words(snapshot), "not seen")


def _latency(
    snapshot: FleetSnapshot, kind: str, color: str, dash: str, read: dict[str, SeriesResult | None]
) -> cards.Figure:
    """As our gateways see it; where no request passes them, as the engines of an attached fleet say it."""
    traffic = snapshot.traffic
    p50, p99 = getattr(traffic, f"{kind}_p50_s"), getattr(traffic, f"{kind}_p99_s")
    drawn = cards.Figure(label=f"{kind.upper()} p99", value=format.duration(p99), color=color, dash=dash)
    if p99 is not None:
        course = frames.course(frames.points_of(read[f"{kind}_p99_s"]))
        note = f"p50 {format.duration(p50)}"
        return replace(drawn, course=course, note=note, tag=_seen(snapshot), tag_note=_seen_note(traffic))
    own = frames.points_of(read.get(f"worker_{kind}_p99_s"))
    value = frames.newest(own[:-1])
    if value is None:
        return _unknown(drawn, foreign.unknown(snapshot, kind))
    told = replace(drawn, value=format.duration(value), course=frames.course(own))
    parts = foreign.first_token_words(snapshot) if kind == "ttft" else ""
    note = "the engines' parts of it" if parts else "as the engines say it"
    return replace(told, note=note, tag=_seen(snapshot), tag_note=f"{BY_ENGINES} {parts}".rstrip())


def _work(snapshot: FleetSnapshot, phase: PhaseUtilization | None, drawn: cards.Figure, name: str) -> cards.Figure:
    if drawn.value == format.NA:
        return _unknown(drawn, foreign.unknown(snapshot, name))
    in_phase = foreign.unknown(snapshot, "in_phase")
    note = f" {in_phase.words}." if in_phase is not None else ""
    return replace(drawn, tag=lines.mark(snapshot, phase), tag_note=lines.peak_note(phase) + note)


def _unknown(drawn: cards.Figure, why: foreign.Unknown | None) -> cards.Figure:
    """A figure that is not known says so in its tag, with the remedy; it was not measured."""
    if why is None:
        return replace(drawn, tag="no data", note="")
    return replace(drawn, tag=why.state, tag_note=f"{why.words}.", note=why.remedy)


def _seen(snapshot: FleetSnapshot) -> str:
    return "simulated" if snapshot.simulated else "measured"


def _seen_note(traffic: TrafficStatus) -> str:
    return f"Seen at the gateways over the last {format.duration(traffic.window_s)}. {traffic.slo_text}"


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
    if foreign.is_unseen(snapshot):
        return pools
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
        rows.append(("Queued tokens", format.count(_total(queued))))
    else:
        rows.append(("Running", format.count(_total(each.num_running for each in members))))
    rows.append(("Waiting", format.count(_total(each.num_waiting for each in members))))
    return cards.Load(
        title=f"{pool.role.capitalize()} pool",
        rows=tuple(rows),
        color=theme.ROLE_COLORS[pool.role],
        fill=None if prefill else pool.load,
        tag="simulated" if snapshot.simulated else pool.headroom_provenance,
        tag_note="Headroom: further requests per second that would still meet the SLO. The limit of a batch is the "
        "largest whose steps stay inside the bound on the time per token, by a line through the steps seen.",
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """Unknown when one of them is, or when there is none."""
    found = list(counts)
    known = [each for each in found if each is not None]
    return sum(known) if known and len(known) == len(found) else None
