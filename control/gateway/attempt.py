"""What one attempt of a request holds on workers: prefill, decode, a lease; and how all of it is given up.

The relay's base, which decides where an attempt goes and what the answers mean. What it holds is in one place here, so
that leaving it forgets nothing.
"""

from __future__ import annotations

from control.gateway.fleet import Fleet
from control.gateway.job import Job
from control.gateway.losses import Losses
from control.gateway.move import Move
from control.gateway.token_stream import TokenStream
from control.gateway.workers import WorkerLink
from engine.types import WorkKind
from engine.wire import Cancel, Prefilled, ReleaseLease, Submit


class Attempt(TokenStream):
    """One after the other: `attempt` is the number of the present one, under which workers know it."""

    def __init__(self, job: Job, fleet: Fleet) -> None:
        super().__init__(job, fleet)
        self.attempt = 0
        self._num_attempts = 0
        self._prefill: WorkerLink | None = None  # has work of this attempt, until it is prefilled
        self._decode: WorkerLink | None = None  # has work of this attempt; the only one for a local attempt
        self._lease: tuple[WorkerLink, str] | None = None  # from Prefilled until the decode worker shows it has the KV
        self._is_reserved = False
        self._is_prefill_asked = False
        self._prefilled: Prefilled | None = None  # waits for a reservation
        self._is_handing_over = False
        self._is_decoding = False  # the decode worker has given tokens of this attempt
        self._losses = Losses()
        self.move: Move | None = None

    def next_attempt(self) -> int:
        """No two submissions of a request have the same number, also when one of them came to nothing."""
        self._num_attempts += 1
        return self._num_attempts

    def submission(self, attempt: int, kind: WorkKind, tokens: list[int]) -> Submit:
        table = self._fleet.table
        return self.job.submission(attempt, kind, tokens, table.fence if table else 0)

    def waits_for(self, link: WorkerLink, since_s: float) -> bool:
        """Past its first token, and nothing has come of it since `since_s`, where this worker's turn is."""
        turn = self._prefill if self._prefill is not None and self._is_prefill_asked else self._decode
        return turn is link and bool(self.tokens) and self._progress_s <= since_s

    def _leave(self) -> None:
        """Give up all that this attempt holds on workers."""
        wire_id = self.job.wire_id
        if self.move is not None:
            self.move.abandon("the request has left its worker")
        for link in (self._decode, self._prefill):
            if link is not None:
                link.send(Cancel(wire_id, self.attempt))
                link.forget(wire_id)
        self._decode = self._prefill = None
        if self._lease is not None:
            link, lease_id = self._lease
            link.send(ReleaseLease(lease_id))
            self._lease = None
        self._is_reserved = self._is_prefill_asked = self._is_handing_over = self._is_decoding = False
        self._prefilled = None
