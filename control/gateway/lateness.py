"""How late a gateway's event loop is: whoever it serves waits so much longer than any worker knows of."""

from __future__ import annotations


class Lateness:
    """The worst lateness of a timer since the last `take`."""

    def __init__(self) -> None:
        self._worst_s: float | None = None

    def note(self, late_s: float) -> None:
        """A timer fired so long after it was due."""
        self._worst_s = max(late_s, self._worst_s or 0.0)

    def take(self) -> float | None:
        """None when no timer has fired meanwhile."""
        worst_s, self._worst_s = self._worst_s, None
        return worst_s
