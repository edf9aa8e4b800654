"""Real workers with a tiny model die, are stopped and hang at every stage: answers are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "control" / "gateway"))

from fronts import LOCAL, NAMES, Front, front, holds_nothing
from gateway_builders import until
from worker_client import LIMIT_S
from worker_process import WorkerProcess, real_config, running

from control.gateway.relay import Relay
from engine.convert import make_tiny_model
from engine.text import ModelText
from engine.types import Role

pytestmark = pytest.mark.integration

LEASE_S = 3.0  # blocks of a handoff that nobody acknowledges come back so soon
MAX_TOKENS = 120


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture
async def trio(tmp_path: Path, model_dir: Path) -> AsyncIterator[tuple[Front, list[WorkerProcess]]]:
    """Three real workers, each in its own process, none with a role."""
    with contextlib.ExitStack() as stack:
        configs = [real_config(tmp_path / "shm", model_dir, name, lease_s=LEASE_S) for name in NAMES]
        processes = [stack.enter_context(running(each)) for each in configs]
        async with front(ModelText(model_dir), "tiny", processes) as place:
            yield place, processes


FAIL: dict[str, Callable[[WorkerProcess], None]] = {
    "killed": WorkerProcess.kill,
    "stopped": WorkerProcess.pause,
    "hung": WorkerProcess.hang,
}


class Scene:
    """Eight requests on their way, and who does what with them."""

    def __init__(self, place: Front, processes: list[WorkerProcess]) -> None:
        self.place = place
        self.processes = processes
        self.asking: list[asyncio.Task[str]] = []

    @property
    def relays(self) -> list[Relay]:
        return list(self.place.gateway.admission.in_flight.values())

    def legs(self, at: int) -> int:
        return len(self.place.gateway.fleet.links[NAMES[at]].legs)

    def ask(self) -> None:
        self.asking = [
            asyncio.create_task(self.place.ask(at, temperature=0.9, max_tokens=MAX_TOKENS)) for at in range(8)
        ]

    def busiest(self) -> int:
        return max((1, 2), key=self.legs)

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(lambda: condition() or all(each.done() for each in self.asking), LIMIT_S)

    def all_decode(self) -> bool:
        return len(self.relays) == 8 and all(len(each.tokens) > 2 for each in self.relays)


async def queued(scene: Scene) -> int:
    await scene.until(lambda: scene.legs(0) >= 4)
    return 0


async def mid_prefill(scene: Scene) -> int:
    await scene.until(lambda: scene.legs(0) > 0 and any(each.tokens for each in scene.relays))
    return 0


async def leased_at_the_source(scene: Scene) -> int:
    await scene.until(lambda: any(each._lease is not None for each in scene.relays))
    return 0


async def leased_for_the_target(scene: Scene) -> int:
    await leased_at_the_source(scene)
    takers = [each._decode.worker_id for each in scene.relays if each._lease is not None and each._decode is not None]
    return NAMES.index(takers[0]) if takers else 1


async def mid_decode(scene: Scene) -> int:
    await scene.until(scene.all_decode)
    return scene.busiest()


async def migrating_from(scene: Scene) -> int:
    await scene.until(scene.all_decode)
    source = scene.busiest()
    assert (await scene.place.orders[source].order("drain", fence=2)).ok
    await scene.until(lambda: any(each.move is not None for each in scene.relays))
    return source


async def migrating_to(scene: Scene) -> int:
    return 3 - await migrating_from(scene)


STAGES = (queued, mid_prefill, leased_at_the_source, leased_for_the_target, mid_decode, migrating_from, migrating_to)
CASES = [(stage, "killed") for stage in STAGES] + [(stage, "hung") for stage in (mid_prefill, migrating_from)]


@pytest.mark.parametrize(("stage", "how"), CASES, ids=lambda each: each if isinstance(each, str) else each.__name__)
async def test_a_worker_that_fails_at_any_stage_costs_no_request_no_token_and_no_block(
    trio: tuple[Front, list[WorkerProcess]], stage: Callable[[Scene], Any], how: str
) -> None:
    """Sampled answers; the disturbed run is the first, so no prefix cache spares it the handoff."""
    place, processes = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    scene = Scene(place, processes)
    scene.ask()
    victim = await stage(scene)
    FAIL[how](processes[victim])
    if stage is migrating_to:  # nobody else decodes: take the drain back
        assert (await place.orders[3 - victim].order("undrain", fence=3)).ok
    answers = await asyncio.gather(*scene.asking)
    assert {record.status for record in place.gateway.records.batch_from(0)[1]} == {200}
    await undisturbed(scene, victim, answers)


async def undisturbed(scene: Scene, victim: int, answers: list[str]) -> None:
    """The others hold nothing, and what they answer alone is what was answered."""
    place, links = scene.place, scene.place.gateway.fleet.links
    FAIL["killed"](scene.processes[victim])
    await until(lambda: not links[NAMES[victim]].is_connected, LIMIT_S)
    rest = [links[name] for name in NAMES if name != NAMES[victim]]
    await until(lambda: all(holds_nothing(link.pressure.load) for link in rest), LIMIT_S)
    for at in {0, 1, 2} - {victim}:
        assert (await place.orders[at].order("flip", Role.MIXED, fence=9)).ok
        assert (await place.orders[at].order("undrain", fence=9)).ok
    place.take(LOCAL)
    await until(lambda: all(link.is_ready and link.role is Role.MIXED for link in rest), LIMIT_S)
    alone = [await place.ask(at, temperature=0.9, max_tokens=MAX_TOKENS) for at in range(8)]
    assert answers == alone


@pytest.mark.parametrize("how", ["killed", "stopped", "hung"])
async def test_when_the_last_decode_workers_fail_their_streams_wait_for_the_prefill_worker_to_stand_in(
    trio: tuple[Front, list[WorkerProcess]], how: str
) -> None:
    place, processes = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    scene = Scene(place, processes)
    scene.ask()
    await mid_decode(scene)
    for at in (1, 2):
        FAIL[how](processes[at])
    links = place.gateway.fleet.links
    # one that hangs without a stream is not noticed before it gets one
    await until(lambda: not any(links[each].is_ready and links[each].legs for each in ("w-1", "w-2")), LIMIT_S)
    assert (await place.orders[0].order("flip", Role.MIXED, fence=2)).ok  # as `control.stand_ins` has it ordered
    answers = await asyncio.gather(*scene.asking)
    lasts = [record.moves[-1] for record in place.gateway.records.batch_from(0)[1] if record.moves]
    assert {(move.kind, move.to_worker) for move in lasts} == {("failover", "w-0")}
    for at in (1, 2):
        FAIL["killed"](processes[at])
    await until(lambda: holds_nothing(links["w-0"].pressure.load), LIMIT_S)
    assert answers == [await place.ask(at, temperature=0.9, max_tokens=MAX_TOKENS) for at in range(8)]


async def test_a_mixed_worker_that_is_killed_is_continued_on_the_others(
    trio: tuple[Front, list[WorkerProcess]],
) -> None:
    place, processes = trio
    place.take(LOCAL)
    await place.place(Role.MIXED, Role.MIXED, Role.MIXED)
    scene = Scene(place, processes)
    scene.ask()
    await scene.until(scene.all_decode)
    victim = max((0, 1, 2), key=scene.legs)
    processes[victim].kill()
    await undisturbed(scene, victim, await asyncio.gather(*scene.asking))


async def test_a_dead_gateways_sequences_are_cancelled_and_its_leases_run_out(
    trio: tuple[Front, list[WorkerProcess]],
) -> None:
    """Its connections end, as a killed process's do; no message of it says anything."""
    place, _ = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    scene = Scene(place, [])
    scene.ask()
    await scene.until(lambda: any(each._lease is not None for each in scene.relays))
    for link in place.gateway.fleet.links.values():
        link.is_retired = True
        link._connection._transport.abort()  # type: ignore[union-attr]
    for each in scene.asking:
        each.cancel()
    await asyncio.gather(*scene.asking, return_exceptions=True)
    for client in place.orders:
        await client.idle()
        while (await client.ping()).num_leased:  # noqa: ASYNC110  within the test's own bound
            await asyncio.sleep(0.05)
        load = await client.ping()
        assert (load.kv_blocks_held, load.kv_blocks_reserved) == (0, 0)


async def test_a_step_that_hangs_is_left_after_two_limits_while_its_worker_still_beats(
    trio: tuple[Front, list[WorkerProcess]],
) -> None:
    place, processes = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    links, relays = place.gateway.fleet.links, place.gateway.admission.in_flight
    asking = [asyncio.create_task(place.ask(number, max_tokens=200)) for number in range(4)]
    await until(lambda: len(relays) == 4 and all(len(each.tokens) > 3 for each in relays.values()), LIMIT_S)
    hung = max((1, 2), key=lambda at: len(links[NAMES[at]].legs))
    processes[hung].hang()
    answers = await asyncio.gather(*asking)
    moves = [move for record in place.gateway.records.batch_from(0)[1] for move in record.moves]
    assert moves
    assert {(move.kind, move.from_worker) for move in moves} == {("failover", NAMES[hung])}
    assert all("its step has run for" in move.reason for move in moves)
    processes[hung].unhang()
    await until(lambda: all(link.is_ready and holds_nothing(link.pressure.load) for link in links.values()), LIMIT_S)
    assert answers == [await place.ask(number, max_tokens=200) for number in range(4)]
