"""A real gateway in front of real workers with a tiny model: any split, flip or death gives the undisturbed answer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "control" / "gateway"))

from fronts import LOCAL, NAMES, Front, front, holds_nothing, rules
from gateway_builders import until
from worker_client import LIMIT_S
from worker_process import WorkerProcess, paced_config, real_config, running

from control.gateway.mover import Mover
from engine.convert import make_tiny_model
from engine.meter_reader import MeterReader
from engine.text import ModelText, SeededText
from engine.types import Role, WorkerState

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture
async def trio(tmp_path: Path, model_dir: Path) -> AsyncIterator[tuple[Front, list[WorkerProcess]]]:
    """Three real workers, each in its own process, none with a role."""
    with contextlib.ExitStack() as stack:
        shm = tmp_path / "shm"
        processes = [stack.enter_context(running(real_config(shm, model_dir, name))) for name in NAMES]
        async with front(ModelText(model_dir), "tiny", processes) as place:
            yield place, processes


async def test_split_and_local_requests_get_equal_answers_greedy_and_sampled(
    trio: tuple[Front, list[WorkerProcess]],
) -> None:
    place, _ = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    cases = [(number, temperature) for number in range(5) for temperature in (0.0, 0.9)]
    split = await asyncio.gather(*[place.ask(number, temperature=heat) for number, heat in cases])
    assert rules(place) == {"remote"}
    place.take(LOCAL)
    local = [await place.ask(number, temperature=heat) for number, heat in cases]
    assert rules(place) >= {"remote", "small_fleet"} or "cached_local" in rules(place)
    assert split == local
    record = place.gateway.records.batch_from(0)[1][0]
    assert record.handoff_s is not None
    assert record.prefill_s is not None
    assert record.simulated is False


async def test_flips_under_load_lose_no_request_and_change_no_answer(trio: tuple[Front, list[WorkerProcess]]) -> None:
    place, _ = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    undisturbed = [await place.ask(number) for number in range(4)]

    async def traffic() -> list[str]:
        return [await place.ask(number) for _ in range(3) for number in range(4)]

    async def flips() -> list[str]:
        for fence, role in enumerate([Role.PREFILL, Role.DECODE, Role.MIXED, Role.DECODE], start=2):
            client = place.orders[1]
            assert (await client.order("flip", role, fence=fence)).ok
            while (await client.status(WorkerState.READY)).role is not role:
                pass
        return []

    *answers, _ = await asyncio.gather(traffic(), traffic(), flips())
    assert answers == [undisturbed * 3] * 2
    assert {record.status for record in place.gateway.records.batch_from(0)[1]} == {200}


async def test_a_worker_that_is_killed_under_load_costs_no_request_and_no_token(
    trio: tuple[Front, list[WorkerProcess]],
) -> None:
    place, processes = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    undisturbed = [await place.ask(number, max_tokens=100) for number in range(4)]
    asking = [asyncio.create_task(place.ask(number, max_tokens=100)) for number in range(4)]

    def decoding() -> list[int]:
        """Which decode workers stream now: routing may give all four requests to either."""
        links = place.gateway.fleet.links
        legs = {at: links[NAMES[at]].legs.values() for at in (1, 2)}
        return [at for at, open_legs in legs.items() if any(leg.tokens for leg in open_legs)]  # type: ignore[attr-defined]

    await until(lambda: bool(decoding()), LIMIT_S)
    processes[decoding()[0]].kill()
    assert await asyncio.gather(*asking) == undisturbed
    records = place.gateway.records.batch_from(0)[1]
    assert {record.status for record in records} == {200}
    assert sum(record.num_reroutes for record in records) >= 1


@pytest.mark.parametrize(("verb", "role"), [("drain", Role.UNASSIGNED), ("flip", Role.PREFILL)])
async def test_answers_move_away_from_a_worker_that_leaves_decode_and_stay_the_same(
    trio: tuple[Front, list[WorkerProcess]], verb: str, role: Role
) -> None:
    """Sampled answers, of real models; nothing is held anywhere afterwards."""
    place, _ = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    links = place.gateway.fleet.links
    undisturbed = [await place.ask(number, temperature=0.9, max_tokens=150) for number in range(4)]
    asking = [asyncio.create_task(place.ask(number, temperature=0.9, max_tokens=150)) for number in range(4)]
    relays = place.gateway.admission.in_flight
    await until(lambda: len(relays) == 4 and all(len(each.tokens) > 3 for each in relays.values()), LIMIT_S)
    busiest = max((1, 2), key=lambda at: len(links[NAMES[at]].legs))
    assert (await place.orders[busiest].order(verb, role, fence=2)).ok
    assert await asyncio.gather(*asking) == undisturbed
    records = place.gateway.records.batch_from(5)[1]
    moves = [move for record in records for move in record.moves]
    assert moves
    assert {move.from_worker for move in moves} == {NAMES[busiest]}
    assert all(move.stall_s is not None for move in moves)
    assert {record.status for record in records} == {200}
    await until(lambda: all(holds_nothing(link.pressure.load) for link in links.values()), LIMIT_S)


Orders = list[tuple[int, str, Role]]
NO_ROLE = Role.UNASSIGNED
FIRE: dict[str, Orders] = {
    "flipped back before the flip is complete": [(1, "flip", Role.PREFILL), (1, "flip", Role.DECODE)] * 3,
    "a flip while a drain's moves run": [(1, "drain", NO_ROLE), (1, "flip", Role.PREFILL), (1, "undrain", NO_ROLE)],
    "the target of the moves leaves too": [(1, "drain", NO_ROLE), (2, "flip", Role.PREFILL), (1, "undrain", NO_ROLE)],
    "all change places": [(0, "flip", Role.DECODE), (1, "flip", Role.PREFILL), (2, "flip", Role.MIXED)],
}


@pytest.mark.parametrize("name", FIRE)
async def test_orders_that_overtake_each_other_under_load_change_no_answer(
    trio: tuple[Front, list[WorkerProcess]], name: str
) -> None:
    """Each order is given while the moves of the one before run; each worker ends as it was told last."""
    place, _ = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    links = place.gateway.fleet.links
    undisturbed = [await place.ask(number, temperature=0.9, max_tokens=150) for number in range(6)]
    asking = [asyncio.create_task(place.ask(number, temperature=0.9, max_tokens=150)) for number in range(6)]
    relays = place.gateway.admission.in_flight
    await until(lambda: len(relays) == 6 and all(len(each.tokens) > 3 for each in relays.values()), LIMIT_S)
    wanted = {0: Role.PREFILL, 1: Role.DECODE, 2: Role.DECODE}
    for fence, (at, verb, role) in enumerate(FIRE[name], start=2):
        assert (await place.orders[at].order(verb, role, fence=fence)).ok
        wanted[at] = role if verb == "flip" else wanted[at]
    assert await asyncio.gather(*asking) == undisturbed
    assert {record.status for record in place.gateway.records.batch_from(0)[1]} == {200}
    await until(lambda: all(holds_nothing(link.load) for link in links.values()), LIMIT_S)
    await until(lambda: all(link.is_ready for link in links.values()), LIMIT_S)
    assert {at: links[NAMES[at]].role for at in wanted} == wanted


async def test_prompts_queued_on_a_worker_that_flips_are_computed_once_elsewhere(
    trio: tuple[Front, list[WorkerProcess]], tmp_path: Path
) -> None:
    """On a busy machine the queues may be gone before they are seen: then it is begun anew, with longer prompts."""
    place, _ = trio
    await place.place(Role.PREFILL, Role.PREFILL, Role.DECODE)
    pages = [MeterReader(tmp_path / "shm" / f"{name}.meter") for name in NAMES]

    def prefilled() -> float:
        counters = [item for page in pages for item in page.read(0).counters.items()]
        return sum(each.tokens for key, each in counters if key.endswith("/prefill"))

    links = place.gateway.fleet.links

    def are_queued_or_over(asking: list[asyncio.Task[str]]) -> bool:
        return all(links[name].load.num_waiting > 1 for name in NAMES[:2]) or all(each.done() for each in asking)

    for attempt in range(5):
        numbers = range(12 * attempt, 12 * (attempt + 1))
        asking = [asyncio.create_task(place.ask(number, max_tokens=40)) for number in numbers]
        await until(lambda asking=asking: are_queued_or_over(asking), LIMIT_S)
        assert (await place.orders[0].order("flip", Role.DECODE, fence=2 + 2 * attempt)).ok
        answers = await asyncio.gather(*asking)
        records = place.gateway.records.batch_from(0)[1]
        if any(record.num_reroutes for record in records):
            break
        assert (await place.orders[0].order("flip", Role.PREFILL, fence=3 + 2 * attempt)).ok
        await until(lambda: links[NAMES[0]].is_ready and links[NAMES[0]].role is Role.PREFILL, LIMIT_S)
    assert sum(record.num_reroutes for record in records) > 0
    assert prefilled() == sum(record.prompt_tokens - record.cached_tokens for record in records)
    assert answers == [await place.ask(number, max_tokens=40) for number in numbers]


@pytest.mark.parametrize("stage", ["queued for prefill", "decoding"])
async def test_a_worker_that_is_stopped_under_load_is_left_and_frees_what_it_held_when_it_goes_on(
    trio: tuple[Front, list[WorkerProcess]], stage: str
) -> None:
    """Its requests end elsewhere with equal answers while it stands; afterwards it serves again and holds no KV."""
    place, processes = trio
    await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
    links, stopped = place.gateway.fleet.links, 0
    if stage == "queued for prefill":
        processes[0].pause()
    asking = [asyncio.create_task(place.ask(number, max_tokens=100)) for number in range(4)]
    if stage == "decoding":
        await until(lambda: any(links[NAMES[at]].pressure.load.num_running for at in (1, 2)), LIMIT_S)
        stopped = max((1, 2), key=lambda at: links[NAMES[at]].pressure.load.num_running)
        processes[stopped].pause()
    try:
        answers = await asyncio.gather(*asking)
        await until(lambda: not links[NAMES[stopped]].is_connected, LIMIT_S)
        answers.append(await place.ask(4, max_tokens=100))  # nothing new waits for it
    finally:
        processes[stopped].resume()
    await until(lambda: all(link.is_ready for link in links.values()), LIMIT_S)

    await until(lambda: all(holds_nothing(link.pressure.load) for link in links.values()), LIMIT_S)
    assert answers == [await place.ask(number, max_tokens=100) for number in range(5)]
    assert {record.status for record in place.gateway.records.batch_from(0)[1]} == {200}


async def test_paced_answers_move_with_kv_that_is_checked_token_by_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mover, "note_prefill", lambda *_: None)  # else the short ones are cheaper to compute anew
    configs = [paced_config(tmp_path, name) for name in NAMES]
    with running(*configs) as process:
        async with front(SeededText(128_256), "llama-70b", [process]) as place:
            await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
            undisturbed = [await place.ask(number, max_tokens=200) for number in range(8)]
            asking = [asyncio.create_task(place.ask(number, max_tokens=200)) for number in range(8)]
            relays = place.gateway.admission.in_flight
            await until(lambda: len(relays) == 8 and all(len(each.tokens) > 3 for each in relays.values()), LIMIT_S)
            assert (await place.orders[1].order("flip", Role.PREFILL, fence=2)).ok
            assert await asyncio.gather(*asking) == undisturbed
            records = place.gateway.records.batch_from(9)[1]
            moves = [move for record in records for move in record.moves]
            assert {move.kind for move in moves} == {"migration"}
            assert {(move.from_worker, move.to_worker) for move in moves} == {("w-1", "w-2")}
            links = place.gateway.fleet.links
            await until(lambda: all(holds_nothing(link.pressure.load) for link in links.values()), LIMIT_S)


async def test_paced_workers_serve_through_the_same_gateway_and_are_marked(tmp_path: Path) -> None:
    configs = [paced_config(tmp_path, name) for name in NAMES]
    with running(*configs) as process:
        async with front(SeededText(128_256), "llama-70b", [process]) as place:
            await place.place(Role.PREFILL, Role.DECODE, Role.DECODE)
            split = await asyncio.gather(*[place.ask(number, max_tokens=64) for number in range(6)])
            records = place.gateway.records.batch_from(0)[1]
            streamed = await place.ask(1, max_tokens=64, stream=True)
            assert streamed.count("data: ") >= 3
            assert {(record.rule, record.simulated, record.status) for record in records} == {("remote", True, 200)}
            place.take(LOCAL)
            assert [await place.ask(number, max_tokens=64) for number in range(6)] == split
