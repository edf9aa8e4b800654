"""What must outlive the plane of what we did at a controller that forgets: workers which we took out of it.

Nothing is decided here. Whoever changes something there keeps it first, so that no worker is lost with a plane.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from control.errors import ControlError, FleetError


async def _nowhere(_: str) -> None:
    """For a look that changes nothing."""


class Memory:
    """One text for one fleet. `told`: as the last plane kept it; `keep` makes a newer one durable."""

    def __init__(self, told: str = "", keep: Callable[[str], Awaitable[None]] = _nowhere) -> None:
        self.told = told
        self._keep = keep

    async def put(self, text: str) -> None:
        """Returns when it is durable. Raises FleetError: then nothing may be changed that rests on it."""
        if text == self.told:
            return
        try:
            await self._keep(text)
        except ControlError as error:
            raise FleetError(f"what must be remembered of it cannot be written down: {error.detail}") from error
        self.told = text
