"""An upgrade's command is given again while only time is in its way, and once in all."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from control.client import PhaselineClient
from control.errors import CommandRefused, ControlError, HistoryError
from control.settings import Settings
from control.supervisor import Supervisor
from control.types.commands import Action, CommandRequest, CommandState, Verb
from control.upgrade import Upgrade

DRAIN = Action(verb=Verb.DRAIN, worker_id="w1")


class BusyPlane:
    """Answers with these troubles first; keeps what it was asked to record."""

    def __init__(self, *troubles: ControlError) -> None:
        self.troubles = list(troubles)
        self.asked: list[CommandRequest] = []

    def preview(self, _request: CommandRequest) -> Any:
        return SimpleNamespace(needs_confirmation="decode")

    def submit(self, request: CommandRequest) -> Any:
        self.asked.append(request)
        if self.troubles:
            raise self.troubles.pop(0)
        return SimpleNamespace(command_id=7)

    def command(self, _command_id: int) -> Any:
        return SimpleNamespace(state=CommandState.DONE, result="")


def give(plane: BusyPlane) -> None:
    supervisor = SimpleNamespace(stop=threading.Event(), tick=lambda _now_s: None)
    upgrade = Upgrade(cast(Supervisor, supervisor), Settings(run_dir=Path("unused")))
    upgrade._command(cast(PhaselineClient, plane), DRAIN)


def test_a_busy_history_is_asked_again_under_the_same_key() -> None:
    plane = BusyPlane(HistoryError("the history cannot be written: busy for 2 s"))
    give(plane)
    first, second = plane.asked
    assert first == second
    assert first.idempotency_key != ""
    assert first.confirmation == "decode"


def test_a_refusal_ends_the_step_at_once() -> None:
    plane = BusyPlane(CommandRefused("w1 is the last worker of decode"))
    with pytest.raises(CommandRefused, match="last worker"):
        give(plane)
    assert len(plane.asked) == 1
