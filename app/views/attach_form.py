"""The form that attaches a fleet, and what a first look found. Drawn from what the plane says can be given.

A kind, a controller or an option that is new to the plane appears here by itself; so does a new field of `Attachment`,
under "More". Nothing is checked here: the plane refuses with field, value and bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, TypeVar

import streamlit as st

from app import cards, foreign, session, words
from app.source import Hub
from control.client import AttachChoices, AttachedInfo, Attachment, KindChoice, Survey
from control.errors import ControlError

Said = TypeVar("Said")
ANSWER = "attach_answer"
TARGETS_HELP = "One engine per line: `prefill=http://10.0.0.1:8000`, or with a name `decode:d0=http://10.0.0.2:8000`."
EXAMPLE = "prefill=http://10.0.0.1:8000\ndecode=http://10.0.0.2:8000"
#: Of a controller's options; Kubernetes has nine.
OPTIONS_IN_A_ROW = 5
TOKEN_HELP = "Where the plane finds it, a file or `env:NAME`. It is read at each call, neither stored nor shown."
WAYS: Mapping[str, str] = {
    "targets": "Listed here",
    "targets_file": "A watched file",
    "controller": "By what steers them",
}


@dataclass(frozen=True, slots=True)
class Words:
    """How a field is asked for. `scale`: what one unit of the form is in the field's own."""

    label: str
    help: str = ""
    scale: float = 1.0


#: Fields beyond name, kind and workers. One that is not here is drawn by its type, under its own name.
MORE: Mapping[str, Words] = {
    "dtype": Words("Number format", "Of weights and KV. Empty: as the catalogue says, or bfloat16."),
    "peak_flops": Words("Peak, TFLOP/s", "Of one device that is not in the catalogue.", 1e12),
    "peak_bytes_per_s": Words("Peak, GB/s", "Of one device that is not in the catalogue.", 1e9),
    "max_workers": Words("Most workers of a pool", "What may be asked for, not what there is."),
    "limit_s": Words("Seconds for a change to show", "One that does not show by then has failed."),
    "token_file": Words("Engines' token file", "A file on the plane's host. It is read at each look and kept nowhere."),
    "gpu_metrics": Words("GPU metrics", "Pages of dcgm-exporter, one per line: what the GPUs themselves measure."),
    "gpus": Words("Whose GPUs", "`WORKER=GPU,GPU` per line, where neither a label nor the pod's name says it."),
    "simulated": Words("Its engines only pretend", "Mock workers: every number is marked as simulated."),
}
ELSEWHERE: tuple[str, ...] = (
    *("name", "kind", "every_s", "targets", "targets_file", "controller", "controller_token"),
    *("model", "device", "devices_per_worker"),
)


def form(hub: Hub, why_not: str) -> None:
    """The fields, two buttons, and what came of the last press."""
    try:
        choices = hub.cached(("attach choices",), 60.0, lambda plane: plane.attach_choices())
    except ControlError as error:
        st.html(cards.banner(f"What can be attached did not come: {error}", "broken", alert=True))
        return
    told = Attachment(**_said(choices))
    with st.container(horizontal=True, gap="small"):
        off = bool(why_not)
        looks = st.button("Look first", key="attach_look", disabled=off, help=why_not or None)
        attaches = st.button("Attach", key="attach_do", type="primary", disabled=off)
    # In this run, not by callback: whoever types and presses at once means what stands in the fields now.
    if looks:
        st.session_state[ANSWER] = tried(lambda: hub.client(session.token(hub)).survey(told))
    if attaches:
        st.session_state[ANSWER] = tried(lambda: hub.client(session.token(hub)).attach(told))
        st.rerun()
    _answer()


def _said(choices: AttachChoices) -> dict[str, Any]:
    left, middle, right = st.columns(3, gap="medium")
    kinds = {each.name: each for each in choices.kinds}
    name = left.text_input("Name", key="attach_name", placeholder="prod", max_chars=40)
    kind = kinds[middle.selectbox("Kind", list(kinds), key="attach_kind", format_func=foreign.name)]
    every_s = right.number_input("Seconds between looks", 0.5, 60.0, 2.0, 0.5, key="attach_every")
    return {
        "name": name.strip(),
        "kind": kind.name,
        "every_s": float(every_s),
        **_workers(choices, kind),
        **_machine(choices),
        **_more(choices),
    }


# --- where its workers are ------------------------------------------------------------


def _workers(choices: AttachChoices, kind: KindChoice) -> dict[str, Any]:
    """Targets, a file of them, or a controller: those of the three that this kind has."""
    ways = [way for way in WAYS if not (kind.needs_controller and way != "controller")]
    ways = [way for way in ways if kind.controllers or way != "controller"]
    way = st.segmented_control(
        "Its workers", ways, key=f"attach_way_{kind.name}", default=ways[0], required=True, format_func=WAYS.__getitem__
    )
    if way == "targets":
        lines = st.text_area("Targets", key="attach_targets", help=TARGETS_HELP, placeholder=EXAMPLE)
        return {"targets": tuple(line.strip() for line in lines.splitlines() if line.strip())}
    if way == "targets_file":
        path = st.text_input(
            "File of targets", key="attach_file", placeholder="/etc/prometheus/targets.json",
            help="Prometheus's file_sd, JSON, on the plane's host. Watched: a role that changes there is a flip.",
        )  # fmt: skip
        return {"targets_file": path.strip()}
    return _controller(choices, kind)


def _controller(choices: AttachChoices, kind: KindChoice) -> dict[str, Any]:
    known = {each.name: each for each in choices.controllers}
    left, middle, right = st.columns(3, gap="medium")
    steers = known[
        left.selectbox("Controller", kind.controllers, key=f"attach_controller_{kind.name}", format_func=foreign.name)
    ]
    address = middle.text_input("Its address", key="attach_address", placeholder="http://10.0.0.1:8265/app")
    token = right.text_input("Its token", key="attach_token", placeholder="env:NAME or a file", help=TOKEN_HELP)
    st.caption(foreign.grantable(kind, steers))
    options = {}
    for first in range(0, len(steers.options), OPTIONS_IN_A_ROW):
        row = steers.options[first : first + OPTIONS_IN_A_ROW]
        columns = st.columns(min(len(steers.options), OPTIONS_IN_A_ROW), gap="medium")
        for column, option in zip(columns, row, strict=False):
            label = option if option in steers.needs else f"{option} (optional)"
            options[option] = column.text_input(label, key=f"attach_option_{steers.name}_{option}")
    given = foreign.controller_of(steers.name, address, options) if address.strip() else ""
    return {"controller": given, "controller_token": token.strip()}


# --- what they run on, and the rest ------------------------------------------------------------


def _machine(choices: AttachChoices) -> dict[str, Any]:
    left, middle, right = st.columns(3, gap="medium")
    model = left.selectbox(
        "Model", choices.models, key="attach_model", index=None, accept_new_options=True, placeholder="Not named",
        help="Its shape gives exact work. Of data/models.toml, or a folder with config.json on the plane's host.",
    )  # fmt: skip
    device = middle.selectbox(
        "Device", choices.devices, key="attach_device", index=None, accept_new_options=True, placeholder="Not named",
        help="Its peaks are what utilization is a share of. Of data/devices.toml; others have their peaks below.",
    )  # fmt: skip
    num = right.number_input("Devices per engine", 1, 1024, 1, key="attach_num", help="Tensor parallel size.")
    return {"model": (model or "").strip(), "device": (device or "").strip(), "devices_per_worker": int(num)}


def _more(choices: AttachChoices) -> dict[str, Any]:
    """Every other field of an attachment, by its type."""
    rest = [each for each in fields(Attachment) if each.name not in ELSEWHERE]
    with st.expander("More: peaks, bounds, tokens"):
        columns = st.columns(3, gap="medium")
        return {each.name: _field(columns[index % 3], each, choices) for index, each in enumerate(rest)}


def _field(place: Any, field: Field[Any], choices: AttachChoices) -> Any:
    """One input, with the field's default."""
    asked = MORE.get(field.name) or Words(field.name.replace("_", " ").capitalize())
    key, tip, kind = f"attach_{field.name}", asked.help or None, str(field.type)
    default: Any = field.default
    if field.name == "dtype":
        return place.selectbox(asked.label, ["", *choices.dtypes], key=key, help=tip)
    if kind == "bool":
        return place.toggle(asked.label, key=key, help=tip)
    if kind == "int":
        return int(place.number_input(asked.label, min_value=1, value=int(default), step=1, key=key, help=tip))
    if "float" in kind:
        start = None if default is None else float(default) / asked.scale
        given = place.number_input(asked.label, min_value=0.0, value=start, key=key, help=tip)
        return None if given is None else float(given) * asked.scale
    if kind.startswith("tuple"):
        lines = place.text_area(asked.label, key=key, help=tip or "One per line.")
        return tuple(line.strip() for line in lines.splitlines() if line.strip())
    return place.text_input(asked.label, key=key, help=tip).strip()


# --- presses and answers ------------------------------------------------------------


def tried(act: Callable[[], Said]) -> Said | ControlError:
    try:
        return act()
    except ControlError as error:
        return error


def _answer() -> None:
    said = st.session_state.get(ANSWER)
    if isinstance(said, Survey):
        _survey(said)
    elif said is not None:
        st.html(answer_words(said))


def answer_words(said: object) -> str:
    """What came of a press, in a line."""
    if isinstance(said, ControlError):
        bound = f" Allowed: {said.bound}." if said.bound else ""
        return cards.banner(f"{said.detail.rstrip('.')}.{bound}", "broken", alert=True)
    if isinstance(said, AttachedInfo):
        return cards.banner(f"{said.attachment.name} is attached; choose it under Fleet.", "ok")
    return cards.banner(str(said), "ok")


def _survey(found: Survey) -> None:
    """Engines, then what they lack, then what will stay unknown."""
    total, state = len(found.engines), "ok" if found.num_reachable == len(found.engines) else "attention"
    st.html(cards.banner(f"{found.num_reachable} of {total} workers answer. Nothing was attached or changed.", state))
    rows = foreign.survey_rows(found.engines)
    if rows:
        st.html(cards.table(foreign.SURVEY_HEAD, rows, "Workers found"))
    for each in found.exporters:
        said = each.problem or f"{each.num_gpus} GPUs, {each.num_found} of their series"
        st.html(cards.banner(f"{each.url}: {said}", "attention" if each.problem else "ok"))
    lacking = foreign.missing_rows(foreign.lacking(found), total)
    if lacking:
        st.html(cards.legend([], "Off or not exported: unknown, never 0"))
        st.html(cards.table(foreign.HEAD, lacking, "Series missing or off"))
    for note in found.notes:
        st.caption(f"{words.sentence(note)}.")
