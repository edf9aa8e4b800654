"""Where a generated text ends because of a stop string, whatever the pieces it arrives in.

Decided here: how much text is held back because it may yet become a stop string, and which stop string wins. Not here:
how tokens become text (`engine.detokenizer`).
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Pass text through, up to the first stop string to be completed; of two completed at once, the longer one.

    The output does not depend on how the text was cut into pieces.
    """

    __slots__ = ("_held", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that can be sent now, and whether a stop string ended it (it is left out, and so is what follows)."""
        text = self._held + text
        start = self._first_match(text)
        if start is not None:
            self._held = ""
            return text[:start], True
        held_from = min((_possible_start(text, stop) for stop in self._stops), default=len(text))
        self._held = text[held_from:]
        return text[:held_from], False

    def finish(self) -> str:
        """What was held back: no more text comes, so it is no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> int | None:
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(matches)[1] if matches else None


def _possible_start(text: str, stop: str) -> int:
    """First index from which all the rest of `text` is a proper prefix of `stop`; len(text) when there is none."""
    at = max(0, len(text) - len(stop) + 1)
    while (at := text.find(stop[0], at)) >= 0:
        if stop.startswith(text[at:]):
            return at
        at += 1
    return len(text)
