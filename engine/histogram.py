"""Mergeable latency histograms: what a bucket covers, and the percentile of counted buckets.

Buckets grow by GAMMA, so a percentile is within MAX_RELATIVE_ERROR of the value that was observed at that rank,
whatever was merged before (DDSketch, https://arxiv.org/abs/1908.10693). A histogram is a plain mapping bucket -> count,
so merging is addition. Nothing here is ever averaged, and nothing here knows who measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

#: A percentile differs from the observed value at its rank by at most this fraction, for values in [MIN_S, MAX_S].
MAX_RELATIVE_ERROR: Final = 0.01
GAMMA: Final = (1 + MAX_RELATIVE_ERROR) / (1 - MAX_RELATIVE_ERROR)
MIN_S: Final = 1e-5
MAX_S: Final = 1e4

_PER_LOG: Final = 1 / math.log(GAMMA)
#: Bucket 0 holds [0, MIN_S]; bucket i holds (MIN_S * GAMMA**(i-1), MIN_S * GAMMA**i]; the last also all that is above.
NUM_BUCKETS: Final = math.ceil(math.log(MAX_S / MIN_S) * _PER_LOG) + 1


def bucket_of(value_s: float) -> int:
    """Bucket of one duration. Negative counts as 0 s; NaN raises ValueError."""
    if value_s <= MIN_S:
        return 0
    if value_s >= MAX_S:
        return NUM_BUCKETS - 1
    return math.ceil(math.log(value_s / MIN_S) * _PER_LOG)


def value_of(bucket: int) -> float:
    """The value that stands for a bucket: within MAX_RELATIVE_ERROR of all values in it (but for the two open ends)."""
    if bucket == 0:
        return MIN_S
    return MIN_S * GAMMA**bucket * 2 / (GAMMA + 1)


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """Value at rank ceil(q * n), at least the first; None when nothing was counted. q is in 0..1."""
    total = sum(counts.values())
    if total <= 0:
        return None
    rank = max(1, math.ceil(q * total))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return value_of(bucket)
    raise AssertionError("counts changed while they were summed")


def merge(a: Mapping[int, int], b: Mapping[int, int]) -> dict[int, int]:
    """Counts of both."""
    return merge_all((a, b))


def merge_all(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Counts of all of them."""
    total: dict[int, int] = {}
    for counts in histograms:
        for bucket, count in counts.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def of_values(values_s: Iterable[float]) -> dict[int, int]:
    """Count each value once."""
    counts: dict[int, int] = {}
    for value_s in values_s:
        bucket = bucket_of(value_s)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def delta(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    """What was counted since `before`. A bucket that shrank (another epoch) counts as nothing, never negative."""
    grown = {bucket: count - before.get(bucket, 0) for bucket, count in now.items()}
    return {bucket: count for bucket, count in grown.items() if count > 0}
