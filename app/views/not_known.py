"""What a fleet of others does not say, under the page whose numbers it would be: state and remedy, never 0."""

from __future__ import annotations

import streamlit as st

from app import cards, foreign
from control.types.fleet import FleetSnapshot


def section(snapshot: FleetSnapshot) -> None:
    """Nothing for a fleet that says all, and for our own."""
    if not snapshot.missing:
        return
    with st.expander(f"What is not known of this fleet ({len(snapshot.missing)}), and what shows it"):
        rows = foreign.missing_rows(snapshot.missing, len(snapshot.workers))
        st.html(cards.table(foreign.HEAD, rows, "What this fleet does not say"))
