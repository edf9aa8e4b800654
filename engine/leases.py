"""KV that a worker keeps for somebody to fetch: who holds which blocks, and until when. No I/O.

Decided here: when a lease is over. Not decided here: copying (`engine.handoff`) and freeing (`engine.core`, which owns
the pool). A lease owns its blocks from `grant` until `take` or `take_due` returns it; the taker must release them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeldLease:
    """Blocks that cover positions [0, num_tokens) of one request, kept until `expires_s`."""

    lease_id: str
    req_id: str
    attempt: int
    blocks: list[int]
    num_tokens: int
    expires_s: float


class LeaseBook:
    """All leases of one worker. All last `lease_s`, so the order of granting is the order of expiry."""

    __slots__ = ("_by_key", "_held", "_next", "_prefix", "lease_s", "num_expired")

    def __init__(self, prefix: str, lease_s: float) -> None:
        assert lease_s > 0, f"lease_s is {lease_s}, must be above 0"
        self.lease_s = lease_s
        self.num_expired = 0
        self._prefix = prefix
        self._next = 0
        self._held: dict[str, HeldLease] = {}
        self._by_key: dict[tuple[str, int], str] = {}

    def __len__(self) -> int:
        return len(self._held)

    def grant(self, req_id: str, attempt: int, blocks: list[int], num_tokens: int, now_s: float) -> HeldLease:
        """A new lease, which owns the blocks: taken over from their sequence, or shared with it while it runs on.

        `find` finds the newest one of a request."""
        self._next += 1
        lease_id = f"{self._prefix}-{self._next}"
        lease = HeldLease(lease_id, req_id, attempt, blocks, num_tokens, now_s + self.lease_s)
        self._held[lease_id] = lease
        self._by_key[req_id, attempt] = lease_id
        return lease

    def get(self, lease_id: str) -> HeldLease | None:
        return self._held.get(lease_id)

    def find(self, req_id: str, attempt: int) -> HeldLease | None:
        return self._held.get(self._by_key.get((req_id, attempt), ""))

    def take(self, lease_id: str) -> HeldLease | None:
        """End a lease; None when it is over already. The caller now owns its blocks."""
        lease = self._held.pop(lease_id, None)
        if lease is not None and self._by_key.get((lease.req_id, lease.attempt)) == lease_id:
            del self._by_key[lease.req_id, lease.attempt]
        return lease

    def take_due(self, now_s: float) -> list[HeldLease]:
        """End every lease whose time is over. The caller now owns their blocks."""
        due: list[HeldLease] = []
        for lease in self._held.values():
            if lease.expires_s > now_s:
                break
            due.append(lease)
        for lease in due:
            self.take(lease.lease_id)
        self.num_expired += len(due)
        return due

    @property
    def next_expiry_s(self) -> float | None:
        first = next(iter(self._held.values()), None)
        return None if first is None else first.expires_s
