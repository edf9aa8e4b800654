"""What the plane itself changes of desired state, of a fleet of others' engines whose roles are ours to give.

Decided here: that a change of roles which has failed is taken back, so that no engine stays between two roles, and that
engines which come to the registry or leave it are desired, or no longer. Both are level-triggered: a plane that dies in
between leaves it to the next one. Both are recorded before anything acts on them, as any command is. Not decided here:
when a command has failed (`control.progress`), how it is undone (`control.verbs`), in which role a new engine begins
(`control.first_desired`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from control.changes import changes_between
from control.desk import Desk
from control.errors import CommandRefused, HistoryError, NotFound
from control.first_desired import INITIAL_WHO, registry_words, routed_desired
from control.types.api import Principal
from control.types.commands import Action, Command, CommandRequest, CommandState, Desired, Preview, Verb
from control.types.workers import Role

_log = logging.getLogger("phaseline.plane")
Previewed = Callable[[CommandRequest], Awaitable[Preview]]
Submit = Callable[[CommandRequest, Principal], Awaitable[Command]]
PHASELINE: Final = Principal(name=INITIAL_WHO, role="operator")


def is_to_take_back(command: Command, desired: Desired) -> bool:
    """A change of roles that has failed, and nothing has changed since what it left. Never one that takes back."""
    before, after = command.desired_before, command.desired_after
    if command.state is not CommandState.FAILED or command.who == PHASELINE.name or command.undone_by is not None:
        return False
    changes = changes_between(before, after) if before and after else None
    return bool(changes and changes.roles and after and not changes.differing(desired, after))


class Amends:
    """`look` at each tick; at most one thing is being recorded at a time."""

    def __init__(self, desk: Desk, preview: Previewed, submit: Submit) -> None:
        self._desk = desk
        self._preview = preview
        self._submit = submit
        self._task: asyncio.Task[None] | None = None

    def look(self, registered: dict[str, Role], now_unix_s: float) -> None:
        """`registered`: all engines of the fleet, with the role in which one begins that is new."""
        desk = self._desk
        if self._task is not None and not self._task.done():
            return
        failed = [each for each in (desk.failed or {}).values() if is_to_take_back(each, desk.desired)]
        desk.failed = {each.command_id: each for each in failed}
        after = routed_desired(desk.desired, registered)
        if after is not desk.desired:
            work = desk.follow(after, registry_words(desk.desired, after), now_unix_s)
        elif failed:
            work = self._take_back(failed[-1], now_unix_s)
        else:
            return
        self._task = asyncio.create_task(_tried(work), name="amends")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take_back(self, command: Command, now_unix_s: float) -> None:
        """By an undo of our own, which is a command as everybody's. One that is refused is told and not tried again."""
        number = command.command_id
        request = CommandRequest(
            action=Action(verb=Verb.UNDO, command_id=number),
            why=f"command {number} failed",
            idempotency_key=f"take-back-{self._desk.fleet_id}-{number}",
        )
        try:
            word = (await self._preview(request)).needs_confirmation
            await self._submit(replace(request, confirmation=word), PHASELINE)
        except (CommandRefused, NotFound) as error:
            _log.warning("command %d is not taken back: %s", number, error.detail)
            self._desk.remark(command, f"it is not taken back: {error.detail}", now_unix_s)
        (self._desk.failed or {}).pop(number, None)


async def _tried(work: Coroutine[Any, Any, None]) -> None:
    """What the history does not take now is tried again with the next look."""
    try:
        await work
    except HistoryError as error:
        _log.warning("not recorded yet: %s", error.detail)
