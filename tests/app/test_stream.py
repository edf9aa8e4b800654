"""The event stream: who may listen, one building per reading for everybody, and what a slow or late reader gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import tzinfo
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from app.parts import PARTS
from app.source import RECHECK_S, Hub
from app.stream import PATH, Part, Streams
from app.visits import VISIT_S
from control.types.api import Principal
from tests.app.builders import Clock, plane_and_hub

WHO = Principal(name="ann", role="viewer")
COOKIE = "phaseline_8501"


def console(hub: Hub) -> TestClient:
    streams = Streams(hub=hub, parts=PARTS)

    async def live(request: Request) -> Response:
        return await streams.answer(request)

    return TestClient(Starlette(routes=[Route(PATH, live)]), base_url="http://127.0.0.1:8501")


def visit(hub: Hub, token: str = "viewer-token") -> str:
    return hub.visits.open(token, WHO, hub.now())


# --- who may listen ------------------------------------------------------------


def test_the_route_asks_for_the_page_s_own_cookie() -> None:
    _, hub, clock = plane_and_hub()
    client = console(hub)
    asked = {"parts": "wall,wall_lines", "once": "1"}
    assert client.get(PATH, params=asked).status_code == 401
    assert client.get(PATH, params=asked, headers={"Authorization": "Bearer viewer-token"}).status_code == 401
    client.cookies.set(COOKIE, "made-up")
    assert client.get(PATH, params=asked).status_code == 401
    client.cookies.set(COOKIE, visit(hub))
    hub.admit("viewer-token")
    answer = client.get(PATH, params=asked)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json()["parts"]["wall"]["word"] == "Fine"
    clock.at += VISIT_S
    assert client.get(PATH, params=asked).status_code == 401


@pytest.mark.parametrize("parts", ["", "secrets", "wall,secrets"])
def test_a_part_that_does_not_exist_is_refused_by_name(parts: str) -> None:
    _, hub, _ = plane_and_hub()
    client = console(hub)
    client.cookies.set(COOKIE, visit(hub))
    answer = client.get(PATH, params={"parts": parts})
    assert answer.status_code == 400
    assert "wall_lines" in answer.json()["error"]


async def test_logging_out_ends_the_streams_of_that_visit() -> None:
    hub, _, listen = listening()
    mine = visit(hub)
    stream = listen(mine)
    assert "parts" in await said(stream)
    hub.visits.close(mine)
    hub.refresh()
    assert await event(stream) == "event: ended\ndata: {}\n\n"
    assert [each async for each in stream] == []


async def test_a_token_that_the_plane_takes_back_ends_its_streams() -> None:
    hub, clock, listen = listening()
    stream = listen(visit(hub, "revoked-token"))
    assert await event(stream) == "event: ended\ndata: {}\n\n"
    kept = listen(visit(hub))
    await said(kept)
    clock.at += RECHECK_S
    hub.refresh()
    assert "parts" in await said(kept)


# --- what they get ------------------------------------------------------------


def listening(parts: dict[str, Any] | None = None) -> tuple[Hub, Clock, Callable[[str], AsyncIterator[str]]]:
    """A hub whose readings the streams are told of."""
    _, hub, clock = plane_and_hub()
    hub.admit("viewer-token")
    hub.refresh()
    streams = Streams(hub=hub, parts=parts or PARTS)
    streams.start()
    names = tuple(sorted(streams.parts))
    return hub, clock, lambda reference: streams.events(reference, names, "UTC")


async def event(stream: AsyncIterator[str]) -> str:
    """The next message; the first word of a stream is only how soon to come back."""
    async with asyncio.timeout(20):
        found = await anext(stream)
        return await anext(stream) if found.startswith("retry:") else found


async def said(stream: AsyncIterator[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await event(stream)).partition("data: ")[2])
    return found


async def test_each_part_is_built_once_per_reading_for_everybody() -> None:
    built: list[float] = []

    def part(hub: Hub, _: tzinfo) -> Part:
        built.append(hub.now())
        return Part(str(len(built)))

    hub, clock, listen = listening({"figures": part})
    streams = [listen(visit(hub)) for _ in range(10)]
    assert [(await said(each))["parts"] for each in streams] == [{"figures": 1}] * 10
    clock.at += 1
    hub.refresh()
    assert [(await said(each))["parts"] for each in streams] == [{"figures": 2}] * 10
    assert len(built) == 2


async def test_what_has_not_changed_is_not_sent_again() -> None:
    hub, _, listen = listening(
        {"same": lambda hub, tz: Part("1"), "moves": lambda hub, tz: Part(str(hub.look().reading))}
    )
    stream = listen(visit(hub))
    assert set((await said(stream))["parts"]) == {"same", "moves"}
    hub.refresh()
    assert set((await said(stream))["parts"]) == {"moves"}


async def test_a_reader_that_missed_a_turn_gets_the_whole_and_never_a_queue() -> None:
    def part(hub: Hub, _: tzinfo) -> Part:
        return Part(json.dumps({"whole": hub.look().reading}), json.dumps({"news": hub.look().reading}))

    hub, _, listen = listening({"lines": part})
    stream = listen(visit(hub))
    assert (await said(stream))["parts"]["lines"] == {"whole": 1}
    hub.refresh()
    assert (await said(stream))["parts"]["lines"] == {"news": 2}
    for _ in range(3):
        hub.refresh()
        await asyncio.sleep(0)
    assert (await said(stream))["parts"]["lines"] == {"whole": 5}


async def test_a_part_at_fault_does_not_silence_the_others() -> None:
    def broken(hub: Hub, tz: tzinfo) -> Part:
        raise KeyError("surprise")

    hub, _, listen = listening({"broken": broken, "sound": lambda hub, tz: Part("1")})
    assert (await said(listen(visit(hub))))["parts"] == {"sound": 1}
