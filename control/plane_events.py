"""What happened to the plane itself: that one took over, and how long the history could not be written. Time comes in.

Decided here: when an outage of the history is one (a slow write is not) and that it is told when it is over, as before
nothing can be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from control.lease import Lease
from control.types.events import FleetEvent
from control.types.fleet import PlaneStatus

#: A shorter trouble is told by the notices only.
LEAST_OUTAGE_S: Final = 2.0


@dataclass(slots=True)
class PlaneEvents:
    """`take` is called once a tick; what it returns is written with that tick."""

    fleet_id: str
    plane: PlaneStatus
    _is_told: bool = False
    _since_unix_s: float | None = None
    _problem: str = ""

    def take(self, history_problem: str, now_unix_s: float) -> tuple[FleetEvent, ...]:
        """Events since the last call."""
        found: list[FleetEvent] = []
        if not self._is_told:
            self._is_told = True
            found.append(self._took_over())
        if history_problem and self._since_unix_s is None:
            self._since_unix_s = now_unix_s
        if history_problem:
            self._problem = history_problem
        elif self._since_unix_s is not None:
            away_s, self._since_unix_s = now_unix_s - self._since_unix_s, None
            if away_s >= LEAST_OUTAGE_S:
                found.append(self._outage(now_unix_s - away_s, away_s))
        return tuple(found)

    def _took_over(self) -> FleetEvent:
        plane = self.plane
        return FleetEvent(
            fleet_id=self.fleet_id,
            kind="plane",
            at_unix_s=plane.since_unix_s,
            worker_id="",
            epoch=plane.fence,
            reason=f"process {plane.pid} on {plane.hostname}, fence {plane.fence}",
        )

    def _outage(self, at_unix_s: float, away_s: float) -> FleetEvent:
        return FleetEvent(
            fleet_id=self.fleet_id,
            kind="history",
            at_unix_s=at_unix_s,
            worker_id="",
            reason=self._problem,
            away_s=away_s,
        )


def plane_status(lease: Lease) -> PlaneStatus:
    """The plane that this lease makes the active one."""
    holder = lease.holder
    return PlaneStatus(
        pid=holder.pid,
        hostname=holder.hostname,
        address=holder.address,
        fence=lease.fence,
        since_unix_s=lease.taken_unix_s,
    )
