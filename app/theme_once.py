"""Streamlit's theme message made once, and not anew from its settings in each rerun of each tab.

Every rerun begins with a message that repeats the theme; making it (settings looked up, names converted, font faces
parsed) was 13% of the console's time with 50 tabs on the Overview. The settings do not change while we run.

This replaces a private function of Streamlit (the pinned 1.67): where that is not as it was, nothing is replaced, and a
test tells us.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from streamlit.runtime import app_session

NAME = "_populate_theme_msg"
Populate = Callable[..., None]


def install() -> bool:
    """False when Streamlit has no such function, or another one, or it has been replaced already."""
    original: Populate | None = getattr(app_session, NAME, None)
    if original is None or list(inspect.signature(original).parameters) != ["msg", "section"]:
        return False
    if hasattr(original, "__wrapped__"):
        return False
    setattr(app_session, NAME, once(original))
    return True


def once(original: Populate) -> Populate:
    """The same function, which fills in each section from the first message that was made of it."""
    made: dict[str, Any] = {}

    def populate(msg: Any, section: str = "theme") -> None:
        if section not in made:
            made[section] = type(msg)()
            original(made[section], section)
        if made[section].ByteSize():  # an empty one would be taken for a theme
            msg.MergeFrom(made[section])

    populate.__wrapped__ = original  # type: ignore[attr-defined]
    return populate
