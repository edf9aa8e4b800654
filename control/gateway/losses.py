"""How many workers died under one request, and when that is enough. Times come in; nothing is looked up.

Decided here: which losses are one death, and when a request is to blame. Not here: where it goes on (the relay).
"""

from __future__ import annotations

from typing import Final

from control.types import LossCause

#: Deaths under one request before it ends with an error: it may be what kills them.
MAX_DEATHS: Final = 2
#: Workers of one process die together: one that was asked so shortly before, and never answered, was dead already.
SAME_DEATH_S: Final = 1.0
#: Losses of that kind before the request ends all the same.
MAX_SILENT: Final = 16


class Losses:
    """One request's losses, over all its attempts."""

    def __init__(self) -> None:
        self.num_lost = 0
        self._num_silent = 0
        self._has_hung = False
        self._asked_s: dict[str, float] = {}  # by workers that have not answered yet

    def asked(self, worker_id: str, now_s: float) -> None:
        self._asked_s[worker_id] = now_s

    def answered(self, worker_id: str) -> None:
        self._asked_s.pop(worker_id, None)

    def left(self) -> None:
        """The attempt is over: nobody owes an answer."""
        self._asked_s.clear()

    def lost(self, worker_id: str, now_s: float, cause: LossCause = LossCause.DIED) -> bool:
        """Count one. True when the request has had its share. The first hang under it is not held against it."""
        self.num_lost += 1
        asked_s = self._asked_s.pop(worker_id, None)
        is_first_hang = cause is LossCause.HUNG and not self._has_hung
        self._has_hung = self._has_hung or cause is LossCause.HUNG
        is_same_death = cause is LossCause.DIED and asked_s is not None and now_s - asked_s < SAME_DEATH_S
        if cause is LossCause.STOPPED or is_first_hang or is_same_death:
            self._num_silent += 1
        return self.num_lost - self._num_silent >= MAX_DEATHS or self._num_silent >= MAX_SILENT
