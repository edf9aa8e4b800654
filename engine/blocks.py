"""Who owns which KV block, and which prompt prefixes are in the pool already. Ints only; no memory is touched here.

Decided here: allocation, reference counts, the prefix index (chained hashes) and which cached block goes first when
room is needed. Not decided here: whether a request may come in (`engine.scheduler`), and where the bytes lie.

A block is in exactly one of three sets, whose sizes always add up to the pool:

    free ──allocate──> held (refcount > 0) ──release──> cached (refcount 0, still indexed) ──evict──> free
                        ^                    └────────────────── not indexed ──────────────────────> free
                        └──────── share ────────────── cached

Only full blocks are indexed, and positions in a full block are never written again, so a shared block is never written.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from engine.wire import CacheDelta

_ROOT = b"\0" * 8


def block_hashes(token_ids: Sequence[int], block_tokens: int, known: Sequence[int] = ()) -> list[int]:
    """Chained hash of each full block: blake2b-64 over the parent's hash and the block's tokens, as a signed int64.

    Equal hashes mean equal tokens from position 0 to the block's end. `known` holds the leading hashes, if they were
    computed before. Gateways use the same function to match a prompt against a worker's `CacheDelta`s.
    """
    hashes = list(known)
    num_blocks = len(token_ids) // block_tokens
    if len(hashes) >= num_blocks:
        return hashes[:num_blocks]
    parent = hashes[-1].to_bytes(8, "little", signed=True) if hashes else _ROOT
    start = len(hashes) * block_tokens
    raw = array("q", token_ids[start : num_blocks * block_tokens]).tobytes()
    size = block_tokens * 8
    for at in range(0, len(raw), size):
        parent = blake2b(parent + raw[at : at + size], digest_size=8).digest()
        hashes.append(int.from_bytes(parent, "little", signed=True))
    return hashes


class BlockPool:
    """Blocks 0..num_blocks-1 of `block_tokens` tokens each. Raises AssertionError on misuse: misuse is our own bug."""

    __slots__ = (
        "_added",
        "_by_hash",
        "_cached",
        "_free",
        "_hash_of",
        "_refs",
        "_removed",
        "block_tokens",
        "num_blocks",
    )

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        assert num_blocks > 0, f"num_blocks is {num_blocks}, must be above 0"
        assert block_tokens > 0, f"block_tokens is {block_tokens}, must be above 0"
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}  # refcount 0 and indexed; least recently released first
        self._hash_of: dict[int, int] = {}
        self._by_hash: dict[int, int] = {}
        self._added: dict[int, None] = {}  # hashes indexed since the last delta
        self._removed: dict[int, None] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now: free ones, and cached ones that nobody holds."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_held(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    def refcount(self, block: int) -> int:
        return self._refs[block]

    def is_writable(self, block: int) -> bool:
        """One owner, and not in the prefix index: its owner may write it."""
        return self._refs[block] == 1 and block not in self._hash_of

    def allocate(self, count: int) -> list[int]:
        """`count` writable blocks; the caller owns them and must `release` each once. Evicts cached ones if it must."""
        assert count <= self.num_available, f"{count} blocks asked, {self.num_available} available"
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        digest = self._hash_of.pop(block)
        del self._by_hash[digest]
        if digest in self._added:
            del self._added[digest]
        else:
            self._removed[digest] = None
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """One more owner for each block, read-only for all of them; each owner releases once."""
        for block in blocks:
            if self._refs[block] == 0:
                assert block in self._cached, f"block {block} is free, it cannot be shared"
                del self._cached[block]
            self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One owner less. Last blocks first, so that eviction eats a cached prefix from its end."""
        for block in reversed(blocks):
            refs = self._refs[block] - 1
            assert refs >= 0, f"block {block} was released more often than it was owned"
            self._refs[block] = refs
            if refs == 0:
                if block in self._hash_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def register(self, block: int, digest: int) -> None:
        """Index a full, held block under its chained hash. A hash that is indexed already keeps its first block."""
        assert self._refs[block] > 0, f"block {block} is not held, it cannot be registered"
        if digest in self._by_hash or block in self._hash_of:
            return
        self._by_hash[digest] = block
        self._hash_of[block] = digest
        if digest in self._removed:
            del self._removed[digest]
        else:
            self._added[digest] = None

    def match(self, hashes: Sequence[int], max_blocks: int) -> list[int]:
        """The longest run of leading hashes that is indexed, at most `max_blocks`. Takes no ownership: `share` does."""
        found: list[int] = []
        for digest in hashes[:max_blocks]:
            block = self._by_hash.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def match_prefix(self, token_ids: Sequence[int]) -> tuple[list[int], int]:
        """Blocks and number of leading tokens whose KV is here; never all, as the last token must be fed."""
        blocks = self.match(block_hashes(token_ids, self.block_tokens), self.max_match(len(token_ids)))
        return blocks, len(blocks) * self.block_tokens

    def max_match(self, num_tokens: int) -> int:
        """Most blocks of a prompt of `num_tokens` that a cache hit may cover, so that one token is left to compute."""
        return max(0, num_tokens - 1) // self.block_tokens

    def num_unheld(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` are cached only: sharing them takes them from `num_available`."""
        refs = self._refs
        return sum(1 for block in blocks if refs[block] == 0)

    def take_delta(self) -> CacheDelta | None:
        """Change of the prefix index since the last call; None when there is none."""
        if not self._added and not self._removed:
            return None
        delta = CacheDelta(added=list(self._added), removed=list(self._removed))
        self._added.clear()
        self._removed.clear()
        return delta

    def snapshot(self) -> CacheDelta:
        """The whole prefix index, for a new follower. Take the delta first: one that is open leaves out a block that
        came and goes within it, which the new follower would keep."""
        return CacheDelta(added=list(self._by_hash), reset=True)
