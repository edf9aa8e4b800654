"""What admission knows of one request: what it will take, its place in the order, and what it was charged for."""

from __future__ import annotations

from dataclasses import dataclass

from control.gateway.batch_room import BatchRoom
from control.gateway.fair_share import FairShare
from control.gateway.forecast import Need
from control.gateway.job import Job
from control.gateway.turns import Turn, turn_of
from control.gateway.urgency import Urgency, urgency_of
from control.types.bottleneck import Resource


@dataclass(slots=True)
class Standing:
    """`since_s` is its arrival, or that of its first attempt when it was told to come back, and did."""

    need: Need
    priority: int
    api_key_id: str
    since_s: float
    start_tag: float = 0.0  # its API key's virtual time when it came
    charged_s: float = 0.0  # device-seconds, to its API key
    began_s: float | None = None  # when it first went to a worker
    is_promised: bool = False
    waits_for: Resource | None = None  # what it waits for in the line, as was seen last

    @property
    def is_batch(self) -> bool:
        return urgency_of(self.priority) is Urgency.BATCH

    def turn(self, *, has_begun: bool) -> Turn:
        return turn_of(has_begun=has_begun, priority=self.priority, start_tag=self.start_tag, arrival_s=self.since_s)

    def begin(self, now_s: float, shares: FairShare, batch: BatchRoom) -> None:
        """It goes to a worker; only the first time counts."""
        if self.began_s is None:
            self.began_s = now_s
            shares.serve(self.start_tag)
            if self.is_batch:
                batch.take(self.need)


def standing_of(job: Job) -> Standing:
    """Before anything is known of what is cached."""
    size = len(job.prompt)
    need = Need(prefill_tokens=size, kv_tokens=size + job.sampling.max_tokens, num_slots=1)
    return Standing(need, job.priority, job.api_key_id, job.arrival_s)
