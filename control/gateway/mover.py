"""Which running requests leave a worker that drains or flips away from decode, when, and where to.

Decided here: the order (longest rest first), how many at once per source, the target, and when a move that stands still
is given up. Not here: whether moving pays (`control.gateway.move_estimate`) and its steps (`control.gateway.move`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from control.gateway.move import Movable, Move
from control.gateway.move_estimate import MoveChoice, MoveFacts, choose_target, estimate, queued_ahead
from control.gateway.workers import WorkerLink
from control.routing import FleetView
from control.types import MoveKind, RequestMove
from engine.histogram import bucket_of

log = logging.getLogger(__name__)

FEATURE: Final = "migrate"
#: A move that has not handed over by then is given up: its source goes on.
STUCK_S: Final = 10.0
#: Moves of one request that may fail before it is left to finish where it is.
MAX_TRIES: Final = 8
#: How much of a new measurement counts.
_GAIN: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLimits:
    """From the settings."""

    is_on: bool = True
    per_worker: int = 8  # that leave one worker at the same time


@dataclass(slots=True)
class MoveCounts:
    """Since the gateway started."""

    num_by_kind: Counter[MoveKind] = field(default_factory=Counter)
    num_given_up: int = 0
    num_bytes: int = 0
    stall_buckets: Counter[tuple[MoveKind, int]] = field(default_factory=Counter)  # engine.histogram bucket -> moves
    notice_buckets: Counter[int] = field(default_factory=Counter)  # of failovers

    def began(self, move: RequestMove) -> None:
        self.num_by_kind[move.kind] += 1
        self.num_bytes += move.num_bytes
        if move.notice_s is not None:
            self.notice_buckets[bucket_of(move.notice_s)] += 1

    def stalled(self, move: RequestMove) -> None:
        if move.stall_s is not None:
            self.stall_buckets[move.kind, bucket_of(move.stall_s)] += 1


class Mover:
    """All moves of one gateway."""

    def __init__(self, limits: MoveLimits, view: Callable[[], FleetView], link_of: Callable[[str], WorkerLink]) -> None:
        self.counts = MoveCounts()
        self.handoff_bytes_per_s: float | None = None
        self.prefill_tokens_per_s: float | None = None
        self._limits = limits
        self._view = view
        self._link_of = link_of
        self._moves: dict[WorkerLink, set[Move]] = {}

    # --- what things cost ------------------------------------------------------------------------------------------

    def note_prefill(self, num_tokens: int, seconds: float) -> None:
        if num_tokens > 0 and seconds > 0:
            self.prefill_tokens_per_s = _mean(self.prefill_tokens_per_s, num_tokens / seconds)

    def _note_copy(self, num_bytes: int, seconds: float) -> None:
        if num_bytes > 0 and seconds > 0:
            self.handoff_bytes_per_s = _mean(self.handoff_bytes_per_s, num_bytes / seconds)

    # --- who goes now ----------------------------------------------------------------------------------------------

    def go_on(self, source: WorkerLink) -> None:
        """Begin as many moves away from this worker as may run at once, if it leaves decode."""
        if not source.leaves_decode or not self._limits.is_on or not source.is_connected:
            return
        for leg in list(source.legs.values()):
            leg.leave_reservation(source)
        running = self._moves.setdefault(source, set())
        found = [leg.movable(source) for leg in list(source.legs.values())]
        waiting = sorted([each for each in found if each is not None], key=lambda each: -each.rest_tokens)
        for relay in waiting:
            if len(running) >= self._limits.per_worker:
                break
            self._begin(relay, source, running)
        if not running:
            del self._moves[source]

    def _begin(self, relay: Movable, source: WorkerLink, running: set[Move]) -> None:
        if relay.move is not None or relay.move_tries >= MAX_TRIES:
            return
        needs = relay.num_known + relay.rest_tokens
        view = self._view()
        chosen = choose_target((*view.decode, *view.mixed), needs, relay.avoids | {source.worker_id})
        target = None if chosen is None else self._link_of(chosen)
        decision = estimate(
            MoveFacts(
                rest_tokens=relay.rest_tokens,
                kv_tokens=relay.num_known - 1,
                kv_bytes=round((relay.num_known - 1) * source.kv_token_bytes),
                step_s=source.step_s,
                handoff_bytes_per_s=self.handoff_bytes_per_s,
                prefill_tokens_per_s=self.prefill_tokens_per_s,
                queued_prefill_tokens=queued_ahead(view),
                has_target=target is not None,
                is_moving_known=FEATURE in source.features and (target is None or FEATURE in target.features),
            )
        )
        if target is None or decision.choice is MoveChoice.FINISH:
            return
        if decision.choice is MoveChoice.RECOMPUTE:
            relay.recompute_elsewhere(source, decision.reason)
            return
        move = Move(relay, source, target, decision.reason, self._ended)
        running.add(move)
        move.start(needs)

    def _ended(self, move: Move, problem: str) -> None:
        self._note_copy(move.num_bytes, move.copy_s)
        self._moves.get(move.source, set()).discard(move)
        if problem:
            self.counts.num_given_up += 1
            move.relay.avoids.add(move.target.worker_id)
            move.relay.move_tries += 1
            log.info("a move from %s was given up: %s", move.source.worker_id, problem)
        asyncio.get_running_loop().call_soon(self.go_on, move.source)

    def look(self, links: list[WorkerLink]) -> None:
        """Called now and then: room may have come, and a move may stand still."""
        for moves in list(self._moves.values()):
            for move in [each for each in moves if each.age_s >= STUCK_S]:
                move.abandon(f"not handed over within {STUCK_S:g} s")
        for link in links:
            if link.leaves_decode:
                for leg in link.legs.values():
                    relay = leg.movable(link)
                    if relay is not None:
                        relay.avoids.clear()
                self.go_on(link)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _GAIN * (new - old)
