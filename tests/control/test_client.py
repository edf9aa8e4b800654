"""The client against the real API over loopback, with the plane ticking and the real history in SQLite."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from control.client import PhaselineClient
from control.errors import (
    CommandRefused,
    ControlError,
    FleetError,
    NotAllowed,
    NotFound,
    PlaneUnreachable,
    StaleVersion,
)
from control.gateway import link
from control.history.store import History
from control.plane_http import problem_error
from control.types.api import Principal
from control.types.commands import Action, CommandRequest, CommandState, Verb
from control.types.workers import Role
from tests.control.builders import NOW, FakeFleet, record, resize
from tests.control.rig import Rig
from tests.control.test_gateway_hub import HELLO

T = TypeVar("T")
LIMIT_S = 20.0


@dataclass
class Served:
    """A running plane with its API, and a client for each kind of principal."""

    rig: Rig
    url: str
    port: int

    def client(self, role: str = "operator") -> PhaselineClient:
        return PhaselineClient(self.url, self.rig.token(role) if role else "", timeout_s=LIMIT_S)

    async def ask(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """A call of the synchronous client, beside the server."""
        return await asyncio.to_thread(call, *args, **options)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    began = time.monotonic()
    history = History.open(f"sqlite:///{tmp_path / 'history.db'}")
    rig = Rig(tmp_path, FakeFleet.of(), history)
    await rig.start(tick_s=0.2)
    rig.plane._now = lambda: NOW + 1 + time.monotonic() - began
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(rig.app(), log_level="warning", lifespan="off", ws="websockets-sansio"))
    serving = asyncio.create_task(server.serve([listener]))
    running = asyncio.create_task(rig.plane.run())
    yield Served(rig, f"http://127.0.0.1:{port}", port)
    await rig.plane.close()
    server.should_exit = True
    await asyncio.gather(serving, running)
    history.close()


async def test_an_operators_session_from_login_to_undo(served: Served) -> None:
    with served.client() as first:
        code = await served.ask(first.create_login_code)
        session = await served.ask(PhaselineClient(served.url).login, code)
    with PhaselineClient(served.url, session.token, LIMIT_S) as client:
        assert await served.ask(client.whoami) == Principal(name="operator", role="operator")
        assert (await served.ask(client.health))["status"] == "ok"
        assert await served.ask(client.ready) == {"status": "ready"}
        assert await served.ask(client.fleets) == ["test"]
        assert (await served.ask(client.info)).version == "test"

        request = CommandRequest(action=resize(prefill=2, decode=2), why="peak", base_version=1)
        preview = await served.ask(client.preview, request)
        assert preview.pools_after == {"prefill": 2, "decode": 2, "mixed": 0}
        command = await served.ask(client.submit, request)
        done = await served.ask(client.wait, command.command_id, LIMIT_S)
        assert done.state == CommandState.DONE
        assert served.rig.roles() == [Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE]
        snapshot = await served.ask(client.snapshot)
        assert snapshot.desired.version == 2
        assert [pool.num_ready for pool in snapshot.pools] == [2, 2, 0]

        undo = await served.ask(client.undo, command.command_id, why="over")
        assert (await served.ask(client.wait, undo.command_id, LIMIT_S)).state == CommandState.DONE
        assert [each.command_id for each in await served.ask(client.commands, 2)] == [
            undo.command_id,
            command.command_id,
        ]
        assert (await served.ask(client.command, command.command_id)).undone_by == undo.command_id
        assert (await served.ask(client.desired)).version == 3


async def test_errors_come_back_as_they_were_raised(served: Served) -> None:
    with served.client() as client:
        with pytest.raises(CommandRefused) as refused:
            await served.ask(client.submit, CommandRequest(action=resize(prefill=9)))
        assert (refused.value.field, refused.value.value, refused.value.bound) == ("prefill", 9, "sum <= 4")
        with pytest.raises(StaleVersion) as stale:
            await served.ask(client.submit, CommandRequest(action=resize(prefill=1), base_version=77))
        assert stale.value.status == 409
        with pytest.raises(NotFound, match="no command 99"):
            await served.ask(client.command, 99)
        with pytest.raises(NotFound, match="nonsense"):
            await served.ask(client.series, "nonsense", NOW)
    with served.client("viewer") as viewer:
        with pytest.raises(NotAllowed) as forbidden:
            await served.ask(viewer.submit, CommandRequest(action=resize(prefill=1)))
        assert forbidden.value.status == 403
    with served.client("") as nobody:
        with pytest.raises(NotAllowed) as unknown:
            await served.ask(nobody.snapshot)
        assert unknown.value.status == 401


async def test_routing_what_if_and_history_over_the_wire(served: Served) -> None:
    served.rig.plane.gateways.on_records("g1@1", 1, [record("r1", arrival_unix_s=NOW), record("r2", prompt_tokens=10)])
    served.rig.plane.wake()
    with served.client("viewer") as client:
        async with asyncio.timeout(LIMIT_S):
            while len(found := await served.ask(client.requests, limit=10)) < 2:
                await served.ask(next, client.events())
        assert {each.request_id for each in found} == {"r1", "r2"}
        assert (await served.ask(client.request, "r1")).prompt_tokens == 1000
        heatmap = await served.ask(client.heatmap, NOW - 60, NOW + 60, metric="ttft")
        assert (sum(heatmap.counts), heatmap.requests.kept, heatmap.is_estimated) == (2, {"share": 2}, False)
        slow = await served.ask(client.explanation, NOW - 60, NOW + 60, metric="ttft", good=True)
        assert (slow.num_records + slow.num_rest_records, slow.differences) == (2, ())
        policy, weights = await served.ask(client.routing)
        assert (policy.min_fleet_devices, weights) == (2, {})
        changed = await served.ask(client.what_if_routing, {"min_fleet_devices": 50})
        assert (changed.after, changed.num_changed) == ({"small_fleet": 2}, 2)
        names = {each.name for each in await served.ask(client.metrics)}
        assert {"prefill_compute_wall", "ttft_p99_s"} <= names
        series = await served.ask(client.series, "num_workers", NOW - 10, NOW + 60)
        assert series.fleet_id == "test"
        roles = await served.ask(client.roles, NOW - 1000, NOW + 60)
        assert {each.worker_id for each in roles} == {"w0", "w1", "w2", "w3"}


async def test_events_tell_of_ticks_and_commands(served: Served) -> None:
    with served.client() as client:
        heard_something = threading.Event()

        def listen() -> list[str]:
            found = []
            for event in client.events():
                heard_something.set()
                if event["event"] == "command":
                    found.append(event["state"])
                    if event["state"] == "done":
                        return found
            return found

        listening = asyncio.create_task(asyncio.to_thread(listen))
        assert await served.ask(heard_something.wait, LIMIT_S)
        await served.ask(client.submit, CommandRequest(action=resize(prefill=2, decode=2)))
        assert (await asyncio.wait_for(listening, LIMIT_S))[-1] == "done"


async def test_a_gateway_connects_with_the_service_token_only(served: Served) -> None:
    url = f"ws://127.0.0.1:{served.port}/api/v1/gateways/connect"
    headers = {"Authorization": f"Bearer {served.rig.token('service')}"}
    async with connect(url, additional_headers=headers, proxy=None) as gateway:
        await gateway.send(link.encode(HELLO))
        first = link.decode(bytes(await gateway.recv(decode=False)))
        assert isinstance(first, link.TablePush)
        assert first.table == served.rig.plane.gateways.tables.current
    for token in (served.rig.token("operator"), "wrong"):
        with pytest.raises((ConnectionClosed, Exception), match=r"403|4401"):
            async with connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None) as refused:
                await refused.recv()


async def test_no_answer_is_plane_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = PhaselineClient(f"http://127.0.0.1:{port}", patience_s=0.0)
    with client, pytest.raises(PlaneUnreachable) as gone:
        client.snapshot()
    assert gone.value.retry_helps


def test_an_answer_that_is_no_problem_body_is_still_one_line() -> None:
    strange = httpx.Response(502, text="<html>proxy</html>")
    error = problem_error(strange)
    assert isinstance(error, FleetError)
    assert str(error) == "the plane answered 502 Bad Gateway"
    assert isinstance(problem_error(httpx.Response(404)), NotFound)
    unknown = httpx.Response(418, json={"title": "t", "status": 418, "detail": "teapot", "type": "urn:phaseline:New"})
    assert type(problem_error(unknown)) is ControlError


def test_an_undo_is_a_command_like_any() -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.content)
        return httpx.Response(
            409, json={"title": "t", "status": 409, "detail": "stale", "type": "urn:phaseline:StaleVersion"}
        )

    with (
        PhaselineClient("http://plane", "t", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(StaleVersion),
    ):
        client.undo(7, why="no")
    assert b'"command_id": 7' in asked[0]
    assert Action(verb=Verb.UNDO, command_id=7).verb.value.encode() in asked[0]


async def test_recorded_events_come_by_kind_and_the_live_stream_goes_on(served: Served) -> None:
    """The fleet of the rig has started: that is what happened so far."""
    with served.client() as client:
        started = await served.ask(client.fleet_events, 0.0, kinds=("started", "died"))
        assert {each.kind for each in started} == {"started"}
        assert await served.ask(client.fleet_events, 0.0, kinds=("failover",)) == []
        assert (await served.ask(lambda: next(client.events())))["event"] == "tick"
