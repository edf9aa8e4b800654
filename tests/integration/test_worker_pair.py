"""Two real workers in two processes: prefill on one, handoff, decode on the other."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))

from worker_client import LIMIT_S, WorkerClient, split
from worker_process import WorkerProcess, real_config, running

from engine.connection import connect
from engine.convert import make_tiny_model
from engine.errors import ConnectionLost
from engine.meter import MeterReader
from engine.types import FinishReason, Role, WorkerState, WorkKind
from engine.wire import Hello, Prefilled

pytestmark = pytest.mark.integration
VOCAB = 256


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture
def shm_dir(tmp_path: Path) -> Path:
    return tmp_path / "shm"


@pytest.fixture
def processes(shm_dir: Path, model_dir: Path, request: pytest.FixtureRequest) -> Iterator[list[WorkerProcess]]:
    wish = getattr(request, "param", "auto")
    with (
        running(real_config(shm_dir, model_dir, "w-0", handoff_transport=wish)) as first,
        running(real_config(shm_dir, model_dir, "w-1", handoff_transport=wish)) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def shared(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WorkerProcess]]:
    """A pair for the tests that leave it as they found it."""
    shm_dir = tmp_path_factory.mktemp("shared") / "shm"
    with (
        running(real_config(shm_dir, model_dir, "w-0")) as first,
        running(real_config(shm_dir, model_dir, "w-1")) as second,
    ):
        yield [first, second]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def prompt_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB) for _ in range(length)]


async def open_when_loaded(address: str) -> WorkerClient:
    """Connecting is refused until the model is loaded."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await WorkerClient.open(address)
            except ConnectionLost:
                await asyncio.sleep(0.02)


async def placed_pair(processes: list[WorkerProcess]) -> tuple[WorkerClient, WorkerClient]:
    prefill, decode = [await open_when_loaded(process.addresses[0]) for process in processes]
    await prefill.place(Role.PREFILL)
    await decode.place(Role.DECODE)
    return prefill, decode


@pytest.mark.parametrize("processes", ["shm", "tcp"], indirect=True)
async def test_a_split_request_gives_the_tokens_of_an_undisturbed_local_run(processes: list[WorkerProcess]) -> None:
    prefill, decode = await placed_pair(processes)
    cases = [(seed, prompt_of(seed, length)) for seed, length in enumerate([1, 15, 16, 17, 100, 130])]
    options = {seed: {"max_tokens": 24, "temperature": 0.8 * (seed % 2), "seed": seed} for seed, _ in cases}
    split_runs = await asyncio.gather(
        *(split(prefill, decode, f"split-{seed}", prompt, **options[seed]) for seed, prompt in cases)
    )
    assert (await decode.order("drain", fence=2)).ok
    await decode.status(WorkerState.DRAINED)
    assert (await prefill.order("flip", Role.MIXED, fence=2)).ok
    for (seed, prompt), run in zip(cases, split_runs, strict=True):
        alone = await prefill.local(f"local-{seed}", prompt, **options[seed])
        assert (alone.finish, alone.error, len(alone.tokens)) == (FinishReason.LENGTH, "", 24)
        assert run.tokens == alone.tokens
        assert run.positions == list(range(len(prompt), len(prompt) + 24))
    await prefill.idle()
    await decode.idle()


async def test_the_second_turn_copies_only_what_the_decode_worker_lacks(shared: list[WorkerProcess]) -> None:
    prefill, decode = await placed_pair(shared)
    first = prompt_of(1, 64)
    one = await split(prefill, decode, "turn-1", first, max_tokens=16)
    second = first + one.tokens + prompt_of(2, 8)
    two = await split(prefill, decode, "turn-2", second, max_tokens=4)
    assert decode.streams["turn-2"].answer.result().num_cached >= 64
    assert two.tokens == (await decode.local("again", second, max_tokens=4)).tokens


async def test_a_holder_that_is_killed_in_a_handoff_is_a_rejection_and_frees_the_blocks(
    processes: list[WorkerProcess],
) -> None:
    prefill, decode = await placed_pair(processes)
    await split(prefill, decode, "connects-them", prompt_of(1, 20))
    stream = await decode.reserve("r", prompt_of(2, 40))
    prefilled: Prefilled = await prefill.prefill("r", prompt_of(2, 40))
    assert prefilled.lease is not None
    processes[0].pause()
    decode.pull("r", prefilled.lease, prefilled.first_token)
    assert (await decode.ping()).kv_blocks_held > 0
    processes[0].kill()
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert stream.error.startswith("handoff: worker w-0: the holder was lost in the middle of a handoff")
    await decode.idle()
    assert (await decode.local("still-serves", prompt_of(2, 40))).finish is FinishReason.LENGTH


async def test_a_request_cancelled_in_a_handoff_ends_once_and_frees_both_sides(shared: list[WorkerProcess]) -> None:
    prefill, decode = await placed_pair(shared)
    await split(prefill, decode, "connects-them", prompt_of(1, 20))
    stream = await decode.reserve("r", prompt_of(2, 40))
    prefilled: Prefilled = await prefill.prefill("r", prompt_of(2, 40))
    assert prefilled.lease is not None
    shared[0].pause()
    decode.pull("r", prefilled.lease, prefilled.first_token)
    decode.cancel("r")
    assert (await decode.ping()).kv_blocks_held > 0
    shared[0].resume()
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert (stream.finish, stream.tokens) == (FinishReason.CANCELLED, [])
    await decode.idle()
    await prefill.idle()


async def test_a_cancelled_or_abandoned_request_frees_its_blocks(shared: list[WorkerProcess]) -> None:
    _prefill, decode = await placed_pair(shared)
    stream = decode.submit("long", WorkKind.LOCAL, prompt_of(1, 40), max_tokens=400)
    await asyncio.wait_for(stream.some.wait(), LIMIT_S)
    decode.cancel("long")
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert stream.finish is FinishReason.CANCELLED
    await decode.idle()

    other = await WorkerClient.open(shared[1].addresses[0], peer_id="leaves")
    stream = other.submit("left", WorkKind.LOCAL, prompt_of(2, 40), max_tokens=400)
    await asyncio.wait_for(stream.some.wait(), LIMIT_S)
    other.close()
    await decode.idle()


async def test_workers_with_unequal_layouts_refuse_to_hand_off(shm_dir: Path, model_dir: Path) -> None:
    with (
        running(real_config(shm_dir, model_dir, "w-0")) as first,
        running(real_config(shm_dir, model_dir, "w-1", block_tokens=32)) as second,
    ):
        prefill, decode = await placed_pair([first, second])
        stream = await decode.reserve("r", prompt_of(1, 40))
        prefilled: Prefilled = await prefill.prefill("r", prompt_of(1, 40))
        assert prefilled.lease is not None
        decode.pull("r", prefilled.lease, prefilled.first_token)
        await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
        assert stream.error == "layout: layout.block_tokens differs: 32 here, 16 there"
        await decode.idle()


async def test_a_worker_tells_its_state_from_the_first_moment_and_leaves_its_meter(
    shm_dir: Path, model_dir: Path
) -> None:
    with running(real_config(shm_dir, model_dir)) as process:
        reader = MeterReader(shm_dir / "w-0.meter")
        first = reader.read(0)
        assert (first.address, first.epoch) == (process.addresses[0], 1)
        assert first.state in (WorkerState.STARTING, WorkerState.UNASSIGNED)
        client = await open_when_loaded(process.addresses[0])
        await client.place(Role.MIXED)
        await client.local("r", prompt_of(1, 40), max_tokens=4)
        reading = reader.read(0)
        assert (reading.state, reading.role, reading.simulated) == (WorkerState.READY, Role.MIXED, False)
        assert reading.counters["mixed/prefill"].tokens == 40
        assert reading.counters["mixed/decode"].tokens == 3
        assert names(shm_dir) == ["w-0-1.kv", "w-0.meter"]
        assert process.stop()
        assert names(shm_dir) == ["w-0.meter"]
        reader.close()


async def test_a_killed_worker_leaves_a_pool_that_its_next_epoch_removes(shm_dir: Path, model_dir: Path) -> None:
    with running(real_config(shm_dir, model_dir)) as process:
        await open_when_loaded(process.addresses[0])
        process.kill()
    assert (shm_dir / "w-0-1.kv").exists()
    with running(real_config(shm_dir, model_dir, epoch=2)) as process:
        client = await open_when_loaded(process.addresses[0])
        assert client.connection.welcome.epoch == 2
        assert names(shm_dir) == ["w-0-2.kv", "w-0.meter"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"model_dir": "/nonexistent"}, "config.json is missing"), ({"kv_bytes": 1}, "kv_bytes is 1, one KV block takes")],
)
async def test_a_worker_that_cannot_load_says_why_and_stays(
    shm_dir: Path, model_dir: Path, changes: dict[str, object], reason: str
) -> None:
    with running(real_config(shm_dir, **{"model_dir": model_dir, **changes})) as process:
        reader = MeterReader(shm_dir / "w-0.meter")
        async with asyncio.timeout(LIMIT_S):
            while (reading := reader.read(0)).state is not WorkerState.FAILED:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert reason in reading.reason
        assert reading.alive
        with pytest.raises(ConnectionLost, match="is not there"):
            await connect(process.addresses[0], Hello("x", "gateway", "t"))
        reader.close()
        assert process.stop()
