"""How fast the error budget of the SLO burns. Pure: counts and the time come in.

    burn rate = bad share / (1 - objective)         1: the budget lasts exactly as long as the SLO's period

Decided here: which windows must burn together, and how fast, before somebody is told (Google's SRE Workbook, chapter 5,
"multiwindow, multi-burn-rate": 14.4 over 1 h is 2% of a 30 days' budget, 6 over 6 h is 5%; the short window ends the
alert soon after the trouble). Requests count by arrival, once they have ended; a client's own cancel does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor
from typing import Final

from control.alerts.life import Condition
from control.types.alerts import AlertName, AlertSeverity

#: Counts are kept by so many seconds of arrival: windows are that exact.
STEP_S: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnRule:
    """Told when both windows burn faster than `factor`."""

    name: AlertName
    severity: AlertSeverity
    short_s: int
    long_s: int
    factor: float


RULES: Final = (
    BurnRule(name="slo_burn_fast", severity="page", short_s=300, long_s=3600, factor=14.4),
    BurnRule(name="slo_burn_slow", severity="ticket", short_s=1800, long_s=21_600, factor=6.0),
)
WINDOWS_S: Final = tuple(sorted({each for rule in RULES for each in (rule.short_s, rule.long_s)}))
LONGEST_S: Final = WINDOWS_S[-1]


@dataclass(slots=True)
class Counted:
    """Requests of one window: those that count, and the good ones among them."""

    good: int = 0
    decided: int = 0


class GoodCounts:
    """Requests by arrival over the longest window, in a ring of fixed size: nothing older is kept."""

    def __init__(self, known: Iterable[tuple[int, int, int]] = ()) -> None:
        """`known`: (begin of a step, good, decided), as the history has them."""
        self._begins = [0] * (LONGEST_S // STEP_S + 1)
        self._good, self._decided = self._begins.copy(), self._begins.copy()
        for at, good, decided in known:
            self._add(at, good, decided)

    def add(self, arrival_unix_s: float, *, good: bool) -> None:
        """One request that counts has ended."""
        self._add(floor(arrival_unix_s), int(good), 1)

    def _add(self, at: int, good: int, decided: int) -> None:
        begin = at - at % STEP_S
        index = begin // STEP_S % len(self._begins)
        if self._begins[index] < begin:
            self._begins[index], self._good[index], self._decided[index] = begin, 0, 0
        if self._begins[index] == begin:
            self._good[index] += good
            self._decided[index] += decided

    def windows(self, now_unix_s: float) -> dict[int, Counted]:
        """Sums of each window that ends now. A request whose arrival lies ahead of our clock counts as new."""
        found = {window_s: Counted() for window_s in WINDOWS_S}
        for begin, good, decided in zip(self._begins, self._good, self._decided, strict=True):
            age_s = now_unix_s - begin
            for window_s in WINDOWS_S if decided and age_s < LONGEST_S else ():
                if age_s < window_s:
                    found[window_s].good += good
                    found[window_s].decided += decided
        return found


def burn_rate(counted: Counted, objective: float) -> float | None:
    """None: nothing counted, nothing known."""
    if not counted.decided:
        return None
    return (1.0 - counted.good / counted.decided) / (1.0 - objective)


def burn_rates(windows: Mapping[int, Counted], objective: float) -> dict[int, float | None]:
    return {window_s: burn_rate(counted, objective) for window_s, counted in windows.items()}


def burning(windows: Mapping[int, Counted], objective: float, least_requests: int) -> list[Condition]:
    """What burns too fast. Fewer requests than `least_requests` in the long window say nothing."""
    found = []
    rates = burn_rates(windows, objective)
    for rule in RULES:
        short, long = rates[rule.short_s], rates[rule.long_s]
        if short is None or long is None or windows[rule.long_s].decided < least_requests:
            continue
        if min(short, long) <= rule.factor:
            continue
        counted = windows[rule.long_s]
        num_bad = counted.decided - counted.good
        text = (
            f"The error budget burns {long:.3g} times as fast as the SLO allows over {_words(rule.long_s)}, "
            f"{short:.3g} times over {_words(rule.short_s)} (alert above {rule.factor:g}): {num_bad} of "
            f"{counted.decided} requests were not good, objective {objective:.4g}"
        )
        found.append(Condition(name=rule.name, severity=rule.severity, text=text, for_s=0.0))
    return found


def _words(window_s: int) -> str:
    return f"{window_s // 3600} h" if window_s >= 3600 else f"{window_s // 60} min"
