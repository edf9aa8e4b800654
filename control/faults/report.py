"""What a run of a scenario showed: its checks with their evidence, its events, its figures. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from control.faults.checks import CheckResult
from control.faults.events import EventDone
from control.traffic.report import quantiles
from control.types.requests import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Stalls are the largest gap between two tokens of each stream that went on elsewhere, on the gateway's clock."""

    streams: int
    errors: int
    cancelled: int
    failovers: int  # streams that were begun anew elsewhere
    moved: int  # streams that moved with their KV
    stall_p50_s: float | None
    stall_p99_s: float | None
    move_stall_p99_s: float | None
    ttft_p99_s: float | None
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One scenario on one fleet. `simulated`: its workers are paced."""

    scenario: str
    fleet_id: str
    simulated: bool
    seed: int
    checks: tuple[CheckResult, ...]
    events: tuple[EventDone, ...]
    figures: Figures

    @property
    def ok(self) -> bool:
        return not any(each.state == "failed" for each in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def figures(
    records: Iterable[RequestRecord], *, num_streams: int, num_errors: int, num_cancelled: int, took_s: float
) -> Figures:
    """From the streams' own records."""
    ours = list(records)
    again = [each for each in ours if each.num_reroutes]
    moved = [each for each in ours if each.moves]
    stalls = quantiles(each.max_gap_s for each in ours if each.num_reroutes or each.moves)
    return Figures(
        streams=num_streams,
        errors=num_errors,
        cancelled=num_cancelled,
        failovers=len(again),
        moved=len(moved),
        stall_p50_s=stalls.p50,
        stall_p99_s=stalls.p99,
        move_stall_p99_s=quantiles(move.stall_s for each in moved for move in each.moves).p99,
        ttft_p99_s=quantiles(each.ttft_s for each in ours).p99,
        took_s=took_s,
    )
