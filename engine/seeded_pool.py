"""The KV pool of a paced worker: 8 bytes a token, real shared memory, so that handoffs move real bytes and are checked.

Position p of a sequence holds `token | p << 32`: what a real pool derives from token and position, this one stores. A
block that was copied from the wrong place, too late or not at all is therefore seen at the end of its handoff.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

from engine.pool_file import PoolFile
from engine.types import StepPlan

WORD_BYTES = 8


class SeededPool(PoolFile):
    """A pool file of 64-bit words, one a token."""

    def __init__(self, path: Path, block_bytes: int, num_blocks: int) -> None:
        super().__init__(path, block_bytes, num_blocks)
        self._words = memoryview(self.memory).cast("Q")
        self._block_tokens = block_bytes // WORD_BYTES

    def compute(self, plan: StepPlan) -> None:
        """What the forwards of this step would write: the KV of every token that they were fed."""
        words, size = self._words, self._block_tokens
        for chunk in plan.prefill:
            self._write(chunk.block_table, chunk.start, chunk.token_ids)
        for item in plan.decode:
            position = item.position
            words[item.block_table[position // size] * size + position % size] = item.token_id | position << 32

    def _write(self, block_table: Sequence[int], start: int, token_ids: Sequence[int]) -> None:
        size = self._block_tokens
        values = array("Q", [token | position << 32 for position, token in enumerate(token_ids, start)])
        done = 0
        while done < len(values):
            block, offset = divmod(start + done, size)
            count = min(size - offset, len(values) - done)
            at = block_table[block] * size + offset
            self._words[at : at + count] = memoryview(values)[done : done + count]
            done += count

    def first_wrong(self, blocks: Sequence[int], token_ids: Sequence[int], start: int) -> int | None:
        """The first position in [start, len(token_ids)) whose block does not hold its token; None when all of them do.

        `blocks` cover positions from `start` on, a multiple of the block size.
        """
        size = self._block_tokens
        expected = array("Q", [token | position << 32 for position, token in enumerate(token_ids[start:], start)])
        for done in range(0, len(expected), size):
            count = min(size, len(expected) - done)
            at = blocks[done // size] * size
            held, wanted = self._words[at : at + count].tolist(), expected[done : done + count].tolist()
            if held != wanted:
                return start + done + next(i for i in range(count) if held[i] != wanted[i])
        return None
