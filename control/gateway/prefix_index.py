"""Which worker holds which block of a prompt's KV, as told by the workers' cache deltas.

One mapping for all workers, block hash -> bits of the workers, so that one walk over a prompt answers for the fleet.
"""

from __future__ import annotations

from engine.wire import CacheDelta


class PrefixIndex:
    """`holders[hash]` has bit `slot` set when that worker holds the block."""

    __slots__ = ("_by_slot", "holders")

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self._by_slot: dict[int, set[int]] = {}

    def apply(self, slot: int, delta: CacheDelta) -> None:
        if delta.reset:
            self.forget(slot)
        held = self._by_slot.setdefault(slot, set())
        for block_hash in delta.removed:
            if block_hash in held:
                held.discard(block_hash)
                self._clear(block_hash, slot)
        bit = 1 << slot
        for block_hash in delta.added:
            held.add(block_hash)
            self.holders[block_hash] = self.holders.get(block_hash, 0) | bit

    def forget(self, slot: int) -> None:
        """The worker is gone, or starts its index anew."""
        for block_hash in self._by_slot.pop(slot, ()):
            self._clear(block_hash, slot)

    def _clear(self, block_hash: int, slot: int) -> None:
        left = self.holders[block_hash] & ~(1 << slot)
        if left:
            self.holders[block_hash] = left
        else:
            del self.holders[block_hash]
