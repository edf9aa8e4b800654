from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from worker_client import LIMIT_S, Stream, WorkerClient
from worker_process import paced_config

from engine.types import FinishReason, Role, WorkerState, WorkKind
from engine.wire import Cancel, Goodbye, Prefilled, Rejected, ReleaseLease
from engine.worker import WorkerHost

PROMPT = list(range(100, 400))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """One mixed paced worker."""
    host = WorkerHost([paced_config(tmp_path, lease_s=0.2, max_batch=2, max_queue=2)])
    (address,) = host.start()
    plane = await WorkerClient.open(address, "plane")
    await plane.place(Role.MIXED)
    yield address
    assert await asyncio.to_thread(host.stop)


async def test_an_idle_worker_keeps_telling_gateways_that_it_lives(address: str) -> None:
    client = await WorkerClient.open(address)
    await until(lambda: len(client.steps) >= 3)
    assert [step.events for step in client.steps] == [[]] * len(client.steps)


async def test_every_gateway_hears_of_load_and_cache_but_only_of_its_own_tokens(address: str) -> None:
    busy, other = await WorkerClient.open(address), await WorkerClient.open(address, peer_id="other")
    plane = await WorkerClient.open(address, "plane")
    await busy.local("r", PROMPT)
    await until(lambda: other.cached == busy.cached)
    assert len(busy.cached) == (300 + 8 - 1) // 16
    assert all(step.events == [] for step in other.steps)
    assert plane.steps == []


async def test_two_connections_of_one_gateway_do_not_mix_their_requests(address: str) -> None:
    first, second = await WorkerClient.open(address), await WorkerClient.open(address)
    stream = first.submit("r", WorkKind.LOCAL, PROMPT, max_tokens=200)
    await asyncio.wait_for(stream.some.wait(), LIMIT_S)
    second.close()
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert (len(stream.tokens), stream.finish) == (200, FinishReason.LENGTH)


async def test_a_message_that_no_worker_takes_ends_the_connection(address: str) -> None:
    client = await WorkerClient.open(address)
    client.connection.send(Goodbye("?"))
    goodbye = await client.reply(Goodbye)
    assert goodbye.reason == "a worker takes no Goodbye"
    await asyncio.wait_for(client.closed, LIMIT_S)


async def test_unknown_cancels_and_releases_change_nothing(address: str) -> None:
    client = await WorkerClient.open(address)
    client.connection.send(Cancel("nobody", 3))
    client.connection.send(ReleaseLease("nothing"))
    assert (await client.local("r", PROMPT)).finish is FinishReason.LENGTH


async def test_a_lease_that_nobody_fetches_gives_its_blocks_back(address: str) -> None:
    client = await WorkerClient.open(address)
    prefilled = await client.prefill("r", PROMPT)
    assert isinstance(prefilled, Prefilled)
    assert (await client.ping()).num_leased == 1
    await client.idle()


async def test_a_lease_that_its_gateway_gives_up_is_free_at_once(address: str) -> None:
    client = await WorkerClient.open(address)
    prefilled: Prefilled = await client.prefill("r", PROMPT)
    assert prefilled.lease is not None
    client.connection.send(ReleaseLease(prefilled.lease.lease_id))
    assert (await client.ping()).kv_blocks_held == 0


async def test_a_reservation_that_is_never_pulled_ends(address: str) -> None:
    client = await WorkerClient.open(address)
    stream = await client.reserve("r", PROMPT)
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert stream.error.startswith("handoff: no Pull came")
    await client.idle()


async def test_a_full_queue_refuses_with_a_time_to_come_back(address: str) -> None:
    client = await WorkerClient.open(address)
    for number in range(2):
        client.submit(f"runs-{number}", WorkKind.LOCAL, [number + 1, *PROMPT], max_tokens=2000)
    await until(lambda: client.load.num_running == 2)
    for number in range(4):
        client.submit(f"more-{number}", WorkKind.LOCAL, [number + 10, *PROMPT], max_tokens=2000)
    refused: Stream = client.streams["more-3"]
    answer = await asyncio.wait_for(refused.answer, LIMIT_S)
    assert isinstance(answer, Rejected)
    assert (answer.code, answer.retry_after_s > 0) == ("queue_full", True)
    client.close()


async def test_a_drain_lets_what_runs_finish_and_says_when_it_has(address: str) -> None:
    client, plane = await WorkerClient.open(address), await WorkerClient.open(address, "plane")
    stream = client.submit("r", WorkKind.LOCAL, PROMPT, max_tokens=300)
    await asyncio.wait_for(stream.some.wait(), LIMIT_S)
    assert (await plane.order("drain", fence=2)).state is WorkerState.DRAINING
    late = client.submit("late", WorkKind.LOCAL, PROMPT)
    assert (await asyncio.wait_for(late.answer, LIMIT_S)).code == "draining"
    await plane.status(WorkerState.DRAINED)
    await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    assert (len(stream.tokens), stream.finish) == (300, FinishReason.LENGTH)
