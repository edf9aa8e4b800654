"""How full one worker is, between two of its messages: what it said last, and what was sent there since.

Decided here: when a submission is counted by the worker itself and when by nobody any more, how fast it computes
prompts, and when enough of them are queued there. Not here: which worker a request gets (`control.routing`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from control.gateway.rates import Rate
from control.routing import WorkerView
from control.types.routing import WorkerRoute
from engine.types import Load

#: A load that arrives this long after a submission has surely counted it.
REFLECTED_S: Final = 0.02


class _Asked(NamedTuple):
    at_s: float
    prefill_tokens: int
    kv_tokens: int
    num_slots: int


class Pressure:
    """One worker's load. `max_backlog_s`: prompts for so long may be queued there; None: any number."""

    def __init__(self, max_backlog_s: float | None = None) -> None:
        self.load = Load()
        self._max_backlog_s = max_backlog_s
        self._prefill = Rate()
        self._pending: dict[str, _Asked] = {}  # by request, the oldest first
        self._pending_prefill = 0
        self._pending_kv = 0
        self._pending_slots = 0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """While it computes prompts; on a mixed worker with the decode steps between them."""
        return self._prefill.per_s

    def restart(self, load: Load) -> None:
        """Another connection, perhaps another process: what was sent before is not there."""
        self._pending.clear()
        self._pending_prefill = self._pending_kv = self._pending_slots = 0
        self.load = load

    def asked(self, req_id: str, now_s: float, *, prefill_tokens: int, kv_tokens: int, num_slots: int) -> None:
        """Work was sent there."""
        self.ended(req_id)
        self._pending[req_id] = _Asked(now_s, prefill_tokens, kv_tokens, num_slots)
        self._pending_prefill += prefill_tokens
        self._pending_kv += kv_tokens
        self._pending_slots += num_slots

    def ended(self, req_id: str) -> None:
        """It is done there: what the worker says from now on counts it no more, however soon that is."""
        asked = self._pending.pop(req_id, None)
        if asked is not None:
            self._pending_prefill -= asked.prefill_tokens
            self._pending_kv -= asked.kv_tokens
            self._pending_slots -= asked.num_slots

    def told(self, load: Load, now_s: float) -> None:
        """The worker says how full it is."""
        computed = load.prefill_tokens - self.load.prefill_tokens
        if computed > 0:
            self._prefill = self._prefill.after(computed, load.prefill_steps_s - self.load.prefill_steps_s)
        self.load = load
        while self._pending:
            oldest, asked = next(iter(self._pending.items()))
            if asked.at_s >= now_s - REFLECTED_S:
                break
            self.ended(oldest)

    def view(self, row: WorkerRoute, slot: int, block_tokens: int) -> WorkerView:
        load, rate = self.load, self.prefill_tokens_per_s
        queued = load.queued_prefill_tokens + self._pending_prefill
        taken = load.num_decoding + self._pending_slots
        has_time = self._max_backlog_s is None or rate is None or queued < rate * self._max_backlog_s
        return WorkerView(
            row.worker_id,
            slot,
            row.weight,
            queued,
            (load.kv_blocks_held + load.kv_blocks_reserved) * block_tokens + self._pending_kv,
            load.kv_blocks_total * block_tokens,
            load.max_batch - taken if load.max_batch and self._max_backlog_s is not None else None,
            taken,
            rate,
            not has_time,
        )
