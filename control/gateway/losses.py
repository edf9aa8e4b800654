"""How many workers died under one request, and when that is enough. Times come in; nothing is looked up.

Decided here: which losses are one death, and when a request is to blame: what kills a worker by its content kills the
next one at the same place, so a stream that got on in between was there by chance. Deaths right after each other are
one: a host takes all its workers along. Not here: where it goes on (the relay).
"""

from __future__ import annotations

from typing import Final

from control.types.workers import LossCause

#: Deaths at one place of a request before it ends with an error: it may be what kills them.
MAX_DEATHS: Final = 2
#: Deaths less than so many tokens apart are at one place: the first token after a continuation comes from a prefill.
PLACE_TOKENS: Final = 16
#: Deaths under one request, wherever: somebody who kills workers for longer than that has to be stopped all the same.
MAX_DEATHS_IN_ALL: Final = 8
#: Workers that die within this time die of one thing, a process or a host, unless the request got on in between.
SAME_DEATH_S: Final = 1.0
#: Losses that are not the request's doing before it ends all the same.
MAX_SILENT: Final = 16


class Losses:
    """One request's losses, over all its attempts."""

    def __init__(self) -> None:
        self.num_lost = 0
        self._num_deaths = 0
        self._num_here = 0  # of those, at the place of the last one
        self._place = 0
        self._has_hung = False
        self._event_s = -SAME_DEATH_S  # when the last death began that was not part of another

    def lost(self, now_s: float, cause: LossCause = LossCause.DIED, *, place: int = 0, has_work: bool = True) -> bool:
        """Count one. True when the request has had its share. The first hang under it is not held against it.

        `place`: tokens known when it happened. `has_work`: the worker had more of it than a promise of room.
        """
        self.num_lost += 1
        is_first_hang = cause is LossCause.HUNG and not self._has_hung
        self._has_hung = self._has_hung or cause is LossCause.HUNG
        is_same_death = cause is LossCause.DIED and place == self._place and self.hold_s(now_s) > 0.0
        if has_work and not (cause is LossCause.STOPPED or is_first_hang or is_same_death):
            self._num_here = 1 if place - self._place >= PLACE_TOKENS else self._num_here + 1
            self._num_deaths += 1
            self._place, self._event_s = place, now_s
        num_silent = self.num_lost - self._num_deaths
        return self._num_here >= MAX_DEATHS or self._num_deaths >= MAX_DEATHS_IN_ALL or num_silent >= MAX_SILENT

    def hold_s(self, now_s: float) -> float:
        """How long the last death may still be going on."""
        return max(0.0, self._event_s + SAME_DEATH_S - now_s)
