"""Spec plus datasets onto the page: the one place that calls Streamlit's chart element."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from app.charts import Spec


def chart(spec: Spec, datasets: Mapping[str, bytes], *, key: str, alt: str) -> None:
    """A chart that keeps its place, brush and zoom over refreshes: constant `spec`, swapped Arrow bytes."""
    st.vega_lite_chart(None, {**spec, "datasets": dict(datasets)}, width="stretch", key=key, alt=alt)


def brushable(
    spec: Spec, datasets: Mapping[str, bytes], *, key: str, param: str, alt: str
) -> tuple[float, float] | None:
    """A chart whose interval selection reruns the page. Returns the chosen [from, to] in Unix seconds, or None."""
    event = st.vega_lite_chart(
        None,
        {**spec, "datasets": dict(datasets)},
        width="stretch",
        key=key,
        alt=alt,
        on_select="rerun",
        selection_mode=param,
    )
    return selected_interval(dict(event), param)


def clickable(
    spec: Spec, datasets: Mapping[str, bytes], *, key: str, param: str, alt: str, on_click: Callable[[], None]
) -> None:
    """A chart whose point selection calls `on_click` and reruns the page; the selection is in session_state[key]."""
    st.vega_lite_chart(
        None,
        {**spec, "datasets": dict(datasets)},
        width="stretch",
        key=key,
        alt=alt,
        on_select=on_click,
        selection_mode=param,
    )


def selected_interval(event: Mapping[str, object], param: str) -> tuple[float, float] | None:
    """The x interval of a Vega-Lite selection event, ms to seconds; None when nothing is selected."""
    selection = event.get("selection")
    chosen = selection.get(param) if isinstance(selection, Mapping) else None
    bounds = chosen.get("t") if isinstance(chosen, Mapping) else None
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    low, high = sorted(float(bound) for bound in bounds)
    return (low / 1000.0, high / 1000.0) if high > low else None
