"""The wall display (`?view=wall`): the whole screen, nothing to press. Drawn once; from then on it listens."""

from __future__ import annotations

import streamlit as st

from app import push, session, wall
from app.parts import latest_events
from app.source import Hub

NAME = "wall"


def is_asked_for() -> bool:
    return st.query_params.get("view") == NAME


def page(hub: Hub) -> None:
    """No sidebar, no toolbar, no action, whoever looks."""
    st.html('<style>[data-testid="stHeader"] { display: none; }</style>')
    push.wall(wall.view(hub.look(), hub.commands(), latest_events(hub), hub.now(), session.tz(), hub.base_url))
