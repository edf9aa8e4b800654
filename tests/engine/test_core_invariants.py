"""What holds of a core whatever happens to it: blocks are neither lost nor shared, no token repeats."""

from __future__ import annotations

from core_builders import Bench, expected_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Role, WorkKind
from engine.wire import Prefilled, Pull, Rejected, Reserved


class Fleet:
    """Two workers and a gateway by hand: every request goes local or split, with faults on the way."""

    def __init__(self, admission: str) -> None:
        self.workers = [Bench(Role.MIXED, num_blocks=24, max_batch=4, admission=admission) for _ in range(2)]
        self.copies: list[tuple[int, str, str]] = []  # target, req_id, lease_id
        self.firsts: dict[str, int] = {}

    def tick(self) -> bool:
        plans = [worker.step() for worker in self.workers]
        for index, worker in enumerate(self.workers):
            box = worker.told.get("g1")
            while box and box.messages:
                self.take(index, box.messages.pop(0))
        return any(plans) or bool(self.copies)

    def take(self, index: int, message) -> None:
        if isinstance(message, Prefilled):
            self.firsts[message.req_id] = message.first_token
            if message.lease is not None:
                target = self.workers[1 - index]
                pull = Pull(message.req_id, 1, message.lease, message.first_token)
                plan = target.core.begin_pull("g1", pull, target.now_s)
                if not isinstance(plan, Rejected):
                    self.copies.append((1 - index, message.req_id, message.lease.lease_id))
                else:
                    self.workers[index].core.release(message.lease.lease_id)

    def copy(self, ok: bool) -> None:
        if self.copies:
            target, req_id, lease_id = self.copies.pop(0)
            good = self.workers[1 - target].core.ack(lease_id, self.workers[1 - target].now_s)
            self.workers[target].core.pull_done(req_id, 1, ok and good, self.workers[target].now_s)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from(["reserve", "preempt"]))
def test_whatever_happens_no_block_is_lost_and_no_token_repeats(data, admission):
    fleet = Fleet(admission)
    lengths: dict[str, tuple[int, int]] = {}
    spoiled: set[str] = set()
    choose = st.sampled_from(["local", "split", "tick", "tick", "copy", "fail copy", "cancel", "flip"])
    for index, action in enumerate(data.draw(st.lists(choose, max_size=40))):
        first = fleet.workers[index % 2]
        name = f"r{index}"
        if action in ("local", "split"):
            size, most = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 12))
            lengths[name] = (size, most)
            kind = WorkKind.LOCAL if action == "local" else WorkKind.PREFILL
            if action == "split":
                other = fleet.workers[1 - index % 2]
                answer = other.submit(name, size, WorkKind.DECODE, max_tokens=most, first=1)
                if not isinstance(answer[0], Reserved):
                    spoiled.add(name)
                    continue
            if first.submit(name, size, kind, max_tokens=most, first=1):
                spoiled.add(name)
        elif action == "cancel" and lengths:
            name = data.draw(st.sampled_from(sorted(lengths)))
            spoiled.add(name)
            for worker in fleet.workers:
                worker.core.cancel("g1", name, 1, worker.now_s)
        elif action == "flip":
            role = data.draw(st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED]))
            first.order("flip", role)
            spoiled |= set(lengths)  # it may bounce any of them
        elif action in ("copy", "fail copy"):
            if action == "fail copy" and fleet.copies:
                spoiled.add(fleet.copies[0][1])
            fleet.copy(action == "copy")
        else:
            fleet.tick()
    for _ in range(500):
        busy = fleet.tick()
        fleet.copy(True)
        if not busy:
            break
    for worker in fleet.workers:
        worker.now_s += 1000.0
        worker.run()
        assert (worker.pool.num_held, worker.scheduler.reserved_blocks) == (0, 0)
        assert worker.scheduler.queued_tokens == 0
        assert not worker.core.has_work
    for name, (size, most) in lengths.items():
        got: list[int] = [fleet.firsts[name]] if name in fleet.firsts else []
        for worker in fleet.workers:
            got += worker.tokens(name)
        expected = expected_tokens(7, size, most)
        assert got == (expected[: len(got)] if name in spoiled else expected)
