"""When the tokens of one request reached the gateway. All times on the monotonic clock, from the request's arrival."""

from __future__ import annotations

from engine.histogram import bucket_of


class Timeline:
    """First and last token, the largest gap, and a histogram of the gaps: tokens that came together have gaps of 0."""

    __slots__ = ("arrival_s", "first_s", "itl_buckets", "last_s", "max_gap_s", "num_tokens")

    def __init__(self, arrival_s: float) -> None:
        self.arrival_s = arrival_s
        self.first_s: float | None = None
        self.last_s = arrival_s
        self.num_tokens = 0
        self.max_gap_s: float | None = None
        self.itl_buckets: dict[int, int] = {}

    def add(self, num_tokens: int, now_s: float) -> None:
        """`num_tokens` came now, in one message."""
        buckets = self.itl_buckets
        if self.first_s is None:
            self.first_s = now_s
        else:
            gap_s = now_s - self.last_s
            bucket = bucket_of(gap_s)
            buckets[bucket] = buckets.get(bucket, 0) + 1
            self.max_gap_s = gap_s if self.max_gap_s is None else max(self.max_gap_s, gap_s)
        if num_tokens > 1:
            buckets[0] = buckets.get(0, 0) + num_tokens - 1
            self.max_gap_s = self.max_gap_s or 0.0
        self.num_tokens += num_tokens
        self.last_s = now_s

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """(last - first) / (n - 1); unknown for fewer than two tokens."""
        if self.first_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)
