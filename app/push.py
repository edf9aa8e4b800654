"""Components that listen to the event stream of `app.stream` in the browser: no rerun moves them.

Decided here: how they are mounted. Their scripts are in `app/front`, served by the console itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app import theme

FRONT = Path(__file__).parent / "front"
EVENT_LOOKS = {
    kind: {"color": color, "dash": theme.EVENT_DASHES[kind], "path": theme.EVENT_PATHS[kind]}
    for kind, color in theme.EVENT_COLORS.items()
}


def _script(name: str) -> str:
    return (FRONT / "stream.js").read_text() + (FRONT / f"{name}.js").read_text()


_wall = st.components.v2.component(
    "phaseline.wall", css=(FRONT / "wall.css").read_text(), js=_script("wall"), isolate_styles=True
)


def wall(first: dict[str, Any]) -> None:
    """The wall display over the whole screen; `first` is shown until the stream's first message."""
    _wall(key="wall", data={"first": first, "looks": EVENT_LOOKS})
