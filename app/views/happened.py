"""What happened: commands and events of the last hour in one list, the newest first."""

from __future__ import annotations

import streamlit as st

from app import cards, session, tables
from app.source import Hub
from control.errors import ControlError

NUM_SHOWN = 8
LATEST_S = 3600.0


def latest(hub: Hub) -> None:
    """Commands and events in one list, the newest first."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return
    try:
        events = hub.events(snapshot.at_unix_s - LATEST_S, snapshot.at_unix_s)
    except ControlError as error:
        st.caption(f"What happened could not be read: {error}")
        events = []
    st.html(cards.legend([], "Latest commands and events"))
    rows = tables.latest_rows(hub.commands(), events, NUM_SHOWN, session.tz())
    if not rows:
        st.html(
            '<div class="pl pl-muted">Nothing yet. What somebody changes, and what happens to workers and their '
            "requests, appears here and on the lines.</div>"
        )
        return
    st.html(cards.table(("At", "What", "State", "Who", "Why", "Result"), rows, "Latest commands and events"))
