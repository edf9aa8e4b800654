"""One record per request, and the log of those that the plane has not acknowledged yet.

Decided here: what a record says, and which records are dropped when the plane stays away (the oldest, and they are
counted). Not here: what good means (`control.traffic_stats`), how records travel (`control.gateway.plane_link`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from control.gateway.errors import GatewayError
from control.gateway.relay import Relay
from control.gateway.schema import Ask
from control.traffic_stats import CLIENT_CLOSED, judged
from control.types import RequestRecord, Slo
from engine.types import FinishReason

MAX_UNACKNOWLEDGED: Final = 100_000
MAX_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What all records of one gateway share."""

    gateway_id: str
    fleet_id: str
    slo: Slo
    key_names: Mapping[str, str] = field(default_factory=dict)  # by API-key id


def make_record(
    origin: Origin,
    ask: Ask,
    relay: Relay,
    *,
    model_id: str,
    arrival_unix_s: float,
    output_tokens: int,
    ended_s: float,
    error: GatewayError | None,
) -> RequestRecord:
    """The record of a request that has just ended at `ended_s` (monotonic)."""
    job, served, times = relay.job, relay.served, relay.timeline
    is_cancelled = relay.finish is FinishReason.CANCELLED
    status = error.status if error is not None else CLIENT_CLOSED if is_cancelled else 200
    finish = FinishReason.ERROR if error is not None else relay.finish
    decision, waits_for = served.decision, relay.standing.waits_for
    lacks = waits_for if error is None or error.lacks is None else error.lacks
    record = RequestRecord(
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
        prompt_tokens=len(job.prompt),
        cached_tokens=served.cached_tokens,
        decode_cached_tokens=decision.decode_cached_tokens if decision is not None else None,
        output_tokens=output_tokens,
        max_tokens=job.sampling.max_tokens,
        status=status,
        finish_reason=finish.value if finish is not None else "",
        error="" if error is None else error.message,
        queue_s=served.queue_s,
        prefill_s=served.prefill_s,
        handoff_s=served.handoff_s,
        ttft_s=times.ttft_s,
        tpot_s=times.tpot_s,
        max_gap_s=times.max_gap_s,
        e2e_s=ended_s - job.arrival_s,
        good=None,
        num_reroutes=served.num_reroutes,
        itl_buckets=times.itl_buckets,
        traceparent=job.traceparent,
        moves=tuple(served.moves),
        line_s=relay.place.waited_s(ended_s),
        decode_s=served.decode_s,
        waited_for="" if lacks is None else lacks.value,
        api_key_name=origin.key_names.get(job.api_key_id, ""),
    )
    return judged(record, origin.slo)


class RecordLog:
    """Numbered records from 1 on, kept until acknowledged."""

    def __init__(self, max_records: int = MAX_UNACKNOWLEDGED) -> None:
        self.num_dropped = 0
        self.has_new = asyncio.Event()
        self.all_acknowledged = asyncio.Event()
        self.all_acknowledged.set()
        self._records: deque[RequestRecord] = deque()
        self._first_seq = 1  # of the oldest record kept
        self._max_records = max_records

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
        if not self._records:
            self.all_acknowledged.set()

    @property
    def num_waiting(self) -> int:
        return len(self._records)

    @property
    def waiting(self) -> tuple[int, list[RequestRecord]]:
        """All that is not acknowledged, and the number of the first."""
        return self._first_seq, list(self._records)

    def batch_from(self, seq: int) -> tuple[int, list[RequestRecord]]:
        """The next records to send, from `seq` or from the oldest kept, and the number of the first."""
        first = max(seq, self._first_seq)
        start = first - self._first_seq
        return first, list(islice(self._records, start, start + MAX_BATCH))
