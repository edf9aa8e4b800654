"""One record per request, and the log of those that the plane has not acknowledged yet.

Decided here: what a record says, and which records are dropped when the plane stays away (the oldest, and they are
counted). When a request ends, it is only noted; the records of many are made at once, before anybody is given one, at
the latest a second later (`Gateway.watch`): so they cost half, and no token waits for them. Not here: what good means
(`control.traffic_stats`), how records travel (`control.gateway.plane_link`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from control.gateway.errors import GatewayError
from control.gateway.gaps import Gaps, gaps_of
from control.gateway.relay import Relay
from control.gateway.schema import Ask
from control.traffic_stats import CLIENT_CLOSED, bounds_broken_by, verdict
from control.types.requests import RequestRecord, Slo
from engine.types import FinishReason

MAX_UNACKNOWLEDGED: Final = 100_000
MAX_BATCH: Final = 500
#: So many requests that have ended are noted at most; each keeps its prompt.
MAX_NOTED: Final = 128

if TYPE_CHECKING:
    Written = RequestRecord
else:

    def _field(of: Any) -> tuple[Any, ...]:
        if of.default_factory is not MISSING:
            return of.name, Any, msgspec.field(default_factory=of.default_factory)
        return (of.name, Any) if of.default is MISSING else (of.name, Any, of.default)

    #: A RequestRecord to whoever reads it, and on the wire; it is made in a fifth of the time.
    Written = msgspec.defstruct("Written", map(_field, fields(RequestRecord)), kw_only=True, frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What all records of one gateway share."""

    gateway_id: str
    fleet_id: str
    slo: Slo
    key_names: Mapping[str, str] = field(default_factory=dict)  # by API-key id


class Ended(NamedTuple):
    """A request that has just ended, at `ended_s` (monotonic). Nothing of it changes any more."""

    ask: Ask
    relay: Relay
    model_id: str
    arrival_unix_s: float
    output_tokens: int
    ended_s: float
    error: GatewayError | None

    @property
    def status(self) -> int:
        if self.error is not None:
            return self.error.status
        return CLIENT_CLOSED if self.relay.finish is FinishReason.CANCELLED else 200


def make_records(origin: Origin, ended: Sequence[Ended]) -> list[RequestRecord]:
    counted = gaps_of([each.relay.timeline.at_s for each in ended])
    return [make_record(origin, each, gaps) for each, gaps in zip(ended, counted, strict=True)]


def make_record(origin: Origin, ended: Ended, late_gaps: Gaps) -> RequestRecord:
    ask, relay, model_id, arrival_unix_s, output_tokens, ended_s, error = ended
    job, served, times, status = relay.job, relay.served, relay.timeline, ended.status
    finish = FinishReason.ERROR if error is not None else relay.finish
    finish_reason = finish.value if finish is not None else ""
    decision, waits_for = served.decision, relay.standing.waits_for
    lacks = waits_for if error is None or error.lacks is None else error.lacks
    ttft_s, tpot_s, gaps = times.ttft_s, times.tpot_s, times.with_late(late_gaps)
    max_gap_s = gaps.max_s if tpot_s is not None else None
    prompt_tokens = len(job.prompt)
    broken = bounds_broken_by(ttft_s, tpot_s, max_gap_s, prompt_tokens - served.cached_tokens, origin.slo)
    return Written(
        request_id=job.request_id,
        fleet_id=origin.fleet_id,
        model_id=model_id,
        gateway_id=origin.gateway_id,
        api_key_id=job.api_key_id,
        simulated=served.simulated,
        arrival_unix_s=arrival_unix_s,
        attempt=relay.attempt,
        priority=job.priority,
        stream=ask.stream,
        endpoint=ask.endpoint,
        rule=decision.rule.value if decision is not None else "",
        reason=decision.reason if decision is not None else "",
        prefill_worker=served.prefill_worker,
        decode_worker=served.decode_worker,
        prompt_tokens=prompt_tokens,
        cached_tokens=served.cached_tokens,
        decode_cached_tokens=decision.decode_cached_tokens if decision is not None else None,
        output_tokens=output_tokens,
        max_tokens=job.sampling.max_tokens,
        status=status,
        finish_reason=finish_reason,
        error="" if error is None else error.message,
        queue_s=served.queue_s,
        prefill_s=served.prefill_s,
        handoff_s=served.handoff_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        max_gap_s=max_gap_s,
        e2e_s=ended_s - job.arrival_s,
        good=verdict(status, finish_reason, ttft_s, broken),
        broken=broken,
        num_reroutes=served.num_reroutes,
        itl_buckets=gaps.counts,
        traceparent=job.traceparent,
        moves=tuple(served.moves),
        line_s=relay.place.waited_s(ended_s),
        decode_s=served.decode_s,
        waited_for="" if lacks is None else lacks.value,
        api_key_name=origin.key_names.get(job.api_key_id, ""),
    )


class RecordLog:
    """Numbered records from 1 on, kept until acknowledged. `make` makes those of requests that have ended."""

    def __init__(self, max_records: int = MAX_UNACKNOWLEDGED) -> None:
        self.num_dropped = 0
        self.has_new = asyncio.Event()
        self.all_acknowledged = asyncio.Event()
        self.all_acknowledged.set()
        self.make: Callable[[Sequence[Ended]], Iterable[RequestRecord]] = lambda ended: ()
        self._noted: list[Ended] = []
        self._records: deque[RequestRecord] = deque()
        self._first_seq = 1  # of the oldest record kept
        self._max_records = max_records

    def note(self, ended: Ended) -> None:
        """A request has ended; its record is made soon."""
        self._noted.append(ended)
        self.all_acknowledged.clear()
        if len(self._noted) >= MAX_NOTED:
            self.catch_up()

    def catch_up(self) -> None:
        """Make the records of all that were noted."""
        if self._noted:
            noted, self._noted = self._noted, []
            for record in self.make(noted):
                self.append(record)

    def append(self, record: RequestRecord) -> None:
        if len(self._records) >= self._max_records:
            self._records.popleft()
            self._first_seq += 1
            self.num_dropped += 1
        self._records.append(record)
        self.has_new.set()
        self.all_acknowledged.clear()

    def acknowledge(self, up_to_seq: int) -> None:
        """The plane has stored all records up to this one."""
        while self._records and self._first_seq <= up_to_seq:
            self._records.popleft()
            self._first_seq += 1
        if not self._records and not self._noted:
            self.all_acknowledged.set()

    @property
    def num_waiting(self) -> int:
        return len(self._records) + len(self._noted)

    @property
    def waiting(self) -> tuple[int, list[RequestRecord]]:
        """All that is not acknowledged, and the number of the first."""
        self.catch_up()
        return self._first_seq, list(self._records)

    def batch_from(self, seq: int) -> tuple[int, list[RequestRecord]]:
        """The next records to send, from `seq` or from the oldest kept, and the number of the first."""
        self.catch_up()
        first = max(seq, self._first_seq)
        start = first - self._first_seq
        return first, list(islice(self._records, start, start + MAX_BATCH))
