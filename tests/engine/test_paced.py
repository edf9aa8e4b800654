from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from worker_client import LIMIT_S, Stream, WorkerClient, split
from worker_process import paced_config

from engine.cost_model import CostModel, seeded_token
from engine.device_catalogue import cost_model
from engine.meter import MeterReader
from engine.paced import scaled
from engine.seeded_pool import SeededPool
from engine.types import DecodeItem, FinishReason, PrefillChunk, Role, SamplingParams, StepPlan, WorkKind
from engine.wire import Lease, Prefilled, Rejected
from engine.worker import WorkerHost

PROMPT = list(range(100, 400))
GREEDY = SamplingParams()


class Pair:
    """A prefill and a decode worker in one host, and a gateway's connections to them."""

    def __init__(self, shm_dir: Path) -> None:
        self.shm_dir = shm_dir
        self.host = WorkerHost([paced_config(shm_dir, name) for name in ("w-0", "w-1")])

    async def open(self) -> None:
        first, second = self.host.start()
        self.prefill, self.decode = await WorkerClient.open(first), await WorkerClient.open(second)
        await self.prefill.place(Role.PREFILL)
        await self.decode.place(Role.DECODE)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    await pair.open()
    yield pair
    assert await asyncio.to_thread(pair.host.stop)


async def test_a_split_request_gives_the_seeded_tokens_as_a_local_one_does(pair: Pair) -> None:
    run = await split(pair.prefill, pair.decode, "split", PROMPT, max_tokens=20, seed=5)
    alone = await pair.decode.local("local", PROMPT, max_tokens=20, seed=5)
    expected = [seeded_token(5, position, 128256) for position in range(300, 320)]
    assert run.tokens == alone.tokens == expected
    assert run.positions == list(range(300, 320))
    assert (run.finish, run.error) == (FinishReason.LENGTH, "")
    await pair.prefill.idle()
    await pair.decode.idle()


async def test_many_requests_at_once_all_end_with_their_own_tokens(pair: Pair) -> None:
    runs = await asyncio.gather(
        *(split(pair.prefill, pair.decode, f"r{n}", [n, *PROMPT], max_tokens=10, seed=n) for n in range(1, 13))
    )
    for seed, run in enumerate(runs, 1):
        assert run.tokens == [seeded_token(seed, position, 128256) for position in range(301, 311)]


async def test_a_step_message_carries_load_and_cache_changes(pair: Pair) -> None:
    await pair.decode.local("r", PROMPT, max_tokens=40)
    assert pair.decode.steps[0].cache is not None
    assert pair.decode.steps[0].cache.reset
    assert len(pair.decode.cached) == (300 + 39) // 16
    assert any(step.load.num_running == 1 for step in pair.decode.steps)


def overwrite(lease: Lease, position: int) -> None:
    """Damage one token's KV in the holder's pool."""
    block, offset = divmod(position, lease.layout.block_tokens)
    with open(lease.pool_path, "r+b") as pool:
        pool.seek(lease.blocks[block] * lease.layout.block_bytes + offset * 8)
        pool.write(b"\xff" * 8)


async def test_a_corrupted_block_is_found_at_the_end_of_the_handoff(pair: Pair) -> None:
    await pair.decode.reserve("r", PROMPT)
    prefilled: Prefilled = await pair.prefill.prefill("r", PROMPT)
    assert prefilled.lease is not None
    overwrite(prefilled.lease, 37)
    pair.decode.pull("r", prefilled.lease, prefilled.first_token)
    stream = pair.decode.streams["r"]
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert stream.error == "handoff: the copied KV does not hold the prompt's token at position 37"
    await pair.decode.idle()


async def test_a_handoff_that_breaks_unexpectedly_is_told_to_the_gateway_too(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("cannot reshape")

    monkeypatch.setattr("engine.handoff.HandoffAsker.pull", broken)
    stream = await pair.decode.reserve("r", PROMPT)
    prefilled = await pair.prefill.prefill("r", PROMPT)
    pair.decode.pull("r", prefilled.lease, prefilled.first_token)
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert stream.error == "handoff: ValueError: cannot reshape"
    await pair.decode.idle()


async def test_a_pull_of_nothing_that_was_reserved_is_rejected(pair: Pair) -> None:
    prefilled: Prefilled = await pair.prefill.prefill("r", PROMPT)
    assert prefilled.lease is not None
    pair.decode.streams["other"] = Stream()
    pair.decode.pull("other", prefilled.lease, 1)
    answer = await asyncio.wait_for(pair.decode.streams["other"].answer, LIMIT_S)
    assert isinstance(answer, Rejected)
    assert answer.code == "unknown"


async def test_a_worker_admits_only_what_its_role_serves(pair: Pair) -> None:
    answer = await pair.decode.prefill("p", PROMPT)
    assert isinstance(answer, Rejected)
    assert (answer.code, answer.detail) == ("role", "a worker with role decode does not admit prefill work")
    stream = pair.prefill.submit("l", WorkKind.LOCAL, PROMPT)
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert stream.error.startswith("role")


async def test_a_lost_gateway_frees_what_its_requests_held(pair: Pair) -> None:
    other = await WorkerClient.open(pair.host.addresses[1], peer_id="leaves")
    stream = other.submit("long", WorkKind.LOCAL, PROMPT, max_tokens=4000)
    await asyncio.wait_for(stream.some.wait(), LIMIT_S)
    other.close()
    await pair.decode.idle()


async def test_the_meter_counts_the_modelled_work_and_marks_it_simulated(pair: Pair, tmp_path: Path) -> None:
    await split(pair.prefill, pair.decode, "r", PROMPT, max_tokens=20)
    reading = MeterReader(tmp_path / "w-0.meter").read(0)
    assert reading.simulated
    assert reading.counters["prefill/prefill"].tokens == 300
    reading = MeterReader(tmp_path / "w-1.meter").read(0)
    assert reading.counters["decode/decode"].tokens == 19
    ends = [step.end_unix_s for step in reading.steps]
    starts = [step.start_unix_s for step in reading.steps]
    assert starts[1:] == pytest.approx(ends[:-1], abs=1e-5), "steps follow each other without a gap"
    assert sum(reading.histograms["handoff"].values()) == 1


async def cancelled_somewhere(pair: Pair, name: str, rng: random.Random) -> Stream:
    """One split request that its gateway gives up at a random stage, or not at all."""
    prompt = [rng.randrange(1000) for _ in range(rng.randrange(1, 200))]
    stage = rng.choice(["never", "reserved", "prefilled", "pulling", "decoding"])
    stream = await pair.decode.reserve(name, prompt, max_tokens=30)
    if stage == "reserved":
        pair.decode.cancel(name)
        return stream
    prefilled: Prefilled = await pair.prefill.prefill(name, prompt, max_tokens=30)
    assert prefilled.lease is not None
    if stage == "prefilled":
        pair.decode.cancel(name)
        pair.prefill.cancel(name)
        return stream
    pair.decode.pull(name, prefilled.lease, prefilled.first_token)
    if stage == "pulling":
        pair.decode.cancel(name)
    elif stage == "decoding":
        await asyncio.wait_for(stream.some.wait(), LIMIT_S)
        pair.decode.cancel(name)
    return stream


@pytest.mark.parametrize("seed", range(4))
async def test_wherever_requests_are_cancelled_each_ends_once_and_nothing_stays(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    streams = await asyncio.gather(*(cancelled_somewhere(pair, f"r{n}", rng) for n in range(16)))
    for stream in streams:
        await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
        assert stream.finish in (FinishReason.CANCELLED, FinishReason.LENGTH)
        first = stream.positions[0] if stream.positions else 0
        assert stream.positions == list(range(first, first + len(stream.positions)))
    await pair.decode.idle()
    await pair.prefill.idle()


def test_speed_shortens_everything_and_leaves_the_fractions() -> None:
    cost: CostModel = cost_model("h100-sxm-80gb", "llama-3.1-70b-fp8")
    fast = scaled(cost, 10.0)
    assert fast.decode_seconds(20_000, 15) == pytest.approx(cost.decode_seconds(20_000, 15) / 10)
    assert fast.prefill_seconds(100, 5000, 100, 1) == pytest.approx(cost.prefill_seconds(100, 5000, 100, 1) / 10)
    assert fast.handoff_seconds(1000) == pytest.approx(cost.handoff_seconds(1000) / 10)
    assert scaled(cost, 1.0) is cost


def test_the_seeded_pool_holds_what_was_computed_and_finds_what_was_not(tmp_path: Path) -> None:
    pool = SeededPool(tmp_path / "w-1.kv", 4 * 8, 8)
    pool.compute(StepPlan(1, prefill=(PrefillChunk(0, (10, 11, 12), 0, (5, 2), None),)))
    pool.compute(StepPlan(2, prefill=(PrefillChunk(0, (13, 14), 3, (5, 2), GREEDY),)))
    pool.compute(StepPlan(3, decode=(DecodeItem(0, 15, 5, (5, 2), GREEDY),)))
    tokens = [10, 11, 12, 13, 14, 15]
    assert pool.first_wrong([5, 2], tokens, 0) is None
    assert pool.first_wrong([2], tokens, 4) is None
    assert pool.first_wrong([5, 2], [10, 11, 12, 13, 14, 16], 0) == 5
    assert pool.first_wrong([2, 5], tokens, 0) == 0
    pool.close()
