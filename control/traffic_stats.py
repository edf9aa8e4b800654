"""What the gateways see now: rates, percentiles and attainment over the last minute, indexed by arrival.

Decided here: what is good, what counts against attainment, and where each rate comes from.
- offered: arrivals that the gateways' beats counted in the window; without two beats, the records that arrived in it.
- attainment: good / (ended and not cancelled by the client + overdue now). A request that waits for its first or
  its next token past its bound is bad now, not when it ends: beats say how many these are.
- goodput: offered x attainment: those still in flight inside their bounds are expected to do as the others did. A plain
  count of good arrivals would read low by the share that has not ended yet.
- token rates: by completion, since a request's tokens are known when it ends.
Percentiles come from merged histograms. Records are summed per second of arrival as they come in, so that asking is
cheap however much traffic there is. Not decided here: what is kept (`control.history`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import floor
from statistics import median
from typing import Final

from control.departures import sum_departures
from control.gateway.link import Beat
from control.lost import Tally, ttft_bound_s
from control.types.commands import Departure
from control.types.fleet import TrafficStatus
from control.types.requests import SAMPLE_TRAFFIC_KEY, RequestRecord, Slo, SloBound
from engine.histogram import bucket_of, quantile

#: The window of `status`; nothing older is kept.
WINDOW_S: Final = 60.0
FRESH_BEAT_S: Final = 5.0
#: A gateway's CPU is that of so many seconds: a calm minute before says nothing of now.
CPU_WINDOW_S: Final = 10.0
DEFAULT_OUTPUT_TOKENS: Final = 128
REJECTED: Final = 429
CLIENT_CLOSED: Final = 499
TIMED_OUT: Final = 408
#: Prompt lengths in tokens: attainment per class, so that shedding long prompts cannot flatter the whole.
LENGTH_CLASSES: Final = ((512, "under 512"), (2048, "512-2047"), (8192, "2048-8191"))
LONGEST_CLASS: Final = "8192 and over"
_KINDS: Final = ("ttft", "itl", "tpot", "e2e")


def is_cancelled(record: RequestRecord) -> bool:
    """The client went away: neither good nor bad."""
    return record.status == CLIENT_CLOSED or record.finish_reason == "cancelled"


def is_rejected(record: RequestRecord) -> bool:
    return record.status == REJECTED


def is_error(record: RequestRecord) -> bool:
    """Failed on our side: 5xx and time-outs. A refused bad request (other 4xx) is the client's own."""
    return (
        record.status >= 500 or record.status == TIMED_OUT or (record.finish_reason == "error" and record.status == 200)
    )


def is_offered(record: RequestRecord) -> bool:
    return was_offered(record.status)


def was_offered(status: int) -> bool:
    """Whether we had to serve it: a bad request (4xx, but 408, 429 and client cancels) was never ours to serve."""
    return not 400 <= status < 500 or status in (TIMED_OUT, REJECTED, CLIENT_CLOSED)


def is_good(record: RequestRecord, slo: Slo) -> bool | None:
    """Whether all bounds held. None when it does not count: the client cancelled, or it was not ours to serve."""
    return verdict(record.status, record.finish_reason, record.ttft_s, broken_bounds(record, slo))


def verdict(status: int, finish_reason: str, ttft_s: float | None, broken: tuple[SloBound, ...]) -> bool | None:
    """The same of values that are no record yet."""
    if status == CLIENT_CLOSED or finish_reason == "cancelled" or not was_offered(status):
        return None
    return status == 200 and finish_reason != "error" and ttft_s is not None and not broken


def broken_bounds(record: RequestRecord, slo: Slo) -> tuple[SloBound, ...]:
    """The bounds that it was past, however it ended."""
    uncached_tokens = record.prompt_tokens - record.cached_tokens
    return bounds_broken_by(record.ttft_s, record.tpot_s, record.max_gap_s, uncached_tokens, slo)


def bounds_broken_by(
    ttft_s: float | None, tpot_s: float | None, max_gap_s: float | None, uncached_tokens: int, slo: Slo
) -> tuple[SloBound, ...]:
    """A time that is not known broke none."""
    broken: tuple[SloBound, ...] = ()
    if ttft_s is not None and ttft_s > ttft_bound_s(uncached_tokens, slo):
        broken += ("ttft",)
    if tpot_s is not None and tpot_s > slo.tpot_s:
        broken += ("tpot",)
    if max_gap_s is not None and max_gap_s > slo.max_gap_s:
        broken += ("max_gap",)
    return broken


def judged(record: RequestRecord, slo: Slo) -> RequestRecord:
    """The record with its verdict under these bounds."""
    return replace(record, good=is_good(record, slo), broken=broken_bounds(record, slo))


def length_class(prompt_tokens: int) -> str:
    return next((name for below, name in LENGTH_CLASSES if prompt_tokens < below), LONGEST_CLASS)


def slo_text(slo: Slo) -> str:
    """The bounds in words."""
    return (
        f"TTFT <= {slo.ttft_base_s:g} s + {slo.ttft_per_token_s * 1000:g} ms per uncached prompt token, "
        f"TPOT <= {slo.tpot_s * 1000:g} ms, largest gap <= {slo.max_gap_s:g} s"
    )


@dataclass(slots=True)
class _Sums:
    """Records of one second of arrival, or of several such seconds."""

    offered: int = 0
    sample: int = 0  # of the offered: sample traffic
    decided: int = 0
    good: int = 0
    errors: int = 0
    rejected: int = 0
    longest_uncached: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)
    good_by_length: Counter[str] = field(default_factory=Counter)
    decided_by_length: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in _KINDS})
    tally: Tally = field(default_factory=Tally)

    def add(self, record: RequestRecord, slo: Slo) -> None:
        verdict = is_good(record, slo)
        self.offered += is_offered(record)
        self.sample += is_offered(record) and record.api_key_id == SAMPLE_TRAFFIC_KEY
        self.errors += is_error(record)
        self.rejected += is_rejected(record)
        self.longest_uncached = max(self.longest_uncached, record.prompt_tokens - record.cached_tokens)
        if record.rule:
            self.by_rule[record.rule] += 1
        if verdict is not None:
            self.decided += 1
            self.good += verdict
            self.tally.add(record, slo, is_good=verdict)
            self.decided_by_length[length_class(record.prompt_tokens)] += 1
            self.good_by_length[length_class(record.prompt_tokens)] += verdict
        self.latencies["itl"].update(record.itl_buckets)
        for kind, value_s in (("ttft", record.ttft_s), ("tpot", record.tpot_s), ("e2e", _served_s(record))):
            if value_s is not None:
                self.latencies[kind][bucket_of(value_s)] += 1

    def merge(self, other: _Sums) -> None:
        self.offered += other.offered
        self.sample += other.sample
        self.decided += other.decided
        self.good += other.good
        self.errors += other.errors
        self.rejected += other.rejected
        self.longest_uncached = max(self.longest_uncached, other.longest_uncached)
        self.by_rule.update(other.by_rule)
        self.good_by_length.update(other.good_by_length)
        self.decided_by_length.update(other.decided_by_length)
        for kind, counts in other.latencies.items():
            self.latencies[kind].update(counts)
        self.tally.merge(other.tally)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """What one gateway had counted at one time: all of an old beat that anybody asks for."""

    at_unix_s: float
    num: int
    cpu_s: float
    loop_late_s: float | None
    cpu_wait_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateways:
    """How hard the gateways work that are heard. None is unknown."""

    num: int
    cpu: float | None = None  # of the hardest pressed one, as a share of the one core that it can use
    cpu_wait: float | None = None  # the same one's: share of time in which it had work and was given no core
    loop_late_s: float | None = None  # how late the event loop is in half of the seconds, of the latest one

    @property
    def wanted(self) -> float | None:
        """Share of time in which the hardest pressed one had work."""
        return None if self.cpu is None else self.cpu + (self.cpu_wait or 0.0)


class TrafficStats:
    """Records and beats of the last minute. `now` is always an argument."""

    def __init__(self, slo: Slo) -> None:
        self.slo = slo
        self._seconds: dict[int, _Sums] = {}  # by arrival
        self._tokens: dict[int, list[int]] = {}  # prompt and output tokens, by the second in which a request ended
        self._beats: dict[str, Beat] = {}  # the newest per gateway
        self._arrived: dict[str, deque[_Arrived]] = {}  # per gateway, oldest first
        self._lengths: deque[int] = deque(maxlen=500)  # output tokens of the newest requests that ended well
        self._num_changes = 0
        self._last: tuple[tuple[int, int], TrafficStatus, Tally] | None = None

    def add(self, record: RequestRecord) -> None:
        """One request has ended. Records come in any order."""
        self._num_changes += 1
        self._seconds.setdefault(floor(record.arrival_unix_s), _Sums()).add(record, self.slo)
        if record.e2e_s is not None:
            tokens = self._tokens.setdefault(floor(record.arrival_unix_s + record.e2e_s), [0, 0])
            tokens[0] += record.prompt_tokens
            tokens[1] += record.output_tokens
        if record.finish_reason in ("stop", "length"):
            self._lengths.append(record.output_tokens)

    def beat(self, gateway_id: str, beat: Beat) -> None:
        """What one gateway holds now. Its counts only grow; smaller ones mean that it started again."""
        self._num_changes += 1
        before = self._beats.get(gateway_id)
        if before is not None and beat.num_arrived < before.num_arrived:
            self._arrived[gateway_id].clear()
        elif before is not None and beat.at_unix_s <= before.at_unix_s:
            return
        self._beats[gateway_id] = beat
        arrived = self._arrived.setdefault(gateway_id, deque())
        arrived.append(_Arrived(beat.at_unix_s, beat.num_arrived, beat.cpu_s, beat.loop_late_s, beat.cpu_wait_s))
        while arrived[0].at_unix_s < beat.at_unix_s - WINDOW_S:
            arrived.popleft()

    def drop_gateway(self, gateway_id: str) -> None:
        """Its connection is gone: what it holds now is unknown."""
        self._num_changes += 1
        self._beats.pop(gateway_id, None)
        self._arrived.pop(gateway_id, None)

    def departures(self, now_unix_s: float) -> tuple[Departure, ...]:
        """What leaves or left workers lately, over all gateways that are heard."""
        return sum_departures(each for beat in self._fresh(now_unix_s).values() for each in beat.departures)

    def expected_output_tokens(self) -> int:
        """Median output of the recent requests that ended well."""
        return int(median(self._lengths)) if self._lengths else DEFAULT_OUTPUT_TOKENS

    def status(self, now_unix_s: float) -> TrafficStatus:
        """The last WINDOW_S seconds, the running one included. What nobody reported is None."""
        return self._read(now_unix_s)[0]

    def tally(self, now_unix_s: float) -> Tally:
        """How the requests of the same window ended, and where those that are not good were lost."""
        return self._read(now_unix_s)[1]

    def gateways(self, now_unix_s: float) -> Gateways:
        """How hard the gateways work that are heard: their CPU of lately, their lateness over the same window."""
        told = [self._arrived[name] for name in self._fresh(now_unix_s)]
        pressed = max(map(_pressed, told), key=lambda each: each.wanted or 0.0, default=Gateways(num=0))
        late = [
            median(known) for each in told if (known := [at.loop_late_s for at in each if at.loop_late_s is not None])
        ]
        return replace(pressed, num=len(told), loop_late_s=max(late, default=None))

    def line_tokens(self, now_unix_s: float) -> float:
        """Uncached prompt tokens that wait in the gateways' lines."""
        return sum(beat.usage.waiting.prefill_tokens for beat in self._fresh(now_unix_s).values() if beat.usage)

    def _read(self, now_unix_s: float) -> tuple[TrafficStatus, Tally]:
        key = (self._num_changes, floor(now_unix_s))
        if self._last is None or self._last[0] != key:
            self._forget(now_unix_s)
            self._last = (key, *self._status(now_unix_s))
        return self._last[1:]

    def _status(self, now_unix_s: float) -> tuple[TrafficStatus, Tally]:
        seconds = range(floor(now_unix_s - WINDOW_S) + 1, floor(now_unix_s) + 1)
        sums = _Sums()
        for second in seconds:
            if second in self._seconds:
                sums.merge(self._seconds[second])
        prompt_tokens, output_tokens = (sum(self._tokens.get(each, (0, 0))[i] for each in seconds) for i in (0, 1))
        fresh = self._fresh(now_unix_s)
        waits = [waited for beat in fresh.values() if (waited := _waited_s(beat, now_unix_s)) is not None]
        bound_s = self.slo.ttft_base_s + self.slo.ttft_per_token_s * sums.longest_uncached
        num_overdue = sum(_num_overdue(beat, bound_s, now_unix_s) for beat in fresh.values())
        decided = sums.decided + num_overdue
        attainment = sums.good / decided if decided else None
        known = bool(fresh) or sums.offered > 0
        offered_rps = _offered_rps(sums, [self._arrived[name] for name in fresh], now_unix_s)
        status = TrafficStatus(
            window_s=WINDOW_S,
            num_gateways=len(fresh),
            offered_rps=offered_rps,
            goodput_rps=_goodput_rps(offered_rps, attainment),
            attainment=attainment,
            sample_share=sums.sample / sums.offered if sums.offered else None,
            attainment_by_length={
                name: sums.good_by_length[name] / count for name, count in sorted(sums.decided_by_length.items())
            },
            error_rps=sums.errors / WINDOW_S if known else None,
            rejected_rps=sums.rejected / WINDOW_S if known else None,
            num_in_flight=sum(beat.num_in_flight for beat in fresh.values()),
            oldest_waiting_s=max(waits, default=None),
            num_overdue=num_overdue if fresh else None,
            ttft_p50_s=quantile(sums.latencies["ttft"], 0.5),
            ttft_p99_s=quantile(sums.latencies["ttft"], 0.99),
            itl_p50_s=quantile(sums.latencies["itl"], 0.5),
            itl_p99_s=quantile(sums.latencies["itl"], 0.99),
            tpot_p50_s=quantile(sums.latencies["tpot"], 0.5),
            e2e_p50_s=quantile(sums.latencies["e2e"], 0.5),
            prompt_tokens_per_s=prompt_tokens / WINDOW_S if known else None,
            output_tokens_per_s=output_tokens / WINDOW_S if known else None,
            by_rule=dict(sums.by_rule),
            slo_text=slo_text(self.slo),
        )
        return status, sums.tally

    def _fresh(self, now_unix_s: float) -> dict[str, Beat]:
        """Of gateways that are heard."""
        return {name: beat for name, beat in self._beats.items() if now_unix_s - beat.at_unix_s <= FRESH_BEAT_S}

    def _forget(self, now_unix_s: float) -> None:
        """What is too old, and what a clock that is far ahead made up."""
        oldest, newest = floor(now_unix_s - WINDOW_S), floor(now_unix_s + WINDOW_S)
        for table in (self._seconds, self._tokens):
            for second in [each for each in table if not oldest <= each <= newest]:
                del table[second]


def _offered_rps(sums: _Sums, arrived: Iterable[deque[_Arrived]], now_unix_s: float) -> float | None:
    """Arrivals per second by the gateways' own count; 0 only when a gateway says so."""
    rates = []
    for counts in arrived:
        inside = [each for each in counts if each.at_unix_s >= now_unix_s - WINDOW_S]
        if len(inside) >= 2:
            elapsed_s = inside[-1].at_unix_s - inside[0].at_unix_s
            rates.append((inside[-1].num - inside[0].num) / elapsed_s)
    if rates:
        return sum(rates)
    return sums.offered / WINDOW_S if sums.offered else None


def _pressed(told: deque[_Arrived]) -> Gateways:
    """How hard one gateway is pressed for CPU: seconds per second, over the last CPU_WINDOW_S."""
    last = told[-1]
    first = next(each for each in told if each.at_unix_s >= last.at_unix_s - CPU_WINDOW_S)
    elapsed_s = last.at_unix_s - first.at_unix_s
    if elapsed_s <= 0:
        return Gateways(num=1)
    knows_wait = first.cpu_wait_s is not None and last.cpu_wait_s is not None
    wait_s = (last.cpu_wait_s or 0.0) - (first.cpu_wait_s or 0.0)
    return Gateways(
        num=1, cpu=(last.cpu_s - first.cpu_s) / elapsed_s, cpu_wait=wait_s / elapsed_s if knows_wait else None
    )


def _goodput_rps(offered_rps: float | None, attainment: float | None) -> float | None:
    if offered_rps is None or attainment is None:
        return 0.0 if offered_rps == 0 else None
    return offered_rps * attainment


def _waited_s(beat: Beat, now_unix_s: float) -> float | None:
    """How long the oldest request without a first token has waited by now."""
    if beat.oldest_waiting_s is None:
        return None
    return beat.oldest_waiting_s + max(0.0, now_unix_s - beat.at_unix_s)


def _num_overdue(beat: Beat, bound_s: float, now_unix_s: float) -> int:
    """Requests that are bad by now. A gateway that does not count them has at least its oldest, if that is late."""
    if beat.num_overdue is not None:
        return beat.num_overdue
    return int((_waited_s(beat, now_unix_s) or 0.0) > bound_s)


def _served_s(record: RequestRecord) -> float | None:
    return record.e2e_s if record.status == 200 else None
