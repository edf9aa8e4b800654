"""What the client does while one plane takes over from another: ask again where that cannot do a thing twice."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from control.client import PhaselineClient
from control.errors import CommandRefused, PlaneUnreachable, StaleFence
from control.types.commands import Action, CommandRequest, Verb

Answer = Callable[[httpx.Request], httpx.Response]
DRAIN = CommandRequest(action=Action(verb=Verb.DRAIN, worker_id="w1"))


class Planes:
    """Answers in turn, whichever address is asked; keeps what was asked, and where."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answers[min(len(self.asked), len(self.answers)) - 1](request)

    @property
    def hosts(self) -> list[str]:
        return [request.url.host for request in self.asked]

    def client(self, patience_s: float = 20.0) -> PhaselineClient:
        transport = httpx.MockTransport(self)
        return PhaselineClient(("http://a", "http://b"), "t", patience_s=patience_s, transport=transport)


def problem(kind: str, status: int = 503) -> Answer:
    body = {"type": f"urn:phaseline:{kind}", "title": "t", "status": status, "detail": kind}
    return lambda _: httpx.Response(status, json=body)


def alice(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"name": "alice", "role": "operator"})


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def cut(request: httpx.Request) -> httpx.Response:
    """The plane died after it had the request."""
    raise httpx.ReadError("connection reset", request=request)


@pytest.mark.parametrize("first", [refused, cut, problem("NotActive"), problem("StaleFence")])
def test_reading_goes_on_at_the_next_address_and_stays_there(first: Answer) -> None:
    planes = Planes(first, alice)
    with planes.client() as client:
        assert client.whoami().name == "alice"
        client.whoami()
    assert planes.hosts == ["a", "b", "b"]


def test_a_command_is_sent_again_with_the_key_that_makes_it_one() -> None:
    planes = Planes(cut, refused, problem("StaleVersion", 409))
    with planes.client() as client, pytest.raises(Exception, match="StaleVersion"):
        client.submit(DRAIN)
    keys = {json.loads(request.content)["idempotency_key"] for request in planes.asked}
    assert len(planes.asked) == 3
    assert len(keys) == 1
    assert keys != {""}


def test_two_commands_without_a_key_are_two_commands() -> None:
    planes = Planes(problem("CommandRefused", 422))
    with planes.client() as client:
        for _ in range(2):
            with pytest.raises(CommandRefused):
                client.submit(DRAIN)
    first, second = (json.loads(request.content)["idempotency_key"] for request in planes.asked)
    assert first != second


def test_a_login_whose_answer_was_lost_is_not_repeated_but_one_that_was_never_sent_is() -> None:
    lost = Planes(cut, alice)
    with lost.client() as client, pytest.raises(PlaneUnreachable):
        client.login("code")
    assert lost.hosts == ["a"]
    unsent = Planes(refused, problem("NotAllowed", 401))
    with unsent.client() as client, pytest.raises(Exception, match="NotAllowed"):
        client.login("code")
    assert unsent.hosts == ["a", "b"]


def test_patience_ends_with_the_last_error() -> None:
    planes = Planes(problem("StaleFence"))
    with planes.client(patience_s=0.0) as client, pytest.raises(StaleFence):
        client.whoami()
    assert planes.hosts == ["a"]


def test_an_error_of_the_active_plane_is_not_asked_again() -> None:
    planes = Planes(problem("HistoryError"))
    with planes.client() as client, pytest.raises(Exception, match="HistoryError"):
        client.whoami()
    assert planes.hosts == ["a"]
