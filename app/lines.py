"""Which lines the Overview draws: by phase or by role, wall or in-phase, never mixed, and the blended one on demand.

Values in, values out; reading is `app.source`'s and drawing is `app.views.detail`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from app import cards, foreign, format, frames, theme
from control.types.fleet import FleetSnapshot
from control.types.series import SeriesPoint, SeriesResult
from control.types.workers import PhaseUtilization

Basis = Literal["wall", "in_phase"]
SOLID: tuple[int, ...] = (1, 0)
DASHED: tuple[int, ...] = (6, 3)
DOTTED: tuple[int, ...] = (2, 2)
LEAST_SHOWN = 0.005
BLENDED = "blended_busy"
#: What the grey line is, by where it comes from.
BLENDED_WORDS: dict[str, str] = {
    "steps": "The one number of other dashboards: share of the time in which any step ran, by the workers' own steps. "
    "It says neither which phase ran nor how hard: a device can read 100% here at 5% of its FLOP/s.",
    "device": "The one number of other dashboards, as the devices say it (utilization.gpu): share of the time in which "
    "any kernel ran, on however few cores. The line is drawn from the workers' own steps.",
}


@dataclass(frozen=True, slots=True)
class LineSpec:
    """One line: where its points come from and how it looks."""

    name: str
    metric: str
    by: str
    label: str | None  # group within the series; None: the only one
    color: str
    dash: tuple[int, ...]


def utilization(basis: Basis, by: str, *, blended: bool) -> tuple[LineSpec, ...]:
    """The two lines (prefill by compute, decode by bandwidth), or the same two per role."""
    prefill, decode = f"prefill_compute_{basis}", f"decode_bandwidth_{basis}"
    if by == "role":
        found = [
            LineSpec(f"{role} pool: {words}", metric, "role", role, theme.ROLE_COLORS[role], dash)
            for role in ("prefill", "decode", "mixed")
            for words, metric, dash in (("prefill compute", prefill, SOLID), ("decode bandwidth", decode, DASHED))
        ]
    else:
        found = [
            LineSpec("Prefill compute", prefill, "fleet", None, theme.PREFILL, SOLID),
            LineSpec("Decode bandwidth", decode, "fleet", None, theme.DECODE, DASHED),
        ]
    if blended:
        found.append(LineSpec("Blended", BLENDED, "fleet", None, theme.BLENDED, DOTTED))
    return tuple(found)


Read = Callable[[str, str], SeriesResult | None]


def named_points(lines: Sequence[LineSpec], read: Read) -> list[tuple[str, Sequence[SeriesPoint]]]:
    """(line, points) for each line; a line whose group has no data is empty."""
    found = [(line, frames.points_of(read(line.metric, line.by), line.label)) for line in lines]
    return [(line.name, points if line.by != "role" or _worked(points) else ()) for line, points in found]


def _worked(points: Sequence[SeriesPoint]) -> bool:
    """A role that did nothing of a phase has no line: it would lie on the axis under the others."""
    return any((point.value or 0.0) >= LEAST_SHOWN for point in points)


def legend(
    lines: Sequence[LineSpec],
    snapshot: FleetSnapshot,
    basis: Basis,
    past: Mapping[str, float | None] | None = None,
    drawn: Collection[str] | None = None,
    target: Callable[[LineSpec], tuple[str, str]] = lambda _: ("", ""),
    sources: Mapping[str, str] = MappingProxyType({}),
) -> list[cards.Line]:
    """What each line reads now (the snapshot's last seconds), or its mean over a chosen past window.

    `drawn`: the lines with points; a role's line without any is left out. `target`: words beside a value, and a note.
    `sources`: where a past window's points come from; the fleet may be another one by now.
    """
    entries = []
    for line in lines:
        phase = _phase(snapshot, line)
        value = past.get(line.name) if past is not None else _now(snapshot, phase, line, basis)
        if line.by == "role" and (line.name not in drawn if drawn is not None else value is None):
            continue
        beside, note = target(line)
        note = f"{peak_note(phase)} {note}" if line.metric != BLENDED else blended_words(snapshot)
        tag = sources.get(line.name) or mark(snapshot, phase)
        if value is None:
            tag, note = _unknown(snapshot, line, basis)
        gone = line.by == "role" and past is None and not _has_workers(snapshot, line)
        entries.append(
            cards.Line(
                label=line.name,
                value="no workers now" if gone else format.percent(value) + beside,
                color=line.color,
                dash="" if line.dash == SOLID else " ".join(str(part) for part in line.dash),
                tag=tag,
                tag_note=note,
            )
        )
    return entries


def _phase(snapshot: FleetSnapshot, line: LineSpec) -> PhaseUtilization | None:
    name = "decode" if line.metric.startswith("decode") else "prefill"
    if line.by == "fleet":
        found: PhaseUtilization | None = getattr(snapshot, name)
        return found
    pool = next((each for each in snapshot.pools if each.role == line.label), None)
    return None if pool is None else getattr(pool, name)


def _unknown(snapshot: FleetSnapshot, line: LineSpec, basis: Basis) -> tuple[str, str]:
    """The tag of a line without a value, and why: it was not derived."""
    wanted = ["decode" if line.metric.startswith("decode") else "prefill"]
    wanted += ["in_phase"] if basis == "in_phase" or line.metric == BLENDED else []
    found = [why for each in reversed(wanted) if (why := foreign.unknown(snapshot, each)) is not None]
    return (found[0].state, found[0].words) if found else ("no data", "")


def _has_workers(snapshot: FleetSnapshot, line: LineSpec) -> bool:
    return any(each.role == line.label and each.num_ready for each in snapshot.pools)


def blended_words(snapshot: FleetSnapshot) -> str:
    """What the grey line is."""
    return BLENDED_WORDS[snapshot.blended.source if snapshot.blended is not None else "steps"]


def _now(snapshot: FleetSnapshot, phase: PhaseUtilization | None, line: LineSpec, basis: Basis) -> float | None:
    if line.metric == BLENDED:
        return snapshot.blended.value if snapshot.blended is not None else None
    if phase is None:
        return None
    resource = "bandwidth" if "bandwidth" in line.metric else "compute"
    value: float | None = getattr(phase, f"{basis}_{resource}")
    return value


def mark(snapshot: FleetSnapshot, phase: PhaseUtilization | None) -> str:
    """Where a utilization comes from: simulated outranks everything."""
    if snapshot.simulated:
        return "simulated"
    return "derived" if phase is None else phase.provenance


def peak_note(phase: PhaseUtilization | None) -> str:
    """Which peak it is a fraction of."""
    if phase is None or phase.basis in ("", "unknown"):
        return "Its peak is unknown."
    return f"Fraction of the peak: {phase.basis}."


def peak_words(snapshot: FleetSnapshot) -> str:
    """ "of the datasheet peak", where the phases agree on it."""
    bases = sorted({each.basis for each in (snapshot.prefill, snapshot.decode) if each is not None})
    known = [each for each in bases if each != "unknown"]
    return f"as a share of the {' / '.join(known)} peak" if known else "of an unknown peak"
