"""When the tokens of one request reached the gateway. All times on the monotonic clock.

A token costs an append to an array; gaps are counted later, those of many requests together (`control.gateway.gaps`).
"""

from __future__ import annotations

from array import array
from typing import Final

from control.gateway.gaps import Gaps, gaps_of
from engine.histogram import merge

#: So many times are kept; then their gaps are counted, so that a long answer takes no more memory than this.
MOST_KEPT: Final = 512


class Timeline:
    """First and last token, the largest gap, and a histogram of the gaps: tokens that came together have gaps of 0."""

    __slots__ = ("_early", "_first_s", "_num_early", "_num_together", "arrival_s", "at_s")

    def __init__(self, arrival_s: float) -> None:
        self.arrival_s = arrival_s
        self.at_s = array("d")  # when messages with tokens came, but for early ones: gaps up to the first are counted
        self._num_together = 0  # tokens that came in one message with another one, less that one
        self._num_early = 0
        self._early = Gaps(0.0, {})
        self._first_s: float | None = None  # where there are early ones

    def add(self, num_tokens: int, now_s: float) -> None:
        """`num_tokens` came now, in one message."""
        at_s = self.at_s
        at_s.append(now_s)
        if num_tokens > 1:
            self._num_together += num_tokens - 1
        if len(at_s) > MOST_KEPT:
            self._count_early()

    def _count_early(self) -> None:
        self._first_s = self.first_s
        found = gaps_of([self.at_s])[0]
        self._early = Gaps(max(self._early.max_s, found.max_s), merge(self._early.counts, found.counts))
        self._num_early += len(self.at_s) - 1
        del self.at_s[:-1]

    @property
    def num_tokens(self) -> int:
        return self._num_early + len(self.at_s) + self._num_together

    @property
    def first_s(self) -> float | None:
        if self._first_s is not None:
            return self._first_s
        return self.at_s[0] if self.at_s else None

    @property
    def last_s(self) -> float:
        """Of the last token; the arrival before there is one."""
        return self.at_s[-1] if self.at_s else self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """(last - first) / (n - 1); unknown for fewer than two tokens."""
        if self.first_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)

    @property
    def gaps(self) -> Gaps:
        return self.with_late(gaps_of([self.at_s])[0])

    def with_late(self, late: Gaps) -> Gaps:
        """All gaps, when `late` are those within `at_s`."""
        max_s, counts = late
        if self._num_early:
            max_s, counts = max(max_s, self._early.max_s), merge(self._early.counts, counts)
        if self._num_together:
            counts[0] = counts.get(0, 0) + self._num_together
        return Gaps(max_s, counts)
