"""The Overview as one would write it first: ask the plane and build every chart from a DataFrame in each rerun.

What `bench/console.py` compares with. It shows what the console's Overview shows, with Streamlit's own elements.
"""

from __future__ import annotations

import os

import altair as alt
import pandas as pd
import streamlit as st

from control.client import PhaselineClient
from control.stories import event_words
from control.types.fleet import FleetSnapshot
from control.types.series import SeriesResult

WINDOW_S = 900
LINES = {"Prefill compute": "prefill_compute_wall", "Decode bandwidth": "decode_bandwidth_wall"}


@st.cache_resource
def plane() -> PhaselineClient:
    return PhaselineClient(os.environ["NAIVE_PLANE"], os.environ["NAIVE_TOKEN"])


def frame(named: dict[str, SeriesResult]) -> pd.DataFrame:
    rows = [
        {"t": pd.Timestamp(point.t_unix_s, unit="s"), "line": name or series.label, "value": point.value}
        for name, result in named.items()
        for series in result.series
        for point in series.points
    ]
    return pd.DataFrame(rows)


def chart(data: pd.DataFrame, height: int, number_format: str) -> alt.Chart:
    return (
        alt.Chart(data, height=height)
        .mark_line()
        .encode(x="t:T", y=alt.Y("value:Q", axis=alt.Axis(format=number_format)), color="line:N", strokeDash="line:N")
    )


def figures(snapshot: FleetSnapshot) -> None:
    traffic = snapshot.traffic
    values = {
        "Goodput": (traffic.goodput_rps, "req/s"),
        "TTFT p99": (traffic.ttft_p99_s, "s"),
        "ITL p99": (traffic.itl_p99_s, "s"),
        "Prefill compute": (snapshot.prefill and snapshot.prefill.in_phase_compute, ""),
        "Decode bandwidth": (snapshot.decode and snapshot.decode.in_phase_bandwidth, ""),
    }
    for column, (name, (value, unit)) in zip(st.columns(5), values.items(), strict=True):
        column.metric(name, "n/a" if value is None else f"{value:.3g} {unit}")


@st.fragment(run_every=1.0)
def page() -> None:
    snapshot = plane().snapshot()
    now = snapshot.at_unix_s
    st.html(f'<div role="status" data-at="{now:.3f}">{snapshot.health}: {snapshot.health_text}</div>')
    figures(snapshot)
    left, right = st.columns([4, 1])
    with left:
        read = {name: plane().series(metric, now - WINDOW_S, now, 1) for name, metric in LINES.items()}
        st.altair_chart(chart(frame(read), 236, ".0%"), width="stretch")
        roles = plane().series("num_workers", now - WINDOW_S, now, 1, "role")
        st.altair_chart(chart(frame({"": roles}), 96, "d"), width="stretch")
    with right:
        for pool in snapshot.pools:
            st.metric(f"{pool.role} pool", "n/a" if pool.load is None else f"{pool.load:.3g} {pool.load_unit}")
    commands = [{"at": each.created_unix_s, "what": str(each.action.verb)} for each in plane().commands(50)]
    events = [{"at": each.at_unix_s, "what": event_words(each)} for each in plane().fleet_events(now - 3600.0)]
    st.dataframe(pd.DataFrame([*commands, *events]).tail(8), width="stretch")


st.set_page_config(page_title="Naive", layout="wide")
page()
