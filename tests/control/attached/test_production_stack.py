"""production-stack's router steered by its file: in force or put back, somebody else's edit left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control.errors import CommandRefused
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.permission import can_of
from control.fleets.attached.steering.calls import Caller
from control.fleets.attached.steering.memory import Memory
from control.fleets.attached.steering.production_stack import ProductionStackSteering
from control.fleets.attached.types import Attachment
from control.fleets.base import FleetStep
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState
from tests.control.attached.fake_controllers import FakeSglangEngine, served
from tests.control.attached.fake_stack_router import YAML, FakeStackRouter

ONE, TWO = "10.0.0.1:8000", "10.0.0.2:8000"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "dynamic.yaml"
    found.write_text(YAML)
    return found


def step(verb: str, worker_id: str, role: Role = Role.DECODE) -> FleetStep:
    return FleetStep(verb=verb, worker_id=worker_id, role=role, fence=1)


def steering_of(router: FakeStackRouter, limit_s: float = 5.0) -> ProductionStackSteering:
    return ProductionStackSteering(Caller(router.url), router.path, limit_s=limit_s, poll_s=0.01)


async def roles(steering: ProductionStackSteering) -> dict[str, Role]:
    return {each.worker_id: each.role for each in (await steering.look()).members}


async def test_a_flip_is_done_when_the_router_uses_it_and_its_way_back_leaves_the_file_as_it_was(path: Path) -> None:
    router = FakeStackRouter(path)
    async with served(router):
        steering = steering_of(router)
        assert (await steering.apply(step("flip", ONE))).accepted
        assert (await roles(steering))[ONE] is Role.DECODE
        assert (await steering.apply(step("flip", ONE, Role.PREFILL))).accepted
        assert router.text == YAML
        await steering.close()


def at(engine: FakeSglangEngine, router: FakeStackRouter) -> str:
    """Its name, now that the file lists it in place of the second."""
    router.write(YAML.replace(f"http://{TWO}", engine.url))
    return engine.url.removeprefix("http://")


async def test_a_drained_worker_is_out_of_the_file_empty_still_known_and_comes_back(path: Path) -> None:
    router, engine = FakeStackRouter(path), FakeSglangEngine(num_running=2)
    async with served(router, engine):
        two, steering = at(engine, router), steering_of(router)
        assert (await steering.apply(step("drain", two))).accepted
        assert two not in router.text
        assert engine.num_running == 0
        drained = next(each for each in (await steering.look()).members if each.worker_id == two)
        assert (drained.state, drained.metrics_url) == (WorkerState.DRAINED, f"{engine.url}/metrics")
        assert (await steering.apply(step("undrain", two))).accepted
        assert two in router.text
        assert all(each.state is WorkerState.READY for each in (await steering.look()).members)
        await steering.close()


async def test_a_drained_worker_is_known_to_the_next_plane(path: Path) -> None:
    router, engine, kept = FakeStackRouter(path), FakeSglangEngine(), list[str]()

    async def keep(text: str) -> None:
        kept.append(text)

    async with served(router, engine):
        two = at(engine, router)
        steering = ProductionStackSteering(Caller(router.url), path, Memory(keep=keep), poll_s=0.01)
        assert (await steering.apply(step("drain", two))).accepted
        await steering.close()
        again = ProductionStackSteering(Caller(router.url), path, Memory(kept[-1], keep), poll_s=0.01)
        drained = next(each for each in (await again.look()).members if each.worker_id == two)
        assert (drained.state, drained.role) == (WorkerState.DRAINED, Role.DECODE)
        assert (await again.apply(step("undrain", two))).accepted
        await again.look()
        assert kept[-1] == "{}"
        await again.close()


async def test_a_worker_that_does_not_get_empty_in_time_is_back_in_the_file(path: Path) -> None:
    router, engine = FakeStackRouter(path), FakeSglangEngine(num_running=10_000)
    async with served(router, engine):
        two, steering = at(engine, router), steering_of(router, limit_s=0.2)
        outcome = await steering.apply(step("drain", two))
        assert f"{two} still holds requests" in outcome.detail
        assert two in router.text
        assert all(each.state is WorkerState.READY for each in (await steering.look()).members)
        await steering.close()


async def test_a_change_that_the_router_does_not_use_has_failed_and_the_file_is_as_it_was(path: Path) -> None:
    router = FakeStackRouter(path, obeys=False)
    router.seen = YAML
    async with served(router):
        steering = steering_of(router, limit_s=0.1)
        outcome = await steering.apply(step("flip", ONE))
        assert not outcome.accepted
        assert "does not tell that it uses the new config" in outcome.detail
        assert router.text == YAML
        await steering.close()


async def test_a_router_that_does_not_serve_after_a_change_has_failed_it(path: Path) -> None:
    router = FakeStackRouter(path, loses_labels=True)
    router.seen = YAML
    async with served(router):
        steering = steering_of(router)
        outcome = await steering.apply(step("flip", ONE))
        assert "a request after it failed" in outcome.detail
        assert router.text == YAML
        again = await steering.apply(step("flip", ONE))
        assert "does not serve now, so nothing is changed" in again.detail
        await steering.close()


async def test_somebody_who_writes_the_file_meanwhile_is_yielded_to(path: Path) -> None:
    router = FakeStackRouter(path, obeys=False)
    router.seen = YAML
    theirs = YAML.replace("platform", "other")
    async with served(router):
        steering = steering_of(router)
        steering._serves = _and_then(lambda: router.write(theirs))  # type: ignore[method-assign]
        outcome = await steering.apply(step("flip", ONE))
        assert "somebody else has written dynamic.yaml meanwhile" in outcome.detail
        assert router.text == theirs
        await steering.close()


def _and_then(act: Callable[[], None]) -> Any:
    async def serves(file: object, otherwise: str) -> None:
        act()

    return serves


async def test_somebody_who_undoes_what_we_did_a_moment_ago_is_yielded_to(path: Path) -> None:
    router = FakeStackRouter(path)
    async with served(router):
        steering = steering_of(router)
        assert (await steering.apply(step("flip", ONE))).accepted
        router.write(YAML)
        assert "is not as we left it" in (await steering.apply(step("flip", ONE))).detail
        await steering.close()


def attachment(controller: str) -> Attachment:
    return Attachment(name="theirs", kind="vllm", controller=controller)


def test_it_is_attached_by_its_router_and_its_file(path: Path) -> None:
    told = attachment(f"production-stack=http://127.0.0.1:8001?file={path}")
    assert plan_of(told).controller is not None
    assert can_of(told) >= {Capability.FLIP, Capability.DRAIN, Capability.RESIZE}
    with pytest.raises(CommandRefused, match="its router's dynamic config is a file"):
        plan_of(attachment("production-stack=http://127.0.0.1:8001"))
