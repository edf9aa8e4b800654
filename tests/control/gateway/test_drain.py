"""A gateway that is told to stop: what is open ends well, what comes is told, and what is left is told why."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from gateway_builders import House, chat_body, house, until

from control.gateway.drain import Server
from control.gateway.null_worker import NullConfig
from control.listener import bind_listener
from engine.text import ModelText

SLOW = NullConfig(step_s=0.01)


class Served:
    """A gateway on a server of ours, and how it is told to stop."""

    def __init__(self, place: House, *, limit_s: float, idle_s: float) -> None:
        gateway = place.gateway
        config = uvicorn.Config(gateway, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
        self.server = Server(
            config, limit_s=limit_s, idle_s=idle_s, on_stop=gateway.stop, on_limit=lambda: gateway.give_up(limit_s)
        )
        self.listener = bind_listener("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.task = asyncio.create_task(self.server.serve(sockets=[self.listener]))

    def stop(self) -> None:
        self.server.should_exit = True


@contextlib.asynccontextmanager
async def served(
    text: ModelText, *, limit_s: float = 10.0, idle_s: float = 10.0
) -> AsyncIterator[tuple[House, Served]]:
    async with house(text, [SLOW]) as place:
        made = Served(place, limit_s=limit_s, idle_s=idle_s)
        await until(lambda: made.server.started)
        yield place, made
        made.server.should_exit = made.server.force_exit = True
        await made.task


async def stream_to_its_end(place: Served, max_tokens: int, *, stop_after: int) -> list[Any]:
    """All events of a streamed chat; the server is told to stop when `stop_after` of them have come."""
    events: list[Any] = []
    body = chat_body(stream=True, max_tokens=max_tokens)
    async with (
        httpx.AsyncClient(timeout=10.0) as client,
        client.stream("POST", f"{place.url}/v1/chat/completions", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if line:
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
            if len(events) == stop_after:
                place.stop()
    return events


async def test_an_open_stream_is_finished(text: ModelText) -> None:
    async with served(text) as (_, place):
        events = await stream_to_its_end(place, 60, stop_after=3)
        assert events[-1] == "[DONE]"
        assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_what_is_left_at_the_limit_ends_with_an_error_that_says_so(text: ModelText) -> None:
    async with served(text, limit_s=0.05) as (house_, place):
        events = await stream_to_its_end(place, 4000, stop_after=3)
        assert events[-1]["error"]["code"] == "gateway_stopping"
        assert "drain_limit_s (0.05 s)" in events[-1]["error"]["message"]
        await place.task
        assert house_.records[-1].status == 503


async def test_a_request_on_an_open_connection_is_served_and_told_that_it_was_the_last(text: ModelText) -> None:
    async with served(text) as (_, place), httpx.AsyncClient(base_url=place.url, timeout=10.0) as client:
        before = await client.get("/readyz")
        assert (before.status_code, before.headers.get("connection")) == (200, None)
        place.stop()
        await until(lambda: not place.server.servers[0].is_serving())
        answer = await client.post("/v1/chat/completions", json=chat_body())
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        await place.task


async def test_it_is_not_ready_and_takes_no_new_connection_while_it_stops(text: ModelText) -> None:
    async with served(text) as (house_, place), httpx.AsyncClient(base_url=place.url) as client:
        await client.get("/healthz")
        place.stop()
        await until(lambda: house_.gateway.is_stopping)
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "the gateway is stopping"
        async with httpx.AsyncClient() as other:
            await place.task
            try:
                await other.get(f"{place.url}/healthz")
                raise AssertionError("it accepted a connection")
            except httpx.ConnectError:
                pass


async def test_an_idle_connection_is_closed_after_its_time(text: ModelText) -> None:
    async with served(text, idle_s=0.1) as (_, place), httpx.AsyncClient(base_url=place.url) as client:
        await client.get("/healthz")
        assert len(place.server.server_state.connections) == 1
        place.stop()
        await place.task
        assert not place.server.server_state.connections
