"""What lists a fleet's workers, asked again and again beside the tick.

Decided here: that what was known stays while there is no newer answer, and that why there is none is told. Not decided
here: what a list means to the fleet (`steered`, `listing`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from control.errors import ControlError, FleetError
from control.fleets.attached.steering.roster import Roster, Steering, Watching
from control.fleets.attached.targets import MAX_TARGETS, RosterTargets

#: Changes that come together are one look.
SOONEST_LOOK_S: Final = 0.25


class RosterWatch:
    """`take` gets each list that came; `source.problem` says how the last look went."""

    def __init__(
        self, steering: Steering, source: RosterTargets, every_s: float, take: Callable[[Roster], None]
    ) -> None:
        self.num_failed = 0  # looks in a row
        self._steering = steering
        self._source = source
        self._every_s = every_s
        self._take = take
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns after the first look."""
        await self.look()
        self._task = asyncio.create_task(self._keep_looking(), name="roster")

    async def look(self) -> None:
        """Never raises."""
        try:
            roster = await self._steering.look()
            if len(roster.members) > MAX_TARGETS:
                raise FleetError(f"{len(roster.members)} workers are listed, {MAX_TARGETS} at most are looked at")
        except ControlError as error:
            self._source.problem, self.num_failed = error.detail, self.num_failed + 1
            return
        self._source.problem, self.num_failed = roster.problem, 0
        self._take(roster)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._steering.close()

    async def _keep_looking(self) -> None:
        while True:
            await self._until_next_look()
            await self.look()

    async def _until_next_look(self) -> None:
        """When it is due, or soon after the controller says that something has changed."""
        every_s, steering = self._every_s, self._steering
        if not isinstance(steering, Watching):
            await asyncio.sleep(every_s)
            return
        soonest_s = min(SOONEST_LOOK_S, every_s)
        await asyncio.sleep(soonest_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s - soonest_s):
                await steering.changed()
