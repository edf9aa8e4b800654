"""Errors of the control plane, one tree:

ControlError                  retry_helps False unless said
├── SettingsError             a setting is unknown or out of bounds
├── CommandRefused            an action breaks a bound; names field, value and bound      -> 422
├── StaleVersion              the form was drawn from an older desired state              -> 409
├── NotFound                  no such worker, command, fleet or metric                    -> 404
├── NotAllowed                no principal, or one whose role may not                     -> 401 / 403
├── HistoryError              the history cannot be opened or written (retry helps)       -> 503
│   └── DatabaseAway          it cannot be reached now: waiting helps, without a change of ours
├── StaleFence                another plane has taken over; this one records nothing      -> 503
├── NotActive                 this plane waits for its database, or stands by             -> 503
├── FleetError                a serving system cannot be started or reached (retry helps) -> 503
└── PlaneUnreachable          the client got no answer (retry helps)
"""

from __future__ import annotations

from typing import Any


class ControlError(Exception):
    """Base: `str(error)` is one line for a person; `field`, `value`, `bound` say what was wrong where it was input."""

    status = 500
    retry_helps = False

    def __init__(self, detail: str, *, field: str | None = None, value: Any = None, bound: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.value = value
        self.bound = bound


class SettingsError(ControlError):
    status = 500


class CommandRefused(ControlError):
    status = 422


class StaleVersion(ControlError):
    status = 409


class NotFound(ControlError):
    status = 404


class NotAllowed(ControlError):
    status = 403


class HistoryError(ControlError):
    status = 503
    retry_helps = True


class DatabaseAway(HistoryError):
    """What `History.open` waits for."""


class StaleFence(ControlError):
    status = 503
    retry_helps = True  # another plane answers


class NotActive(ControlError):
    status = 503
    retry_helps = True


class FleetError(ControlError):
    status = 503
    retry_helps = True


class PlaneUnreachable(ControlError):
    status = 503
    retry_helps = True
