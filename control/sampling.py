"""Which request records are kept, and for how many requests each of them stands.

    slow, failed, moved    always kept, weight 1
    all others             a random share by hash of the id, weight 1 / share; the rest is counted, by class

Decided here: what is slow (past a bound, or of the slowest TOP_SHARE by one of its times lately), and the share: a
power of two, such that about `ordinary_per_s` are kept. It depends on the requests before and never on the one that is
judged, so the sum of the weights of kept records is an unbiased count of requests, whatever share held when. Not
decided here: for how long records are kept (`control.history.retention`). Time is an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from math import floor, log2
from typing import Final, Literal

from control.traffic_stats import is_cancelled, is_error, is_offered, is_rejected
from control.types.requests import Kept, LatencyKind, RequestRecord
from engine.histogram import bucket_of

#: Of the requests of lately, so many are slow by their time to first token; as many by their whole, and by their gap.
TOP_SHARE: Final = 0.01
#: "Lately": the slowest are judged by the last one to two times so many requests.
TOP_WINDOW: Final = 2_000
#: The share is chosen anew every so many seconds, and lowered at once when more come than it was chosen for.
SHARE_WINDOW_S: Final = 10
KINDS: Final[tuple[LatencyKind, ...]] = ("ttft", "e2e", "gap")

DroppedClass = Literal["served", "refused", "cancelled"]


def latency_of(record: RequestRecord, kind: LatencyKind) -> float | None:
    """One time of a request in seconds. The whole only of one that was served: how fast one failed says nothing."""
    match kind:
        case "ttft":
            return record.ttft_s
        case "gap":
            return record.max_gap_s
        case "e2e":
            return record.e2e_s if record.status == 200 else None


def dropped_class(record: RequestRecord) -> DroppedClass:
    """What a request that is only counted is counted as."""
    if is_cancelled(record):
        return "cancelled"
    return "refused" if is_rejected(record) or not is_offered(record) else "served"


def places(request_id: str) -> tuple[float, float]:
    """Two independent places in [0, 1), always the same for one id, and independent of `control.routing.share_of`: the
    first decides whether it is kept, the second picks some of those that are."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=16, person=b"kept").digest()
    return int.from_bytes(digest[:8], "little") / 2**64, int.from_bytes(digest[8:], "little") / 2**64


def share_for(num: int, over_s: float, limit_per_s: float) -> float:
    """The largest 1 / 2**k of `num` in `over_s` seconds that is within the limit."""
    allowed = limit_per_s * over_s
    return 1.0 if num <= allowed else 2.0 ** floor(log2(allowed / num))


class Tops:
    """From which histogram bucket on a time is one of the slowest TOP_SHARE of lately; None before enough are known."""

    def __init__(self) -> None:
        self.bucket: int | None = None
        self._counts: dict[int, int] = {}
        self._before: Mapping[int, int] = {}
        self._num = 0

    def add(self, bucket: int) -> None:
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._num += 1
        if self._num % (TOP_WINDOW // 4) == 0:
            self.bucket = first_of_top([self._counts, self._before], TOP_SHARE)
        if self._num == TOP_WINDOW:
            self._before, self._counts, self._num = self._counts, {}, 0


def first_of_top(histograms: list[Mapping[int, int]], share: float) -> int | None:
    """The lowest bucket such that it and those above hold at most `share` of all; None: no bucket is so small."""
    left = floor(share * sum(sum(counts.values()) for counts in histograms))
    found: int | None = None
    for bucket in sorted(set().union(*histograms), reverse=True):
        left -= sum(counts.get(bucket, 0) for counts in histograms)
        if left < 0:
            break
        found = bucket
    return found


def _as(record: RequestRecord, kept: Kept, weight: float) -> RequestRecord:
    """Copied only where it says something else: a record has many fields."""
    is_so = record.kept == kept and record.weight == weight
    return record if is_so else replace(record, kept=kept, weight=weight)


class Sampler:
    """Judges records in the order in which they come."""

    def __init__(self, ordinary_per_s: float) -> None:
        self._limit_per_s = ordinary_per_s
        self._tops: dict[LatencyKind, Tops] = {kind: Tops() for kind in KINDS}
        self._window = 0
        self._num = 0  # ordinary ones in this window
        self._share = 1.0  # by the number of the window before

    def judge(self, record: RequestRecord, now_s: float) -> RequestRecord:
        """The record, with why it is kept, or that it is not, and its weight."""
        is_top = self._is_top(record)
        kept: Kept
        if is_error(record):
            kept = "failed"
        elif record.moves:
            kept = "moved"
        elif record.broken or is_top:
            kept = "slow"
        else:
            share = self._next_share(now_s)
            is_kept = share >= 1.0 or places(record.request_id)[0] < share
            return _as(record, "share" if is_kept else "dropped", 1.0 / share)
        return _as(record, kept, 1.0)

    def _is_top(self, record: RequestRecord) -> bool:
        found = False
        for kind, tops in self._tops.items():
            value_s = latency_of(record, kind)
            if value_s is not None:
                bucket = bucket_of(value_s)
                found |= tops.bucket is not None and bucket >= tops.bucket
                tops.add(bucket)
        return found

    def _next_share(self, now_s: float) -> float:
        """For one more ordinary request."""
        window = floor(now_s / SHARE_WINDOW_S)
        if window != self._window:
            gone_s = max(1, window - self._window) * SHARE_WINDOW_S
            self._share = share_for(self._num, gone_s, self._limit_per_s)
            self._window, self._num = window, 0
        self._num += 1
        return min(self._share, share_for(self._num, SHARE_WINDOW_S, self._limit_per_s))
