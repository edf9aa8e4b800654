from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.blocks import BlockPool, block_hashes


def filled(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Allocate and register a whole prompt, as a finished prefill does."""
    blocks = pool.allocate(-(-len(tokens) // pool.block_tokens))
    for block, digest in zip(blocks, block_hashes(tokens, pool.block_tokens), strict=False):
        pool.register(block, digest)
    return blocks


def test_hashes_chain_so_that_equal_blocks_after_unequal_ones_differ():
    a, b = block_hashes([1, 2, 3, 4], 2), block_hashes([9, 2, 3, 4], 2)
    assert a[1] != b[1]
    assert a == block_hashes([1, 2, 3, 4, 5], 2)


def test_hashes_continue_from_known_ones():
    tokens = list(range(50))
    assert block_hashes(tokens, 4, block_hashes(tokens[:20], 4)) == block_hashes(tokens, 4)


@given(st.lists(st.integers(0, 2**31), max_size=40))
def test_hashes_fit_a_signed_int64(tokens):
    assert all(-(2**63) <= digest < 2**63 for digest in block_hashes(tokens, 4))


def test_a_match_never_covers_the_whole_prompt():
    pool = BlockPool(8, 4)
    tokens = list(range(8))
    blocks = filled(pool, tokens)
    assert pool.match_prefix(tokens) == (blocks[:1], 4)
    assert pool.match_prefix([*tokens, 99]) == (blocks, 8)
    assert pool.match_prefix([]) == ([], 0)


def test_released_blocks_serve_a_later_prompt_until_they_are_evicted():
    pool = BlockPool(4, 4)
    tokens = list(range(9))
    blocks = filled(pool, tokens)
    pool.release(blocks)
    assert (pool.num_held, pool.num_cached, pool.num_available) == (0, 2, 4)
    assert pool.match_prefix(tokens) == (blocks[:2], 8)
    pool.allocate(4)
    assert pool.match_prefix(tokens) == ([], 0)


def test_eviction_eats_a_cached_prefix_from_its_end():
    pool = BlockPool(3, 2)
    tokens = [1, 2, 3, 4, 5, 6]
    blocks = filled(pool, tokens)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.match_prefix([*tokens, 7]) == (blocks[:2], 4)


def test_the_least_recently_released_prefix_goes_first():
    pool = BlockPool(2, 2)
    first, second = filled(pool, [1, 2]), filled(pool, [3, 4])
    pool.release(second)
    pool.release(first)
    pool.allocate(1)
    assert pool.match_prefix([1, 2, 9])[1] == 2
    assert pool.match_prefix([3, 4, 9])[1] == 0


def test_deltas_tell_what_changed_and_cancel_out():
    pool = BlockPool(2, 2)
    hashes = block_hashes([1, 2], 2)
    blocks = filled(pool, [1, 2])
    delta = pool.take_delta()
    assert delta is not None
    assert (delta.added, delta.removed) == (hashes, [])
    pool.release(blocks)
    pool.release(pool.allocate(2))
    delta = pool.take_delta()
    assert delta is not None
    assert (delta.added, delta.removed) == ([], hashes)
    pool.release(filled(pool, [1, 2]))
    pool.release(pool.allocate(2))
    assert pool.take_delta() is None


def test_a_follower_that_joins_after_a_delta_is_told_of_what_goes_right_after():
    pool = BlockPool(1, 2)
    (block,) = pool.allocate(1)
    (digest,) = block_hashes([1, 2], 2)
    pool.register(block, digest)
    assert pool.take_delta() is not None
    assert pool.snapshot().added == [digest]
    pool.release([block])
    pool.allocate(1)  # evicts it
    delta = pool.take_delta()
    assert delta is not None
    assert (delta.added, delta.removed) == ([], [digest])


def test_a_snapshot_is_the_whole_index():
    pool = BlockPool(4, 2)
    filled(pool, [1, 2, 3, 4])
    snapshot = pool.snapshot()
    assert snapshot.reset
    assert set(snapshot.added) == set(block_hashes([1, 2, 3, 4], 2))


def test_releasing_twice_is_our_own_bug():
    pool = BlockPool(2, 2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(blocks)


class PoolMachine(RuleBasedStateMachine):
    """Random owners of random prompts; a tiny alphabet makes prefixes meet."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, 2)
        self.owners: list[tuple[list[int], int]] = []  # blocks, how many of them were shared
        self.known: set[int] = set()

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=14))
    def admit(self, tokens):
        pool = self.pool
        matched, num_tokens = pool.match_prefix(tokens)
        assert num_tokens < len(tokens)
        fresh = -(-len(tokens) // 2) - len(matched)
        if fresh + pool.num_unheld(matched) > pool.num_available:
            return
        pool.share(matched)
        blocks = matched + pool.allocate(fresh)
        assert all(pool.is_writable(block) for block in blocks[len(matched) :])
        for block, digest in zip(blocks, block_hashes(tokens, 2), strict=False):
            pool.register(block, digest)
        self.owners.append((blocks, len(matched)))

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def end(self, data):
        blocks, _ = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.pool.release(blocks)

    @rule()
    def tell(self):
        delta = self.pool.take_delta()
        if delta is not None:
            assert not set(delta.removed) - self.known
            self.known -= set(delta.removed)
            self.known |= set(delta.added)
        assert self.known == set(self.pool.snapshot().added)

    @invariant()
    def every_block_is_free_held_or_cached(self):
        pool = self.pool
        assert len(pool._free) + pool.num_held + pool.num_cached == pool.num_blocks
        assert len({*pool._free, *pool._cached}) == len(pool._free) + len(pool._cached)

    @invariant()
    def refcounts_equal_the_owners(self):
        counts = [0] * self.pool.num_blocks
        for blocks, _ in self.owners:
            assert len(set(blocks)) == len(blocks)
            for block in blocks:
                counts[block] += 1
        assert counts == [self.pool.refcount(block) for block in range(self.pool.num_blocks)]

    @invariant()
    def no_shared_block_is_writable(self):
        for block in range(self.pool.num_blocks):
            assert not (self.pool.is_writable(block) and self.pool.refcount(block) > 1)


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
