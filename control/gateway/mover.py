"""Which running requests leave a worker that drains or flips away from decode, when, and where to.

Decided here: the order (longest rest first), how many at once per source, the target, and when a move that stands still
is given up. Not here: whether moving pays (`control.gateway.move_estimate`) and its steps (`control.gateway.move`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from control.gateway.departures import Departures
from control.gateway.move import Movable, Move
from control.gateway.move_estimate import (
    STALL_STEPS,
    MoveChoice,
    MoveEstimate,
    MoveFacts,
    choose_target,
    estimate,
    leaving_s,
    queued_ahead,
)
from control.gateway.workers import WorkerLink
from control.routing import FleetView
from control.types.requests import MoveKind, RequestMove
from engine.histogram import bucket_of
from engine.types import Role, WorkerState

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

    def stalled(self, move: RequestMove, rest_bytes: int) -> None:
        self.num_bytes += rest_bytes
        if move.stall_s is not None:
            self.stall_buckets[move.kind, bucket_of(move.stall_s)] += 1


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker's way out of decode, as it was estimated when it began."""

    began_s: float
    num_requests: int
    predicted_s: float | None


class Mover:
    """All moves of one gateway."""

    def __init__(self, limits: MoveLimits, view: Callable[[], FleetView], link_of: Callable[[str], WorkerLink]) -> None:
        self.counts = MoveCounts()
        self.departures = Departures()
        self.handoff_bytes_per_s: float | None = None
        self.prefill_tokens_per_s: float | None = None
        self.stop_s: float | None = None
        self._limits = limits
        self._view = view
        self._link_of = link_of
        self._moves: dict[WorkerLink, set[Move]] = {}
        self._leaving: dict[WorkerLink, Leaving] = {}

    # --- what things cost ------------------------------------------------------------------------------------------

    def note_prefill(self, num_tokens: int, seconds: float) -> None:
        if num_tokens > 0 and seconds > 0:
            self.prefill_tokens_per_s = _mean(self.prefill_tokens_per_s, num_tokens / seconds)

    def _note_copy(self, num_bytes: int, seconds: float) -> None:
        if num_bytes > 0 and seconds > 0:
            self.handoff_bytes_per_s = _mean(self.handoff_bytes_per_s, num_bytes / seconds)

    def note_stop(self, stall_s: float, target_step_s: float) -> None:
        """A moved stream stood for so long."""
        self.stop_s = _mean(self.stop_s, max(0.0, stall_s - STALL_STEPS * target_step_s))

    # --- what came of it --------------------------------------------------------------------------------------------

    def left(self, wire_id: str, move: RequestMove) -> None:
        """A request has left this worker; its next token is to come."""
        self.counts.began(move)
        self.departures.left(wire_id, move)

    def resumed(self, move: RequestMove, rest_bytes: int) -> None:
        """Its next token has come, from another worker."""
        self.counts.stalled(move, rest_bytes)
        self.departures.resumed(move, rest_bytes)

    # --- who goes now ----------------------------------------------------------------------------------------------

    def go_on(self, source: WorkerLink) -> None:
        """Begin as many moves away from this worker as may run at once, if it leaves decode."""
        if not source.leaves_decode:
            self._has_left(source)
        if not source.leaves_decode or not source.is_connected:
            self.departures.stays(source.worker_id)
            return
        if self._limits.is_on:
            for leg in list(source.legs.values()):
                leg.leave_reservation(source)
        found = [leg.movable(source) for leg in list(source.legs.values())]
        waiting = sorted([each for each in found if each is not None], key=lambda each: -each.rest_tokens)
        self.departures.there(source.worker_id, waiting)
        if not self._limits.is_on:
            return
        running = self._moves.setdefault(source, set())
        if source not in self._leaving:
            self._leaving[source] = self._foresee(source, waiting)
        for relay in waiting:
            if len(running) >= self._limits.per_worker:
                break
            self._begin(relay, source, running)
        if not running:
            del self._moves[source]

    def _begin(self, relay: Movable, source: WorkerLink, running: set[Move]) -> None:
        if relay.move is not None or relay.move_tries >= MAX_TRIES:
            return
        target, decision = self._estimate(relay, source)
        if target is None or decision.choice is MoveChoice.FINISH:
            return
        if decision.choice is MoveChoice.RECOMPUTE:
            relay.recompute_elsewhere(source, decision.reason)
            return
        move = Move(relay, source, target, decision, self._ended)
        running.add(move)
        move.start(relay.num_known + relay.rest_tokens)

    def _estimate(self, relay: Movable, source: WorkerLink) -> tuple[WorkerLink | None, MoveEstimate]:
        """Where it would go, and what is best for it."""
        view = self._view()
        needs = relay.num_known + relay.rest_tokens
        chosen = choose_target((*view.decode, *view.mixed), needs, relay.avoids | {source.worker_id})
        target = None if chosen is None else self._link_of(chosen)
        return target, estimate(
            MoveFacts(
                rest_tokens=relay.rest_tokens,
                kv_tokens=relay.num_known - 1,
                kv_bytes=round((relay.num_known - 1) * source.kv_token_bytes),
                step_s=source.step_s,
                target_step_s=source.step_s if target is None or target.step_s is None else target.step_s,
                stop_s=self.stop_s,
                handoff_bytes_per_s=self.handoff_bytes_per_s,
                prefill_tokens_per_s=self.prefill_tokens_per_s,
                queued_prefill_tokens=queued_ahead(view),
                has_target=target is not None,
                is_moving_known=FEATURE in source.features and (target is None or FEATURE in target.features),
            )
        )

    def _foresee(self, source: WorkerLink, waiting: list[Movable]) -> Leaving:
        estimates = [self._estimate(each, source)[1] for each in waiting]
        return Leaving(time.monotonic(), len(waiting), leaving_s(estimates, self._limits.per_worker))

    def _has_left(self, source: WorkerLink) -> None:
        leaving = self._leaving.pop(source, None)
        is_gone = source.state is WorkerState.DRAINED or source.role is Role.PREFILL
        if leaving is not None and is_gone:  # else it was told to stay after all
            predicted = "unknown" if leaving.predicted_s is None else f"{leaving.predicted_s:.3f} s"
            took_s = time.monotonic() - leaving.began_s
            log.info(
                "%s has left decode: %d requests, predicted %s, took %.3f s",
                source.worker_id, leaving.num_requests, predicted, took_s,
            )  # fmt: skip

    def _ended(self, move: Move, problem: str) -> None:
        self._note_copy(move.num_bytes, move.copy_s)
        self._moves.get(move.source, set()).discard(move)
        if problem:
            self.counts.num_given_up += 1
            self.departures.given_up(move.source.worker_id)
            move.relay.avoids.add(move.target.worker_id)
            move.relay.move_tries += 1
            log.info("a move from %s was given up: %s", move.source.worker_id, problem)
        asyncio.get_running_loop().call_soon(self.go_on, move.source)

    def look(self, links: list[WorkerLink]) -> None:
        """Called now and then: room may have come, and a move may stand still."""
        self._leaving = {link: each for link, each in self._leaving.items() if link.is_connected}
        self._moves = {link: moves for link, moves in self._moves.items() if moves}
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
