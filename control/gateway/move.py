"""One running request on its way from the worker that decodes it to another one.

Both workers hold it at once: one attempt decodes on at the source, a later one is reserved at the target. Until the
source has yielded, nothing that goes wrong here touches the request: the move is given up and the source goes on.

    Submit(decode) -> Reserved -> Offer -> Offered -> Prefetch -> Prefetched -> Yield -> Yielded -> Pull
      to target                 to source            to target                to source            to target

Not here: whether to move and where to (`control.gateway.mover`), and what follows the Pull: that is the relay's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from control.gateway.move_estimate import MoveEstimate
from control.gateway.workers import WorkerLink
from engine.types import WorkKind
from engine.wire import (
    Cancel,
    Lease,
    Offer,
    Offered,
    Prefetch,
    Prefetched,
    Prefilled,
    Rejected,
    ReleaseLease,
    Reserved,
    Submit,
    TokenEvent,
    Yield,
    Yielded,
)


class Movable(Protocol):
    """A request that decodes on one worker, as a move sees it."""

    attempt: int
    tokens: list[int]
    move: Move | None
    move_tries: int  # moves of it that were given up
    avoids: set[str]  # workers that could not take it just now

    @property
    def wire_id(self) -> str: ...
    @property
    def num_known(self) -> int: ...
    @property
    def rest_tokens(self) -> int: ...
    def submission(self, attempt: int, kind: WorkKind, tokens: list[int]) -> Submit: ...
    def next_attempt(self) -> int: ...
    def go_on_at(self, move: Move, yielded: Yielded, lease: Lease) -> None: ...
    def recompute_elsewhere(self, link: WorkerLink, reason: str) -> None: ...


class Move:
    """The target's answers come here (it is a `Leg` there); the source's come through the relay, to `on_source`."""

    def __init__(
        self,
        relay: Movable,
        source: WorkerLink,
        target: WorkerLink,
        estimate: MoveEstimate,
        on_end: Callable[[Move, str], None],
    ) -> None:
        """`on_end(move, problem)` is called once; an empty problem means that the target has been told to pull."""
        self.relay = relay
        self.source = source
        self.target = target
        self.estimate = estimate
        self.attempt = relay.next_attempt()
        self.begun_s = time.monotonic()
        self.num_bytes = 0
        self.copied_tokens = 0  # that the target holds already
        self.copy_s = 0.0
        self.num_reserved = relay.num_known - 1  # tokens that the target was told of when it reserved
        self._on_end = on_end
        self._cached_tokens = 0
        self._lease_id = ""
        self._is_over = False

    def rest_bytes(self, lease: Lease) -> int:
        """What the target has to copy yet of all that its source has yielded."""
        there = max(self.copied_tokens, self._cached_tokens) // lease.layout.block_tokens
        return max(0, len(lease.blocks) - there) * lease.layout.block_bytes

    def start(self, kv_tokens: int) -> None:
        """Ask the target for room. The last token is left out: it is the first that the target will feed."""
        relay = self.relay
        relay.move = self
        message = relay.submission(self.attempt, WorkKind.DECODE, relay.tokens[:-1])
        if not self.target.submit(self, message, prefill_tokens=0, kv_tokens=kv_tokens):
            self._end(f"{self.target.worker_id} is gone")

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.begun_s

    # --- the target's answers ------------------------------------------------------------------------------------

    def on_reserved(self, link: WorkerLink, message: Reserved) -> None:
        self._cached_tokens = message.num_cached
        self.source.send(Offer(self.relay.wire_id, self.relay.attempt))

    def on_rejected(self, link: WorkerLink, message: Rejected) -> None:
        link.forget(self.relay.wire_id)
        self._end(f"{link.worker_id} refused it: {message.code}: {message.detail}")

    def on_moving(self, link: WorkerLink, message: Any) -> None:
        if not isinstance(message, Prefetched):
            return
        if message.error:
            self.abandon(f"the copy to {link.worker_id} failed: {message.error}")
            return
        self._lease_id = ""  # the copy's acknowledgement has released it
        self.num_bytes, self.copied_tokens, self.copy_s = message.num_bytes, message.num_tokens, message.copy_s
        self.source.send(Yield(self.relay.wire_id, self.relay.attempt))

    def on_tokens(self, link: WorkerLink, event: TokenEvent) -> None:
        if event.finish is not None:
            link.forget(self.relay.wire_id)
            self._end(f"{link.worker_id} ended it: {event.error or event.finish}")

    def on_lost(self, link: WorkerLink, reason: str) -> None:
        self._end(f"{link.worker_id} was lost: {reason}")

    def on_prefilled(self, link: WorkerLink, message: Prefilled) -> None:
        """Nobody asked it to prefill."""

    def waits_for(self, link: WorkerLink, since_s: float) -> bool:
        return False

    def movable(self, link: WorkerLink) -> None:
        return None

    def leave_reservation(self, link: WorkerLink) -> None:
        """The target drains: the move goes on, and the next one begins there with its first token."""

    # --- the source's answers ------------------------------------------------------------------------------------

    def on_source(self, message: Any) -> None:
        relay = self.relay
        if isinstance(message, Offered):
            if message.reason:
                self.abandon(f"{self.source.worker_id} does not offer it: {message.reason}")
            elif message.lease is None:
                self.source.send(Yield(relay.wire_id, relay.attempt))
            else:
                self._lease_id = message.lease.lease_id
                self.target.send(Prefetch(relay.wire_id, self.attempt, message.lease))
        elif isinstance(message, Yielded):
            if message.lease is None:
                self.abandon(f"{self.source.worker_id} does not yield it: {message.reason}")
            else:
                self._is_over = True
                relay.move = None
                relay.go_on_at(self, message, message.lease)
                self._on_end(self, "")

    # --- the end -------------------------------------------------------------------------------------------------

    def abandon(self, problem: str) -> None:
        """Free what the target holds; the source goes on, or is gone."""
        if not self._is_over:
            wire_id = self.relay.wire_id
            self.target.send(Cancel(wire_id, self.attempt))
            self.target.forget(wire_id)
            self._end(problem)

    def _end(self, problem: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self.relay.move = None
        if self._lease_id:
            self.source.send(ReleaseLease(self._lease_id))
        self._on_end(self, problem)
