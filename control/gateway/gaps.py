"""The gaps between the tokens of many requests, counted together: a few steps of numpy for all of them.

Decided here: which bucket of `engine.histogram` each gap falls into. A value that lies on the edge of two buckets may
be counted in either, as both logarithms round. Few gaps are counted one by one, as numpy's first step costs as much as
they do. Not decided here: when gaps are counted (`control.gateway.records`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice, pairwise
from operator import sub
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.histogram import GAMMA, MIN_S, NUM_BUCKETS, of_values

#: Up to so many times, counting one by one is faster.
FEW: Final = 128


class Gaps(NamedTuple):
    """The largest, 0 where there is none, and the histogram of all."""

    max_s: float
    counts: dict[int, int]


def gaps_of(series: Sequence[array[float]]) -> list[Gaps]:
    """The gaps within each series of times, which do not fall."""
    if sum(map(len, series)) <= FEW:
        return [_one_by_one(list(map(sub, islice(each, 1, None), each))) for each in series]
    times_s, owners = array("d"), np.repeat(np.arange(len(series)), [len(each) for each in series])
    for each in series:
        times_s.extend(each)
    is_gap = owners[1:] == owners[:-1]  # from the last time of one series to the first of the next is none
    gaps_s, owners = np.diff(np.frombuffer(times_s))[is_gap], owners[1:][is_gap]
    largest_s = np.zeros(len(series))
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    largest_s[owners[firsts]] = np.maximum.reduceat(gaps_s, firsts) if len(firsts) else 0.0
    places, numbers = np.unique(owners * NUM_BUCKETS + buckets_of(gaps_s), return_counts=True)
    begins = np.searchsorted(places, np.arange(len(series) + 1) * NUM_BUCKETS).tolist()
    buckets, counts = (places % NUM_BUCKETS).tolist(), numbers.tolist()
    return [
        Gaps(max_s, dict(zip(buckets[begin:end], counts[begin:end], strict=True)))
        for max_s, (begin, end) in zip(largest_s.tolist(), pairwise(begins), strict=True)
    ]


def _one_by_one(gaps_s: list[float]) -> Gaps:
    return Gaps(max(gaps_s, default=0.0), of_values(gaps_s))


def buckets_of(values_s: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """`engine.histogram.bucket_of` of each."""
    logs = np.log(np.maximum(values_s, MIN_S) / MIN_S) / np.log(GAMMA)
    buckets: npt.NDArray[np.int64] = np.minimum(np.ceil(logs), NUM_BUCKETS - 1).astype(np.int64)
    return buckets
