"""Calls to controllers that are not well: what is asked again, what it may cost, and that nothing but a FleetError
comes out of it, so that the plane of the fleet goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.errors import ControlError, FleetError
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.steered import SteeredFleet
from control.fleets.attached.steering.calls import MAX_ANSWER_BYTES, Caller, Refused
from control.fleets.attached.steering.prometheus import PrometheusSteering
from control.fleets.attached.steering.ray_serve import RayServeSteering
from control.fleets.attached.steering.retries import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MAX_CALLS,
    is_worth_another,
    pause_s,
)
from control.fleets.attached.steering.sglang_router import SglangRouterSteering
from control.fleets.attached.types import Attachment
from tests.control.attached.fake_controllers import FakeRay, served

HEAD = b"HTTP/1.1 200 OK\r\n"


@dataclass(slots=True)
class RawServer:
    """Answers each connection with the next of `answers`, the last one again and again; None: not until `go`."""

    answers: list[bytes | None]
    heads: list[str] = field(default_factory=list)  # of the requests
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            self.asked.set()
            answer = self.answers[min(len(self.heads), len(self.answers)) - 1]
            if answer is None:
                await self.go.wait()
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def listening(*answers: bytes | None) -> AsyncIterator[RawServer]:
    found = RawServer(list(answers))
    server = await asyncio.start_server(found.talk, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        found.go.set()
        server.close()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


FINE = answer(b"{}")
BUSY = answer(b"busy", "503 Busy")


def caller(server: RawServer, pauses: list[float] | None = None, **told: Any) -> Caller:
    """Whose pauses are written down and not waited for."""

    async def paused(pause: float) -> None:
        if pauses is not None:
            pauses.append(pause)

    return Caller(server.url, share=lambda: 0.5, sleep=paused, **told)


async def test_a_question_is_asked_again_with_a_pause_between_and_an_order_is_not():
    pauses: list[float] = []
    async with listening(BUSY, b"", FINE) as server:
        assert await caller(server, pauses).json("GET", "/") == {}
        assert len(server.heads) == 3
        assert pauses == [0.1, 0.2]
    async with listening(BUSY, FINE) as server:
        with pytest.raises(Refused, match="answers 503: busy"):
            await caller(server).json("POST", "/", {})
        assert len(server.heads) == 1


async def test_whoever_is_never_well_is_asked_so_often_and_no_more():
    async with listening(BUSY) as server:
        with pytest.raises(Refused):
            await caller(server).json("GET", "/")
        assert len(server.heads) == MAX_CALLS


async def test_a_connection_that_never_came_to_be_is_tried_again_for_an_order_too():
    pauses: list[float] = []
    server = RawServer([], url="http://127.0.0.1:9")
    with pytest.raises(FleetError, match="cannot be reached"):
        await caller(server, pauses).json("POST", "/", {})
    assert len(pauses) == MAX_CALLS - 1


@pytest.mark.parametrize(
    ("method", "failure", "again"),
    [
        ("GET", 503, True),
        ("GET", 429, True),
        ("GET", 404, False),
        ("GET", 500, False),
        ("POST", 503, False),
        ("DELETE", 502, False),
        ("GET", httpx.ReadError("cut"), True),
        ("POST", httpx.ReadError("cut"), False),
        ("POST", httpx.ConnectError("refused"), True),
        ("GET", httpx.UnsupportedProtocol("ftp"), False),
    ],
)
def test_only_what_cannot_have_changed_anything_is_made_again(method: str, failure: int | Exception, again: bool):
    assert is_worth_another(method, failure, 1) is again
    assert not is_worth_another(method, failure, MAX_CALLS)


@given(st.integers(1, 50), st.floats(0, 1))
def test_pauses_are_spread_from_nothing_to_a_bound_that_doubles_and_ends(num_calls: int, share: float):
    assert 0 <= pause_s(num_calls, share) <= LONGEST_PAUSE_S
    assert pause_s(num_calls, 1.0) == min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (num_calls - 1))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (answer(b"<html>"), "does not answer in JSON"),
        (answer(b"[" * 100_000), "does not answer in JSON"),
        (answer(b"9" * 10_000), "does not answer in JSON"),
        (answer(b"[1]"), "answers with no object"),
        (answer(b"\xff\xfe\x00"), "does not answer in JSON"),
        (answer(b"", "302 Found", "location: http://127.0.0.1:1/"), "a redirect, which is not followed"),
        (answer(b"x", "200 OK", "content-encoding: gzip"), "answers compressed, unasked"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "cannot be reached"),
    ],
)
async def test_garbage_is_an_error_in_words(raw: bytes, words: str):
    async with listening(raw) as server:
        with pytest.raises(FleetError, match=words):
            await caller(server).json("GET", "/workers")


async def test_an_answer_without_an_end_is_cut_off_at_the_bound():
    async with listening(HEAD + b"\r\n" + b"x" * (MAX_ANSWER_BYTES + 1)) as server:
        with pytest.raises(FleetError, match=f"more than {MAX_ANSWER_BYTES} bytes"):
            await caller(server, limit_s=60.0).json("GET", "/")


async def test_a_controller_that_hangs_is_given_up_and_not_asked_again():
    async with listening(None) as server:
        with pytest.raises(FleetError, match=r"has not answered within 0\.2 s"):
            await caller(server, limit_s=0.2).json("GET", "/")
        assert len(server.heads) <= 1


async def test_a_token_is_read_at_each_call_and_what_cannot_be_one_is_said_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "token"
    async with listening(FINE) as server:
        asked = caller(server, token=str(path))
        for word in ("first", "second"):
            path.write_text(f"{word}\n")
            await asked.json("GET", "/")
        assert ["Bearer first" in server.heads[0], "Bearer second" in server.heads[1]] == [True, True]
        for bad in ("", "two\nlines", "schlüssel"):
            path.write_text(bad)
            with pytest.raises(FleetError, match="holds no token") as caught:
                await asked.json("GET", "/")
            assert not bad or bad not in str(caught.value)
        with pytest.raises(FleetError, match="in NO_SUCH_TOKEN, which is not set"):
            await caller(server, token="env:NO_SUCH_TOKEN").json("GET", "/")
        monkeypatch.setenv("A_TOKEN", "third")
        await caller(server, token="env:A_TOKEN").json("GET", "/")
        assert "Bearer third" in server.heads[-1]


async def test_a_fleet_whose_controller_hangs_is_observed_without_waiting_for_it():
    """The controller answers only when the observation is there: waiting for it would never end."""
    ray = FakeRay()
    async with served(ray), listening(None) as hung:
        told = plan_of(Attachment(name="theirs", kind="ray-serve", controller=f"ray-serve={ray.url}/pd", every_s=0.5))
        steering = RayServeSteering(Caller(ray.url), "pd", {})
        fleet = SteeredFleet(told, steering)
        await fleet.start(lambda: None)
        steering._dashboard.base_url = hung.url
        await hung.asked.wait()
        assert len((await fleet.observe(10.0)).readings) == 3
        assert not hung.go.is_set()
        hung.go.set()
        await fleet.close()


WORDS = st.sampled_from(
    [
        "workers",
        "applications",
        "pd",
        "deployments",
        "replicas",
        "data",
        "result",
        "metric",
        "instance",
        "url",
        "Prefill",
    ]
)
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["http://h:1", "prefill"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


class Parrot(Caller):
    """Says one thing to every question."""

    def __init__(self, said: Any) -> None:
        super().__init__("http://127.0.0.1:9")
        self.said = said

    async def text(self, method: str, path: str, body: Any = None) -> str:
        return json.dumps(self.said)


KINDS: dict[str, Callable[[Caller], Any]] = {
    "router": SglangRouterSteering,
    "ray": lambda caller: RayServeSteering(caller, "pd", {}),
    "prometheus": lambda caller: PrometheusSteering(caller, "up", "role", {}),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(said=ANY_JSON)
def test_whatever_a_controller_says_a_look_ends_with_a_roster_or_an_error_of_ours(kind: str, said: Any):
    async def look() -> None:
        steering = KINDS[kind](Parrot(said))
        with contextlib.suppress(ControlError):
            await steering.look()
        await steering.close()

    asyncio.run(look())
