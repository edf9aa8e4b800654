"""Real workers with a tiny model die, are stopped and hang at every stage: answers are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "control" / "gateway"))

from fronts import NAMES, Front, front, holds_nothing
from gateway_builders import until
from worker_client import LIMIT_S
from worker_process import WorkerProcess, real_config, running

from engine.convert import make_tiny_model
from engine.text import ModelText
from engine.types import Role

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
    await until(lambda: all(link.is_ready and holds_nothing(link.load) for link in links.values()), LIMIT_S)
    assert answers == [await place.ask(number, max_tokens=200) for number in range(4)]
