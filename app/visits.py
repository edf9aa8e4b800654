"""Open visits: what the cookie of a browser refers to. The tokens stay in this process's memory, never in the browser.

Decided here: how long a visit lasts and how many there are. Whether its token still holds is the plane's to say.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field, replace

from control.types.api import Principal

VISIT_S = 12 * 3600.0
MAX_VISITS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One browser that has logged in, until it logs out or [now, ends) is over."""

    token: str
    principal: Principal
    ends_unix_s: float
    last_unix_s: float  # when its session at the plane ends: no visit lasts longer


@dataclass(slots=True)
class Visits:
    """By reference: 256 random bits, of no use anywhere but here. Used by every thread of the console."""

    _open: dict[str, Visit] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, token: str, principal: Principal, now_unix_s: float, ends_unix_s: float | None = None) -> str:
        """A new visit's reference. Where there are too many, the oldest one ends."""
        last = ends_unix_s or now_unix_s + VISIT_S
        reference = secrets.token_urlsafe(32)
        with self._lock:
            self._open = {name: each for name, each in self._open.items() if now_unix_s < each.ends_unix_s}
            while len(self._open) >= MAX_VISITS:
                self._open.pop(next(iter(self._open)))
            ends = min(now_unix_s + VISIT_S, last)
            self._open[reference] = Visit(token=token, principal=principal, ends_unix_s=ends, last_unix_s=last)
        return reference

    def find(self, reference: str, now_unix_s: float) -> Visit | None:
        """The visit, unless it has ended or never was."""
        found = self._open.get(reference)
        return found if found is not None and now_unix_s < found.ends_unix_s else None

    def prolong(self, reference: str, now_unix_s: float) -> float | None:
        """A wall display looks for weeks: a visit that may only look goes on while it does. Seconds left, or None."""
        found = self.find(reference, now_unix_s)
        if found is None or found.principal.role != "viewer":
            return None
        ends = min(now_unix_s + VISIT_S, found.last_unix_s)
        with self._lock:
            if reference in self._open:
                self._open[reference] = replace(found, ends_unix_s=ends)
        return ends - now_unix_s

    def close(self, reference: str) -> None:
        """Logged out, in every tab of that browser."""
        with self._lock:
            self._open.pop(reference, None)


def cookie_name(host: str) -> str:
    """Cookies know no ports: two consoles on one host must not overwrite each other's."""
    port = host.rpartition(":")[2]
    return f"phaseline_{port}" if port.isdecimal() else "phaseline"
