"""When a request that comes now would have its first token, and whether that is too late. Pure.

    queue_s = the longest of   the level to which prompts ahead fill the prefill workers' queues, shortest first
                               (KV ahead + its own - room) / KV that comes free in a second
                               the same for decode slots
    ttft_s  = queue_s + its own uncached tokens / what one worker computes in a second

What comes free in a second is what is in use over how long one stays in use (Little's law), so it holds for all
gateways of a fleet together although each sees only its own requests end. Ahead is who stands before it in the line, at
this gateway and (by the plane's word) at the others, and who was promised a place. Rates are measured, never assumed:
where one is unknown there is no forecast, and nobody is refused by it.

Left out: requests of better turn that come later; what prefix hits and short prompts on decode workers save.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from control.routing import WorkerView
from control.types.bottleneck import Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What requests take: of the prefill workers once, of a decode worker for as long as they run."""

    prefill_tokens: float = 0.0  # uncached
    kv_tokens: float = 0.0  # prompt and all that may be generated, as it is reserved
    num_slots: float = 0.0

    def plus(self, other: Need, times: float = 1.0) -> Need:
        return Need(
            prefill_tokens=self.prefill_tokens + other.prefill_tokens * times,
            kv_tokens=self.kv_tokens + other.kv_tokens * times,
            num_slots=self.num_slots + other.num_slots * times,
        )


NOTHING: Final = Need()


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Something that is held for a while and comes free again, over all workers that decode."""

    room: float
    used: float
    held_s: float | None  # how long one is held, lately

    def wait_s(self, wanted: float) -> float | None:
        """Until so much is free. None: not known."""
        if wanted <= self.room:
            return 0.0
        if self.held_s is None or self.used <= 0:
            return None
        return (wanted - self.room) * self.held_s / self.used


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one gateway knows of the fleet's."""

    queues_s: tuple[float, ...]  # of each worker that prefills: how long what is queued there takes
    tokens_per_s: float | None  # of one of them; None: not measured yet
    kv: Store
    slots: Store | None  # None: the workers do not say how many they have


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    queue_s: float
    prefill_s: float
    cause: str  # what it waits for longest

    @property
    def lacks(self) -> Resource | None:
        """What more of would shorten its waiting; None when it need not wait."""
        return _LACKS[self.cause] if self.queue_s > 0 else None

    @property
    def ttft_s(self) -> float:
        return self.queue_s + self.prefill_s


#: A sequence leaves its slot the sooner the faster decode steps are.
_LACKS: Final = {
    "the prefill queue": Resource.PREFILL,
    "KV room": Resource.KV_ROOM,
    "decode slots": Resource.DECODE_BANDWIDTH,
}


def prefill_capacity(workers: Sequence[WorkerView]) -> tuple[tuple[float, ...], float | None]:
    """Each worker's queue in seconds, and tokens per second of one: their mean, also for one not measured yet."""
    known = [each.prefill_tokens_per_s for each in workers if each.prefill_tokens_per_s is not None]
    if not known:
        return (), None
    rate = sum(known) / len(known)
    return tuple(each.queued_prefill_tokens / (each.prefill_tokens_per_s or rate) for each in workers), rate


def filled_s(queues_s: Sequence[float], ahead_s: float) -> float:
    """How high the shortest queues stand once `ahead_s` of work was given, each piece to the shortest one."""
    ordered = sorted(queues_s)
    level_s = ordered[0]
    for count, next_s in enumerate([*ordered[1:], math.inf], 1):
        if ahead_s <= (next_s - level_s) * count:
            return level_s + ahead_s / count
        ahead_s -= (next_s - level_s) * count
        level_s = next_s
    raise AssertionError("the last level has no end")


def kv_store(workers: Sequence[WorkerView], needs_tokens: float, held_s: float | None) -> Store:
    """Room counts where the whole request fits."""
    rooms = [each.kv_total_tokens - each.kv_used_tokens for each in workers]
    used = sum(each.kv_used_tokens for each in workers)
    return Store(room=sum(room for room in rooms if room >= needs_tokens), used=used, held_s=held_s)


def slot_store(workers: Sequence[WorkerView], held_s: float | None) -> Store | None:
    free = [each.num_free_slots for each in workers if each.num_free_slots is not None]
    taken = sum(each.num_taken_slots for each in workers)
    return Store(room=sum(max(0, each) for each in free), used=taken, held_s=held_s) if free else None


def forecast(need: Need, ahead: Need, capacity: Capacity) -> Forecast | None:
    """None when nothing was measured yet of what it would wait for."""
    if not capacity.tokens_per_s:
        return None
    total = ahead.plus(need)
    waits = {
        "the prefill queue": filled_s(capacity.queues_s, ahead.prefill_tokens / capacity.tokens_per_s),
        "KV room": capacity.kv.wait_s(total.kv_tokens),
        "decode slots": None if capacity.slots is None else capacity.slots.wait_s(total.num_slots),
    }
    known = {cause: wait_s for cause, wait_s in waits.items() if wait_s is not None}
    cause = max(known, key=lambda each: known[each])
    return Forecast(
        queue_s=known[cause],
        prefill_s=need.prefill_tokens / capacity.tokens_per_s,
        cause=cause,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How late is too late for one request."""

    ttft_s: float  # its class's bound on the time to first token
    queue_s: float  # the part of it that is for waiting: the same for long prompts, else they would push short ones out
    at_share: float  # of these bounds: what is predicted above it is refused
    deadline_left_s: float | None  # until the client's own deadline, for the whole answer
    answer_s: float  # how long the answer takes after its first token, as far as that is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Lateness:
    """Which bound a request would break, and by how much."""

    excess_s: float
    reason: str


def excess_of(predicted: Forecast, limits: Limits, waited_s: float = 0.0) -> float:
    """By how much it breaks the SLO's bounds; below 0, what is left to them.

    A prompt that is late on an idle fleet too is not refused for its own length: only its waiting is bounded then.
    """
    of_queue_s = waited_s + predicted.queue_s - limits.at_share * limits.queue_s
    if predicted.prefill_s > limits.at_share * limits.ttft_s:
        return of_queue_s
    return max(of_queue_s, waited_s + predicted.ttft_s - limits.at_share * limits.ttft_s)


def lateness(predicted: Forecast, limits: Limits, waited_s: float = 0.0) -> Lateness | None:
    """None: it may wait. A deadline that not even an idle fleet could meet is not the queue's fault: it may try."""
    told = f"predicted time to first token {waited_s + predicted.ttft_s:.2f} s ({predicted.queue_s:.2f} s for "
    told += f"{predicted.cause})"
    share = "" if limits.at_share == 1 else f"{limits.at_share:g} of "
    excess_s = excess_of(predicted, limits, waited_s)
    if excess_s > 0:
        bound = f"its bound of {limits.ttft_s:.2f} s, {limits.queue_s:.2f} s of it for waiting (SLO)"
        return Lateness(excess_s=excess_s, reason=f"{told} is over {share}{bound}")
    left_s = limits.deadline_left_s
    if left_s is None:
        return None
    excess_s = predicted.ttft_s + limits.answer_s - left_s
    if excess_s > 0 and predicted.prefill_s + limits.answer_s <= left_s:
        answer = f" and {limits.answer_s:.2f} s for the answer" if limits.answer_s else ""
        return Lateness(excess_s=excess_s, reason=f"{told}{answer} is over the {left_s:.2f} s left (deadline_s)")
    return None
