"""Commands of a scenario: each under a key of its own, sent again under it while the plane is away. Effects."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Final

from control.client import ENDED, PhaselineClient
from control.errors import CommandRefused, HistoryError, PlaneUnreachable
from control.types.commands import Action, Command, CommandRequest, Verb

RETRY_S: Final = 0.2


class Commander:
    """Sends, remembers, and takes back. A refusal is the caller's to judge."""

    def __init__(self, client: PhaselineClient, run_id: str, limit_s: float) -> None:
        self.client = client
        self.run_id = run_id
        self.limit_s = limit_s
        self.sent: list[tuple[CommandRequest, Command]] = []
        self._numbers = itertools.count()  # several events may send at once

    def send(self, action: Action, why: str) -> Command:
        """The accepted command, with the word typed that its preview asks for. Raises ControlError."""
        key = f"{self.run_id}-{next(self._numbers)}"
        asked = CommandRequest(action=action, why=why, idempotency_key=key)
        deadline_s = time.monotonic() + self.limit_s
        while True:
            try:
                word = self.client.preview(asked).needs_confirmation
                request = replace(asked, confirmation=word)
                command = self.client.submit(request)
            except (PlaneUnreachable, HistoryError, CommandRefused) as error:
                is_for_good = isinstance(error, CommandRefused) and error.field != "confirmation"
                if is_for_good or time.monotonic() >= deadline_s:
                    raise
                time.sleep(RETRY_S)  # the plane is away, or another word is asked for by now
                continue
            self.sent.append((request, command))
            return command

    def again(self) -> list[Command]:
        """Each request once more under its key: an answer with another id is a second effect."""
        return [self.client.submit(request) for request, _ in self.sent]

    def latest(self) -> list[Command]:
        return [self.client.command(command.command_id) for _, command in self.sent]

    def have_ended(self) -> bool:
        return all(each.state in ENDED for each in self.latest())

    def undo_all(self, why: str) -> list[Command]:
        """Take back what changed something, newest first; each undo is a command of its own."""
        changed = sorted(self.latest(), key=lambda each: each.command_id)
        changed = [each for each in changed if each.desired_before != each.desired_after]
        return [self.send(Action(verb=Verb.UNDO, command_id=each.command_id), why) for each in reversed(changed)]
