"""Clients that read or write slowly hold nothing for ever, and all that is kept for them is bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from gateway_builders import LOCAL_ALWAYS, chat_body, house, until

from control.gateway.body import Bodies
from control.gateway.errors import GatewayError
from control.gateway.http import Disconnected
from control.gateway.null_worker import NullConfig
from engine.text import ModelText

SCOPE = {"type": "http", "path": "/v1/chat/completions", "method": "POST", "headers": []}


class SlowClient:
    """An ASGI client that sends its request, takes `reads` messages of the answer, and then nothing."""

    def __init__(self, body: bytes, reads: int) -> None:
        self.num_sent = 0
        self._body: bytes | None = body
        self._reads = reads

    async def receive(self) -> dict[str, Any]:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        self.num_sent += 1
        if self.num_sent > self._reads:
            await asyncio.Event().wait()


@pytest.mark.parametrize(("is_stream", "reads"), [(True, 0), (True, 1), (True, 3), (False, 0), (False, 1)])
async def test_a_client_that_reads_nothing_more_is_ended_with_the_reason(
    text: ModelText, is_stream: bool, reads: int
) -> None:
    limits = {"client_stall_s": 0.05}
    async with house(text, [NullConfig(step_s=0.002)], limits=limits, policy=LOCAL_ALWAYS) as place:
        body = chat_body(stream=is_stream, max_tokens=100 if is_stream else 2)
        client = SlowClient(msgspec.json.encode(body), reads)
        await place.gateway(SCOPE, client.receive, client.send)
        (record,) = place.records
        assert record.error == "the client read nothing for 0.05 s, the bound client_stall_s"
        assert record.status == 499, "its own doing: neither good nor bad"
        assert not place.gateway.admission.in_flight
        await until(lambda: not place.workers[0]._running)


async def test_a_client_that_reads_slowly_but_reads_gets_all(text: ModelText) -> None:
    async with house(text, [NullConfig()], limits={"client_stall_s": 0.2}, policy=LOCAL_ALWAYS) as place:
        client = SlowClient(msgspec.json.encode(chat_body(stream=True, max_tokens=40)), 10_000)
        quick = client.send

        async def slow(message: dict[str, Any]) -> None:
            await asyncio.sleep(0.02)
            await quick(message)

        await place.gateway(SCOPE, client.receive, slow)
        (record,) = place.records
        assert (record.status, record.output_tokens) == (200, 40)


class Sender:
    """A client whose body comes in these parts; None: it goes away."""

    def __init__(self, *parts: bytes | None) -> None:
        self._parts = list(parts)

    async def __call__(self) -> dict[str, Any]:
        part = self._parts.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}


async def test_all_bodies_together_are_bounded_and_counted_until_they_are_used() -> None:
    bodies = Bodies(10, 15)
    async with bodies.read(Sender(b"12345", b"67890"), None) as first:
        assert first == b"1234567890"
        with pytest.raises(GatewayError) as refused:
            async with bodies.read(Sender(b"123456"), None):
                raise AssertionError("it is over the bound")
        assert refused.value.status == 429
        async with bodies.read(Sender(b"12345"), None) as second:
            assert (second, bodies.held_bytes) == (b"12345", 15)
    assert bodies.held_bytes == 0


@pytest.mark.parametrize(
    ("parts", "error"), [((b"12345678", b"9abcdef"), GatewayError), ((b"1234", None), Disconnected)]
)
async def test_a_body_that_is_too_large_or_never_ends_is_not_held(
    parts: tuple[bytes | None, ...], error: type[Exception]
) -> None:
    bodies = Bodies(10, 1000)
    with pytest.raises(error):
        async with bodies.read(Sender(*parts), None):
            raise AssertionError("it is not whole")
    assert bodies.held_bytes == 0
