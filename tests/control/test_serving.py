"""Served fleets under the supervisor: taken up when asked for, let go when no longer, in nobody's way."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.deployment import DeploymentState, make_run_dir
from control.processes import identify
from control.runner import Runner
from control.served import Served, remove_served, write_served
from control.serving import Serving
from control.settings import Settings


class Place:
    """The supervisor's list and what it said; nothing is started."""

    def __init__(self, run_dir: Path) -> None:
        make_run_dir(run_dir)
        me = identify(os.getpid())
        assert me is not None
        self.run_dir = run_dir
        self.runners: list[Runner] = []
        self.said: list[str] = []
        self.state = DeploymentState(supervisor=me, phase="ready", started_unix_s=0.0, settings={})
        settings = Settings(run_dir=run_dir, host="127.0.0.1")
        self.serving = Serving(settings, self.state, self.runners, self.said.append)

    def ask(self, port: int) -> None:
        write_served(self.run_dir, Served(fleet="prod", tokenizer="/m", port=port))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "run")
    yield made
    for each in made.runners:
        if each.listener is not None:
            each.listener.close()


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield held


def port_of(held: socket.socket) -> int:
    port: int = held.getsockname()[1]
    return port


def test_what_is_asked_for_has_a_socket_that_clients_can_wait_in(place: Place, taken: socket.socket) -> None:
    port = port_of(taken)
    taken.close()
    place.ask(port)
    place.serving.follow(0.0)
    (runner,) = place.runners
    assert runner.component.name == "serve-prod"
    assert runner.component.command[-2:] == ("--port", str(port))
    with socket.create_connection(("127.0.0.1", port)):
        pass  # nobody has accepted it, and it was not refused
    place.serving.follow(1.0)
    assert place.runners == [runner]


def test_what_is_no_longer_asked_for_is_let_go_and_its_port_is_free(place: Place, taken: socket.socket) -> None:
    port = port_of(taken)
    taken.close()
    place.ask(port)
    place.serving.follow(0.0)
    remove_served(place.run_dir, "prod")
    place.serving.follow(1.0)
    assert (place.runners, place.state.components) == ([], {})
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken_is_told_and_tried_again(place: Place, taken: socket.socket) -> None:
    port = port_of(taken)
    place.ask(port)
    place.serving.follow(0.0)
    assert place.runners == []
    assert f"{port} cannot be used" in place.state.components["serve-prod"].last_exit
    taken.close()
    place.serving.follow(0.1)
    assert place.runners == []  # not yet
    place.serving.follow(1.0)
    assert [each.component.name for each in place.runners] == ["serve-prod"]


def test_a_port_that_was_never_had_leaves_nothing_behind(place: Place, taken: socket.socket) -> None:
    place.ask(port_of(taken))
    place.serving.follow(0.0)
    remove_served(place.run_dir, "prod")
    place.serving.follow(1.0)
    assert place.state.components == {}
