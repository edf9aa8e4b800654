"""Controls whose value lives in the address, under plain names, so that a link restores the view.

An address with an unknown value falls back to the default; a default leaves no trace in the address. (Streamlit's own
`bind` writes the words that are shown, which would break every link when a word changes.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st


def segmented(label: str, options: Mapping[str, str], *, name: str, default: str, **more: Any) -> str:
    """One of `options` (value -> words), all in sight."""
    _seed(name, options, default)
    chosen = st.segmented_control(
        label, list(options), required=True, key=name, format_func=lambda each: options.get(each, each), **more
    )
    return _keep(name, chosen, default)


def select(
    label: str, options: Mapping[str, str] | Sequence[str], *, name: str, default: str, place: Any = st, **more: Any
) -> str:
    """One of `options`, as a list that opens. `place` is a column or the page."""
    words = options if isinstance(options, Mapping) else {each: each for each in options}
    _seed(name, words, default)
    chosen = place.selectbox(label, list(words), key=name, format_func=lambda each: words.get(each, each), **more)
    return _keep(name, chosen, default)


def toggle(label: str, *, name: str, **more: Any) -> bool:
    if name not in st.session_state:
        st.session_state[name] = st.query_params.get(name) == "1"
    chosen = st.toggle(label, key=name, **more)
    _keep(name, "1" if chosen else "", "")
    return chosen


def text(label: str, *, name: str, **more: Any) -> str:
    if name not in st.session_state:
        st.session_state[name] = st.query_params.get(name, "")
    return _keep(name, st.text_input(label, key=name, **more).strip(), "")


def _seed(name: str, options: Mapping[str, str], default: str) -> None:
    """The address is read once per page; from then on the control leads. A value no longer offered gives way."""
    if st.session_state.get(name) not in options:
        given = st.query_params.get(name, default)
        st.session_state[name] = given if given in options else default


def _keep(name: str, value: str | None, default: str) -> str:
    kept = default if value is None else value
    if kept == default:
        if name in st.query_params:
            del st.query_params[name]
    elif st.query_params.get(name) != kept:
        st.query_params[name] = kept
    return kept
