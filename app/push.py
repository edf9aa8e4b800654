"""Components that listen to the event stream of `app.stream` in the browser: no rerun moves them.

Decided here: how they are mounted. Their scripts are in `app/front`, served by the console itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import streamlit as st

from app import session, theme
from app.parts import PARTS
from app.source import Hub

P = ParamSpec("P")

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
_slot = st.components.v2.component("phaseline.slot", js=_script("slot"), isolate_styles=False)
_again = st.components.v2.component("phaseline.again", js=(FRONT / "again.js").read_text(), isolate_styles=False)

_svg = st.components.v2.component("phaseline.svg", js=(FRONT / "svg.js").read_text(), isolate_styles=False)


def svg_button(alt: str, name: str) -> None:
    """Saves the chart with that alternative text, as it is drawn, under that name; made in the browser."""
    _svg(key=f"svg-{name}", data={"alt": alt, "name": name})


def wall(first: dict[str, Any]) -> None:
    """The wall display over the whole screen; `first` is shown until the stream's first message."""
    _wall(key="wall", data={"first": first, "looks": EVENT_LOOKS})


def slot(hub: Hub, part: str) -> None:
    """A piece of markup of `app.parts` that the stream renews: outside fragments, and at no rerun's cost."""
    first = json.loads(PARTS[part](hub, session.tz()).whole)
    _slot(key=f"slot-{part}", data={"part": part, "first": first})


def rerun_when_changed(hub: Hub, part: str, key: str) -> None:
    """Rerun the fragment around it, or the page, when `part` is no longer what it is now."""
    drawn = json.loads(PARTS[part](hub, session.tz()).whole)
    _again(key=f"again-{key}", data={"part": part, "drawn": drawn}, on_again_change=_nothing)


def _nothing() -> None:
    """A trigger is known by its callback; the rerun is all that is wanted."""


def live(draw: Callable[Concatenate[Hub, P], None], key: str) -> Callable[Concatenate[Hub, P], None]:
    """`draw` as a fragment that runs again at each reading of the plane, while its tab is in sight."""

    @wraps(draw)
    def body(hub: Hub, /, *args: P.args, **kwargs: P.kwargs) -> None:
        rerun_when_changed(hub, "tick", key)
        draw(hub, *args, **kwargs)

    return st.fragment(body)
