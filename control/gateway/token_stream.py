"""The tokens of one answer, from the workers' side to the consumer's: each position once, in order. The base of
an attempt.

Also here, because they are seen in the tokens: how long the stream stood when it went on at another worker.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod

from control.gateway import errors
from control.gateway.errors import GatewayError
from control.gateway.fleet import Fleet
from control.gateway.job import Job, Served
from control.gateway.move import Move
from control.gateway.timeline import Timeline
from control.types.requests import MoveKind, RequestMove
from control.types.workers import LossCause
from engine.types import FinishReason


class TokenStream(ABC):
    """Whoever produces calls `_accept` and `_notify`; one consumer awaits `wait` and then `take`s tokens."""

    def __init__(self, job: Job, fleet: Fleet) -> None:
        self.job = job
        self.tokens: list[int] = []
        self.served = Served(simulated=fleet.simulated)
        self.timeline = Timeline(job.arrival_s)
        self.finish: FinishReason | None = None
        self.error: GatewayError | None = None
        self._fleet = fleet
        self._num_taken = 0
        self._waiter: asyncio.Future[None] | None = None
        self._wakes_on_tokens = True
        self._progress_s = job.arrival_s  # when a worker was last asked, or last gave tokens

    @property
    def is_done(self) -> bool:
        return self.finish is not None or self.error is not None

    @property
    def num_known(self) -> int:
        """Tokens that a worker must have KV of: prompt and all that was taken."""
        return len(self.job.prompt) + len(self.tokens)

    @property
    def rest_tokens(self) -> int:
        """How many may come yet, at most."""
        return self.job.sampling.max_tokens - len(self.tokens)

    @property
    def wire_id(self) -> str:
        return self.job.wire_id

    async def wait(self, *, until_done: bool = False) -> None:
        """Until there are tokens to take (or all of them, with `until_done`), or the request has ended."""
        self._wakes_on_tokens = not until_done
        if not self.is_done and (until_done or self._num_taken == len(self.tokens)):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def take(self) -> list[int]:
        """Tokens since the last time, in order."""
        new = self.tokens[self._num_taken :]
        self._num_taken = len(self.tokens)
        return new

    def fail(self, error: GatewayError) -> None:
        """End with an error, unless it has ended already."""
        if not self.is_done:
            self._leave()
            self.error = error
            self._notify()

    def stop(self, finish: FinishReason) -> None:
        """The consumer wants no more (a stop string, or the client went away): free what the workers hold."""
        if not self.is_done:
            self._leave()
            self.finish = finish
            self._notify()

    @abstractmethod
    def _leave(self) -> None:
        """Give up all that workers hold."""

    def _accept(self, position: int, tokens: list[int]) -> None:
        """Take the positions that are new. A gap would lose a token, so it is an error of ours."""
        known = self.num_known - position
        if known < 0:
            self.fail(errors.internal(f"a worker skipped {-known} tokens before position {position}", "token_gap"))
            return
        new = tokens[known:] if known else tokens
        if new:
            self.tokens += new
            self._progress_s = time.monotonic()
            if self.served.is_moving:
                self._note_resumed()
            self.timeline.add(len(new), self._progress_s)

    def _notify(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self._wakes_on_tokens or self.is_done):
            waiter.set_result(None)

    def _note_move(
        self,
        kind: MoveKind,
        from_worker: str,
        reason: str,
        num_bytes: int,
        begun_s: float,
        notice_s: float | None = None,
        predicted_stall_s: float | None = None,
        cause: LossCause | None = None,
    ) -> None:
        """It leaves this worker; the rest of the story is known with its next token."""
        move = RequestMove(
            kind=kind,
            from_worker=from_worker,
            to_worker="",
            at_s=begun_s - self.job.arrival_s,
            num_bytes=num_bytes,
            notice_s=notice_s,
            reason=reason,
            predicted_stall_s=predicted_stall_s,
            cause=cause,
        )
        self.served.moves_to_next(move)
        self._fleet.mover.left(self.wire_id, move)

    def _note_migration(self, move: Move) -> None:
        of = move.estimate
        self._note_move("migration", move.source.worker_id, of.reason, move.num_bytes, move.begun_s,
                        predicted_stall_s=of.stall_s)  # fmt: skip

    def _note_resumed(self) -> None:
        """The first token after a move; one that had none before was not stalled, its client waits from arrival on."""
        has_begun = self.timeline.first_s is not None
        mover, rest_bytes = self._fleet.mover, self.served.rest_bytes
        move = self.served.resumed(self._progress_s - self.timeline.last_s if has_begun else None)
        mover.resumed(move, rest_bytes)
        link = self._fleet.links.get(move.to_worker)
        if move.kind == "migration" and move.stall_s is not None and link is not None and link.step_s is not None:
            mover.note_stop(move.stall_s, link.step_s)
        self._fleet.recovery.leave(self)
