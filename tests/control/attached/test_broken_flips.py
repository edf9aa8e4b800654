"""A change at a router that breaks off half-way: the worker is back as before, or told as out with what brings it back;
and what we took out is known to the next plane, as the router forgets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from control.errors import HistoryError
from control.fleets.attached.steering.calls import Caller
from control.fleets.attached.steering.memory import Memory
from control.fleets.attached.steering.router_entry import entry_of
from control.fleets.attached.steering.sglang_router import SglangRouterSteering
from control.fleets.base import FleetStep, StepOutcome
from control.types.workers import Role, WorkerState
from tests.control.attached.fake_controllers import FakeRouter, FakeSglangEngine, served


class Site:
    """One decode engine behind a router, and us before it."""

    def __init__(self, router: FakeRouter, engine: FakeSglangEngine, **told: object) -> None:
        self.router, self.engine = router, engine
        self.kept: list[str] = []
        self.told: dict[str, object] = {"switch": True, "shows_s": 0.3, "limit_s": 4.0, **told}
        self.steering = self.begin("")

    def begin(self, memory: str) -> SglangRouterSteering:
        async def keep(text: str) -> None:
            self.kept.append(text)

        return SglangRouterSteering(Caller(self.router.url), Memory(memory, keep), **self.told)  # type: ignore[arg-type]

    async def plane_restarts(self) -> None:
        await self.steering.close()
        self.steering = self.begin(self.kept[-1] if self.kept else "")

    async def order(self, verb: str, role: Role) -> StepOutcome:
        (member,) = (await self.steering.look()).members
        return await self.steering.apply(FleetStep(verb=verb, worker_id=member.worker_id, role=role, fence=1))

    async def seen(self) -> list[tuple[WorkerState, Role]]:
        return [(each.state, each.role) for each in (await self.steering.look()).members]


@asynccontextmanager
async def site(**told: object) -> AsyncIterator[Site]:
    router, engine = FakeRouter(), FakeSglangEngine()
    async with served(router, engine):
        router.add(engine.url, "decode")
        found = Site(router, engine, **told)
        await found.steering.look()
        yield found
        await found.steering.close()


AS_BEFORE = [(WorkerState.READY, Role.DECODE)]
OUT = [(WorkerState.DRAINED, Role.DECODE)]


async def test_an_engine_that_will_not_change_its_role_is_back_in_its_former_one():
    async with site() as here:
        here.engine.role_switch = False
        outcome = await here.order("flip", Role.PREFILL)
        assert "speculative decoding; it is decode as before" in outcome.detail
        assert await here.seen() == AS_BEFORE


async def test_an_engine_that_breaks_in_the_change_stays_out_and_the_remedy_is_told():
    async with site() as here:
        here.engine.breaks = True
        outcome = await here.order("flip", Role.PREFILL)
        assert "rebuild failed" in outcome.detail
        assert "out of the router: restart the engine, then `undrain 127.0.0.1:" in outcome.detail
        assert not outcome.retry_helps
        assert await here.seen() == OUT
        assert (await here.order("undrain", Role.DECODE)).accepted
        assert await here.seen() == AS_BEFORE


async def test_an_engine_that_is_down_when_it_has_left_is_put_back_for_the_router_to_judge():
    async with site() as here:
        here.engine.is_down = True
        outcome = await here.order("flip", Role.PREFILL)
        assert "answers 500" in outcome.detail
        assert "it is decode as before" in outcome.detail
        assert await here.seen() == AS_BEFORE


async def test_a_worker_that_the_router_does_not_take_back_is_told_as_out_and_undrain_brings_it_back():
    async with site() as here:
        here.router.obeys_post = False
        outcome = await here.order("flip", Role.PREFILL)
        assert "not obeyed" in outcome.detail
        assert "putting it back as decode failed too" in outcome.detail
        assert "out of the router: `undrain" in outcome.detail
        assert await here.seen() == OUT
        here.router.obeys_post = True
        assert (await here.order("undrain", Role.DECODE)).accepted
        assert await here.seen() == AS_BEFORE


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_flip_whose_canary_fails_is_taken_back(in_place: bool):
    async with site(in_place=in_place) as here:
        here.router.canary_status, here.router.obeys_put = 503, True
        outcome = await here.order("flip", Role.PREFILL)
        assert "a request after it failed" in outcome.detail
        assert "it is decode as before" in outcome.detail
        assert await here.seen() == AS_BEFORE


async def test_a_drained_worker_is_known_to_the_next_plane_and_comes_back():
    async with site() as here:
        assert (await here.order("drain", Role.DECODE)).accepted
        await here.plane_restarts()
        assert await here.seen() == OUT
        assert (await here.order("undrain", Role.DECODE)).accepted
        await here.plane_restarts()
        assert await here.seen() == AS_BEFORE
        assert here.kept[-1] == ""


async def test_a_plane_that_died_in_a_flip_leaves_a_worker_that_the_next_one_flips_to_its_end():
    async with site() as here:
        assert (await here.order("drain", Role.DECODE)).accepted  # as far as the flip had come
        await here.plane_restarts()
        assert (await here.order("flip", Role.PREFILL)).accepted
        assert await here.seen() == [(WorkerState.READY, Role.PREFILL)]


async def test_a_worker_that_was_out_stays_out_when_its_flip_fails():
    async with site() as here:
        assert (await here.order("drain", Role.DECODE)).accepted
        here.engine.role_switch = False
        outcome = await here.order("flip", Role.PREFILL)
        assert "it is out of the router: as before, `undrain" in outcome.detail
        assert await here.seen() == OUT


async def test_what_cannot_be_kept_is_not_taken_out():
    router, engine = FakeRouter(), FakeSglangEngine()

    async def full(_: str) -> None:
        raise HistoryError("the disk is full")

    async with served(router, engine):
        router.add(engine.url, "decode")
        steering = SglangRouterSteering(Caller(router.url), Memory("", full))
        (member,) = (await steering.look()).members
        drain = FleetStep(verb="drain", worker_id=member.worker_id, role=Role.DECODE, fence=1)
        outcome = await steering.apply(drain)
        assert "cannot be written down: the disk is full" in outcome.detail
        assert len(router.workers) == 1
        await steering.close()


async def test_the_memory_for_decodes_graphs_is_told_where_it_is_known():
    async with site(graph_gb=8.0) as here:
        assert (await here.order("flip", Role.PREFILL)).accepted
        assert here.engine.graph_gb is None
        assert (await here.order("flip", Role.DECODE)).accepted
        assert here.engine.graph_gb == 8.0


async def test_a_memory_that_another_version_wrote_is_no_memory():
    async with site() as here:
        here.kept.append('[{"of": "another form"}]')
        await here.plane_restarts()
        assert await here.seen() == AS_BEFORE


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"url": "http://h:1", "worker_type": "router"},
        {"url": "http://user:word@h:1", "worker_type": "decode"},
        {"url": "file:///etc/passwd", "worker_type": "decode"},
        {"url": "http://[::1", "worker_type": "decode"},
        {"url": ["http://h:1"], "worker_type": "decode"},
    ],
)
def test_a_row_that_is_no_worker_of_ours_is_left_out(row: dict[str, object]):
    assert entry_of(row) is None
