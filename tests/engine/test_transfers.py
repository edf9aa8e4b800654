"""A running sequence moves from one core to another: equal tokens, no block lost, at whatever point it is disturbed."""

from __future__ import annotations

from typing import Any

import pytest
from core_builders import LAYOUT, Bench, expected_tokens, submit
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core_types import PullPlan
from engine.types import Role, StepPlan, WorkerState, WorkKind
from engine.wire import Lease, Offer, Offered, Prefetch, Prefetched, Pull, Rejected, Reserved, Yield, Yielded

SIZE = LAYOUT.block_tokens
PROMPT = list(range(1, 11))
GATEWAY = "g1"


class Memory:
    """What a pool's blocks hold: the token that was fed at each slot, as the runner would write it."""

    def __init__(self) -> None:
        self.blocks: dict[int, dict[int, tuple[int, int]]] = {}

    def run(self, plan: StepPlan) -> None:
        for chunk in plan.prefill:
            for position, token in enumerate(chunk.token_ids, chunk.start):
                self._write(chunk.block_table, position, token)
        for item in plan.decode:
            self._write(item.block_table, item.position, item.token_id)

    def _write(self, table: Any, position: int, token: int) -> None:
        self.blocks.setdefault(table[position // SIZE], {})[position % SIZE] = (position, token)

    def holds(self, table: list[int], tokens: list[int]) -> bool:
        return all(
            self.blocks.get(table[at // SIZE], {}).get(at % SIZE) == (at, token) for at, token in enumerate(tokens)
        )


class Pair:
    """Two cores, their memories, and the gateway's knowledge of one request."""

    def __init__(self, max_tokens: int = 30, **config: Any) -> None:
        self.source, self.target = Bench(Role.DECODE, **config), Bench(Role.DECODE, **config)
        self.memory = {id(self.source): Memory(), id(self.target): Memory()}
        self.max_tokens = max_tokens
        self.reserved_at = 0
        assert self.source.submit("r1", prompt=PROMPT, max_tokens=max_tokens) == []

    def step(self, bench: Bench, between: Any = None) -> bool:
        plan = bench.begin()
        if plan is None:
            return False
        if between is not None:
            between()
        self.memory[id(bench)].run(plan)
        bench.finish(plan)
        return True

    def said(self, bench: Bench, attempt: int) -> list[int]:
        events = [event for event in bench.events("r1") if event.attempt == attempt]
        return [token for event in events for token in event.tokens]

    @property
    def tokens(self) -> list[int]:
        """All that the client has, each position once, in order."""
        taken: list[int] = []
        for bench, attempt in ((self.source, 1), (self.target, 2), (self.target, 3)):
            for event in bench.events("r1"):
                if event.attempt == attempt:
                    known = len(PROMPT) + len(taken) - event.position
                    assert known >= 0, "a token was skipped"
                    taken += event.tokens[known:]
        return taken

    # --- the gateway's steps -----------------------------------------------------------------------------------

    def reserve(self) -> list[Any]:
        """All tokens but the last: that one is fed first on the target."""
        sent = self.tokens
        assert sent
        self.reserved_at = len(sent) - 1
        prompt = PROMPT + sent[:-1]
        message = submit(
            "r1", prompt=prompt, num_prompt=len(PROMPT), kind=WorkKind.DECODE, attempt=2, max_tokens=self.max_tokens
        )
        return self.target.core.submit(GATEWAY, message, self.target.now_s)

    def offer(self) -> Offered:
        return self.source.core.offer(GATEWAY, Offer("r1", 1), self.source.now_s)

    def prefetch(self, lease: Lease) -> PullPlan | Prefetched:
        return self.target.core.begin_prefetch(GATEWAY, Prefetch("r1", 2, lease), self.target.now_s)

    def hand_over(self) -> Yielded | None:
        answer = self.source.core.yield_up(GATEWAY, Yield("r1", 1), self.source.now_s)
        return answer[0] if answer else self.source.message(Yielded)  # type: ignore[return-value]

    def pull(self, lease: Lease) -> PullPlan | Rejected:
        sent = self.tokens
        message = Pull("r1", 2, lease, sent[-1], sent[self.reserved_at : -1])
        return self.target.core.begin_pull(GATEWAY, message, self.target.now_s)

    def copy(self, plan: PullPlan) -> None:
        source, target = self.memory[id(self.source)].blocks, self.memory[id(self.target)].blocks
        for theirs, own in zip(plan.source_blocks, plan.own_blocks, strict=True):
            target[own] = dict(source.get(theirs, {}))

    def copied(self, plan: PullPlan) -> list[Any]:
        """Copy, acknowledge, and tell the target whether its copy is good."""
        self.copy(plan)
        ok = self.source.core.ack(plan.lease.lease_id, self.source.now_s)
        return self.target.core.pull_done("r1", 2, ok, self.target.now_s, num_bytes=8)

    def finish(self) -> None:
        for bench in (self.source, self.target):
            while self.step(bench):
                pass
            bench.now_s += 100
            bench.core.expire(bench.now_s)

    def check_whole(self) -> None:
        """Nothing is held or promised anywhere, and every cached block is what its hash says."""
        for bench in (self.source, self.target):
            assert bench.pool.num_held == 0
            assert bench.pool.num_available == bench.pool.num_blocks
            assert bench.scheduler.reserved_blocks == 0
            assert not bench.core.has_work
            matched, num_tokens = bench.pool.match_prefix([*PROMPT, *self.expected])
            assert self.memory[id(bench)].holds(matched, [*PROMPT, *self.expected][:num_tokens])

    @property
    def expected(self) -> list[int]:
        return expected_tokens(7, len(PROMPT), self.max_tokens)


def moved(pair: Pair, num_before: int, num_during: int) -> None:
    """The whole way, with steps of the source before the reservation and during the first copy."""
    for _ in range(num_before):
        pair.step(pair.source)
    assert isinstance(pair.reserve()[0], Reserved)
    lease = pair.offer().lease
    assert lease is not None
    plan = pair.prefetch(lease)
    assert isinstance(plan, PullPlan)
    for _ in range(num_during):
        pair.step(pair.source)
    (prefetched,) = pair.copied(plan)
    assert prefetched.num_tokens == lease.num_tokens
    yielded = pair.hand_over()
    assert yielded is not None
    assert yielded.lease is not None
    rest = pair.pull(yielded.lease)
    assert isinstance(rest, PullPlan)
    assert rest.first_block_to_copy * SIZE == prefetched.num_tokens
    assert pair.copied(rest) == []


@pytest.mark.parametrize("num_before", [1, 2, 3, 7])
@pytest.mark.parametrize("num_during", [0, 1, 2, 9])
def test_a_moved_sequence_gives_the_tokens_of_an_undisturbed_one(num_before: int, num_during: int) -> None:
    pair = Pair()
    moved(pair, num_before, num_during)
    assert pair.source.pool.num_held == 0
    seq = next(iter(pair.target.core._work.seqs.values()))
    assert pair.memory[id(pair.target)].holds(seq.blocks, [*PROMPT, *pair.tokens][:-1])
    pair.finish()
    assert pair.tokens == pair.expected
    assert len(pair.said(pair.target, 2)) == 30 - num_before - num_during
    pair.check_whole()


def test_the_source_decodes_on_while_its_blocks_are_leased_and_they_belong_to_both() -> None:
    pair = Pair()
    for _ in range(4):
        pair.step(pair.source)
    held = pair.source.pool.num_held
    lease = pair.offer().lease
    assert lease is not None
    assert lease.num_tokens == len(lease.blocks) * SIZE == 12
    assert {pair.source.pool.refcount(block) for block in lease.blocks} == {2}
    assert pair.source.pool.num_held == held
    pair.step(pair.source)
    assert len(pair.tokens) == 5
    assert pair.source.core.ack(lease.lease_id, pair.source.now_s)
    assert {pair.source.pool.refcount(block) for block in lease.blocks} == {1}
    pair.finish()
    pair.check_whole()


def test_a_yield_during_a_step_waits_for_its_token_which_comes_first() -> None:
    pair = Pair()
    pair.step(pair.source)
    pair.step(pair.source, between=pair.hand_over)
    assert len(pair.tokens) == 2
    yielded = pair.source.message(Yielded)
    assert yielded.lease.num_tokens == len(PROMPT) + 1
    assert pair.source.core.next_step(pair.source.now_s) is None
    assert pair.source.core.release(yielded.lease.lease_id)
    pair.finish()
    pair.check_whole()


def test_a_sequence_that_ends_in_the_step_of_its_yield_ends_as_ever() -> None:
    pair = Pair(max_tokens=2)
    pair.step(pair.source)
    pair.step(pair.source, between=pair.hand_over)
    assert pair.source.message(Yielded) is None
    assert pair.source.events("r1")[-1].finish is not None
    assert pair.tokens == pair.expected
    pair.finish()
    pair.check_whole()


def test_what_does_not_decode_here_is_neither_offered_nor_yielded() -> None:
    pair = Pair()
    core, now_s = pair.source.core, pair.source.now_s
    assert core.offer(GATEWAY, Offer("r1", 1), now_s).reason  # it waits for its prefill
    pair.step(pair.source)
    for peer, attempt in (("g2", 1), (GATEWAY, 2)):
        assert core.offer(peer, Offer("r1", attempt), now_s).reason
        assert core.yield_up(peer, Yield("r1", attempt), now_s)[0].lease is None  # type: ignore[attr-defined]
    pair.finish()
    assert pair.tokens == pair.expected
    pair.check_whole()


def test_a_sequence_without_a_full_block_has_nothing_to_copy_ahead() -> None:
    bench = Bench(Role.DECODE)
    bench.submit("r1", prompt=[1], max_tokens=9)
    bench.step()
    assert bench.core.offer(GATEWAY, Offer("r1", 1), bench.now_s) == Offered("r1", 1, None)


def test_a_yielded_flip_is_complete_at_once_and_a_drain_waits_for_the_copy() -> None:
    for verb, role in (("flip", Role.PREFILL), ("drain", Role.UNASSIGNED)):
        pair = Pair()
        pair.step(pair.source)
        pair.source.order(verb, role)
        status = pair.source.core.status_changed()
        assert status is not None
        assert status.leaves_decode
        yielded = pair.hand_over()
        assert yielded is not None
        assert yielded.lease is not None
        assert pair.source.core.state is (WorkerState.READY if verb == "flip" else WorkerState.DRAINING)
        assert pair.source.core.release(yielded.lease.lease_id)
        assert pair.source.core.state is (WorkerState.READY if verb == "flip" else WorkerState.DRAINED)


def test_a_flip_from_mixed_to_decode_moves_nobody() -> None:
    bench = Bench(Role.MIXED)
    bench.submit("r1", kind=WorkKind.PREFILL)
    plan = bench.begin()
    assert plan is not None
    bench.order("flip", Role.DECODE)
    status = bench.core.status_changed()
    assert status is not None
    assert (status.state, status.leaves_decode) == (WorkerState.DRAINING, False)


def test_a_failed_copy_ahead_keeps_the_reservation() -> None:
    pair = Pair()
    for _ in range(4):
        pair.step(pair.source)
    pair.reserve()
    lease = pair.offer().lease
    assert lease is not None
    assert isinstance(pair.prefetch(lease), PullPlan)
    (answer,) = pair.target.core.pull_done("r1", 2, False, pair.target.now_s, "the holder is gone")
    assert (answer.num_tokens, answer.error) == (0, "the holder is gone")  # type: ignore[attr-defined]
    yielded = pair.hand_over()
    assert yielded is not None
    assert yielded.lease is not None
    plan = pair.pull(yielded.lease)
    assert isinstance(plan, PullPlan)
    assert plan.first_block_to_copy == 0
    pair.copied(plan)
    pair.finish()
    assert pair.tokens == pair.expected
    pair.check_whole()


def test_an_offer_that_ran_out_makes_the_copy_worthless() -> None:
    pair = Pair()
    for _ in range(4):
        pair.step(pair.source)
    pair.reserve()
    lease = pair.offer().lease
    assert lease is not None
    plan = pair.prefetch(lease)
    assert isinstance(plan, PullPlan)
    pair.source.now_s += 31
    pair.step(pair.source)
    (answer,) = pair.copied(plan)
    assert answer.num_tokens == 0
    pair.finish()
    assert pair.tokens == pair.expected
    pair.check_whole()


def test_after_the_death_of_the_source_the_blocks_copied_ahead_are_in_the_targets_cache() -> None:
    pair = Pair()
    for _ in range(4):
        pair.step(pair.source)
    pair.reserve()
    lease = pair.offer().lease
    assert lease is not None
    plan = pair.prefetch(lease)
    assert isinstance(plan, PullPlan)
    pair.copied(plan)
    sent = pair.tokens
    core, now_s = pair.target.core, pair.target.now_s
    assert core.cancel(GATEWAY, "r1", 2, now_s)
    again = submit("r1", prompt=[*PROMPT, *sent], num_prompt=len(PROMPT), attempt=3, max_tokens=30)
    assert core.submit(GATEWAY, again, now_s) == []
    begun = pair.target.begin()
    assert begun is not None
    assert begun.prefill[0].start == plan.num_tokens
    pair.memory[id(pair.target)].run(begun)
    pair.target.finish(begun)
    pair.finish()
    assert pair.tokens == pair.expected
    pair.check_whole()


@pytest.mark.parametrize(
    ("more", "detail"), [([5] * 19, "leave nothing to sample"), ([1000], "must be 0..999"), ([-1], "must be 0..999")]
)
def test_a_pull_with_impossible_tokens_is_refused_and_nothing_is_held(more: list[int], detail: str) -> None:
    pair = Pair(max_tokens=20)
    pair.step(pair.source)
    pair.step(pair.source)
    pair.reserve()
    yielded = pair.hand_over()
    assert yielded is not None
    assert yielded.lease is not None
    answer = pair.target.core.begin_pull(GATEWAY, Pull("r1", 2, yielded.lease, 5, more), pair.target.now_s)
    assert isinstance(answer, Rejected)
    assert detail in answer.detail
    assert pair.target.pool.num_held == 0


OPS = ("step", "step", "step target", "reserve", "offer", "prefetch", "copied", "failed", "yield", "yield in step",
       "pull", "cancel source", "cancel target", "time", "drop source")  # fmt: skip
ORDERS = tuple(f"{order} {end}" for order in ("prefill", "decode", "mixed", "drain", "undrain")
               for end in ("source", "target"))  # fmt: skip


class Orders:
    """Orders to both ends, and what each end must have become when nothing runs any more."""

    def __init__(self, pair: Pair) -> None:
        self._ends = {"source": pair.source, "target": pair.target}
        self._role = dict.fromkeys(self._ends, Role.DECODE)
        self._is_closed = dict.fromkeys(self._ends, False)
        self._fence = 1

    def give(self, order: str) -> None:
        what, end = order.split()
        self._fence += 1
        if what in ("drain", "undrain"):
            self._is_closed[end] = what == "drain"
            result = self._ends[end].order(what, fence=self._fence)
        else:
            self._role[end] = Role(what)
            result = self._ends[end].order("flip", Role(what), fence=self._fence)
        assert result.ok

    def check_converged(self) -> None:
        for end, bench in self._ends.items():
            state = WorkerState.DRAINED if self._is_closed[end] else WorkerState.READY
            assert (bench.core.role, bench.core.state) == (self._role[end], state)


@settings(max_examples=300, deadline=None)
@given(
    ops=st.lists(st.sampled_from(OPS + ORDERS), max_size=25),
    max_tokens=st.integers(1, 24),
    admission=st.sampled_from(["reserve", "preempt"]),
)
def test_whatever_happens_tokens_are_equal_and_no_block_is_lost(
    ops: list[str], max_tokens: int, admission: str
) -> None:
    pair = Pair(max_tokens, num_blocks=20, admission=admission)
    source, target = pair.source, pair.target
    pair.step(source)
    orders = Orders(pair)
    lease: Lease | None = None
    plan: PullPlan | None = None
    for op in ops:
        yielded = source.message(Yielded)
        match op:
            case "step":
                pair.step(source)
            case "step target":
                pair.step(target)
            case "reserve" if (
                ("r1", 2) not in target.core._work.by_key and not pair.said(target, 2) and yielded is None
            ):
                pair.reserve()
            case "offer":
                lease = pair.offer().lease or lease
            case "prefetch" if lease is not None and plan is None:
                begun = pair.prefetch(lease)
                plan = begun if isinstance(begun, PullPlan) else None
            case "copied" if plan is not None:
                pair.copied(plan)
                plan = None
            case "failed" if plan is not None:
                target.core.pull_done("r1", 2, False, target.now_s)
                plan = None
            case "yield":
                pair.hand_over()
            case "yield in step":
                pair.step(source, between=pair.hand_over)
            case "pull" if yielded is not None and yielded.lease is not None and plan is None:
                pulled = pair.pull(yielded.lease)
                plan = pulled if isinstance(pulled, PullPlan) else None
            case "cancel source":
                source.core.cancel(GATEWAY, "r1", 1, source.now_s)
            case "cancel target":
                target.core.cancel(GATEWAY, "r1", 2, target.now_s)
            case "time":
                source.now_s += 20
                target.now_s += 20
            case "drop source":
                source.core.drop_peer(GATEWAY, source.now_s)
            case _ if op in ORDERS:
                orders.give(op)
    if plan is not None:
        pair.copied(plan)
    pair.finish()
    assert pair.tokens == pair.expected[: len(pair.tokens)]
    for each in [event for bench in (source, target) for event in bench.events("r1") if event.finish == "length"]:
        assert each.position + len(each.tokens) == len(PROMPT) + max_tokens
    pair.check_whole()
    orders.check_converged()
