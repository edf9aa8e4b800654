"""What planning needs to know about a fleet at one instant, as plain values. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from control.types.workers import Role, WorkerState

#: The roles that serve; workers of one of them are a pool.
POOLS: tuple[Role, ...] = (Role.PREFILL, Role.DECODE, Role.MIXED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an action is not taken; `field`, `value` and `bound` where it was input."""

    detail: str
    field: str | None = None
    value: Any = None
    bound: str | None = None
    status: int = 422


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """What planning needs to know about one worker that was seen."""

    worker_id: str
    epoch: int
    role: Role
    state: WorkerState
    alive: bool = True
    num_running: int = 0
    num_waiting: int = 0
    num_leased: int = 0
    queued_prefill_tokens: int = 0
    problem: str = ""
    fence: int | None = None  # of the newest order it took; None is unknown
    is_stuck: bool = False  # its process is stopped, or its step does not end

    @property
    def num_work(self) -> int:
        """Requests that this worker holds in any stage."""
        return self.num_running + self.num_waiting + self.num_leased

    @property
    def usable(self) -> bool:
        return self.alive and self.state not in (WorkerState.FAILED, WorkerState.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """A pool of somebody else's fleet that has a size and no fixed workers. `target` None: nobody has said a size."""

    target: int | None
    num_ready: int
    num_other: int = 0  # starting, stopping
    rival: str = ""  # who else sets its size; "" when nobody is known to
    set_by: str = ""  # who set `target`, where the system says so and it was not us


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFacts:
    """What planning needs to know about the fleet now. `gone`: slots known to hold no worker, with the reason."""

    workers: Mapping[str, WorkerFacts] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)
    listed: Mapping[str, Role] = field(default_factory=dict)  # of somebody else's: the roles in which they are listed
    can: frozenset[str] = frozenset({"flip", "resize", "drain", "route"})
    refusals: Mapping[str, str] = field(default_factory=dict)  # why a capability is not in `can`
    pools: Mapping[Role, PoolFacts] = field(default_factory=dict)
    max_pool: int = 0  # bound of their sizes
    takes_back: bool = False  # a change of roles that has failed is undone by the plane
    sized_by: str = ""  # what keeps the number of workers of a fleet whose roles are ours; "": nothing by itself
    yields: bool = False  # somebody else runs it: nothing is ordered but while a command is under way
    tpot_s: float | None = None
    expected_output_tokens: int = 128
    prefill_tokens_per_s: float | None = None  # of one worker
    pool_share: Mapping[Role, float] = field(default_factory=dict)  # in use, 0..1: time in prefill, KV elsewhere

    def work(self, worker_id: str) -> int:
        return self.workers[worker_id].num_work if worker_id in self.workers else 0

    def usable(self, worker_id: str) -> bool:
        """Not known to be dead: a worker that is still to come counts."""
        if worker_id in self.workers:
            return self.workers[worker_id].usable
        return worker_id not in self.gone


def natural(worker_id: str) -> tuple[str, int, str]:
    """Sort key under which w2 comes before w10."""
    head = worker_id.rstrip("0123456789")
    digits = worker_id[len(head) :]
    return head, int(digits) if digits else -1, worker_id
