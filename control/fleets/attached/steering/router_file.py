"""The file from which vLLM production-stack's router takes its backends: read as the router reads it, edited in place.

Read from production-stack 0.1.12 (commit a6c01db0: `dynamic_config.py`, `parsers/yaml_utils.py`). Decided here: which
backend has which role (its label is one of `prefill_model_labels` or `decode_model_labels`), and how an edit keeps the
file: only the values that change are written anew, so that comments, order and all other keys stay. An edit that does
not read back as what was meant is refused. Not decided here: when it is edited (`production_stack`).

YAML has backends under `static_models.MODEL.static_backends`, JSON in lists joined by commas; labels are joined by
commas in both, in the order of the backends.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from control.errors import FleetError
from control.types.workers import Role

MAX_BACKENDS: Final = 2000
_BACKENDS, _LABELS, _MODELS, _TYPES = "static_backends", "static_model_labels", "static_models", "static_model_types"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One engine. `label` "": the file has no labels. `kind`: its `static_model_types`, where JSON has them."""

    url: str
    model: str
    label: str = ""
    kind: str = ""

    @property
    def worker_id(self) -> str:
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFile:
    """What a file says. `text` is all of it."""

    text: str
    is_json: bool
    backends: tuple[Backend, ...]
    prefill_labels: tuple[str, ...] = ()
    decode_labels: tuple[str, ...] = ()
    routing: str = ""

    def role(self, backend: Backend) -> Role:
        """A label that is of neither is of no phase: mixed."""
        if backend.label in self.prefill_labels:
            return Role.PREFILL
        return Role.DECODE if backend.label in self.decode_labels else Role.MIXED

    def label(self, role: Role) -> str:
        """As the others of that role have it. Raises FleetError where the file has none for it."""
        used = next((each.label for each in self.backends if each.label and self.role(each) is role), "")
        named = {Role.PREFILL: self.prefill_labels, Role.DECODE: self.decode_labels}.get(role, ())
        found = used or next(iter(named), "")
        if not found:
            raise FleetError(f"its file has no label for {role}: {_LABELS}, prefill_model_labels, decode_model_labels")
        return found

    @property
    def in_force(self) -> dict[str, str | None]:
        """What the router tells of itself once it has read this."""
        labels = ",".join(each.label for each in self.backends)
        return {_BACKENDS: ",".join(each.url for each in self.backends), _LABELS: labels or None}


def read_router_file(text: str, *, is_json: bool) -> RouterFile:
    """Raises FleetError, which names what the router could not use either."""
    try:
        told = json.loads(text) if is_json else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise FleetError(f"the router's file cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(told, dict) or told.get("service_discovery") != "static":
        raise FleetError("the router's file has no service_discovery: static, so it lists no backends")
    backends = _backends_of_json(told) if is_json else _backends_of_yaml(told)
    labels = _split(told.get(_LABELS))
    if labels and len(labels) != len(backends):
        raise FleetError(f"{len(labels)} {_LABELS} for {len(backends)} backends: one each")
    if not 1 <= len(backends) <= MAX_BACKENDS or len({each.worker_id for each in backends}) != len(backends):
        raise FleetError(f"{len(backends)} backends: 1 to {MAX_BACKENDS}, each address once")
    named = [replace(each, label=label) for each, label in zip(backends, labels, strict=True)] if labels else backends
    return RouterFile(
        text=text,
        is_json=is_json,
        backends=tuple(named),
        prefill_labels=_split(told.get("prefill_model_labels")),
        decode_labels=_split(told.get("decode_model_labels")),
        routing=str(told.get("routing_logic", "")),
    )


def edited(file: RouterFile, backends: Sequence[Backend]) -> RouterFile:
    """The file with these backends. Raises FleetError where that cannot be written without touching the rest."""
    ordered = list(backends)
    if not file.is_json:  # by model, as the file has them
        models = list(dict.fromkeys(each.model for each in file.backends))
        ordered.sort(key=lambda each: models.index(each.model))
        gone = [model for model in models if model not in {each.model for each in ordered}]
        if gone:
            raise FleetError(f"{gone[0]} would have no backend: the last one of a model stays")
    text = _edited_json(file, ordered) if file.is_json else _edited_yaml(file, ordered)
    wanted = replace(file, text=text, backends=tuple(ordered))
    with contextlib.suppress(FleetError):
        if read_router_file(text, is_json=file.is_json) == wanted:
            return wanted
    raise FleetError("the router's file is laid out so that we cannot edit it and keep the rest as it is")


def _split(value: Any) -> tuple[str, ...]:
    return tuple(str(value).split(",")) if value else ()


def _backends_of_yaml(told: Mapping[str, Any]) -> list[Backend]:
    models = told.get(_MODELS)
    if not isinstance(models, dict):
        raise FleetError(f"{_MODELS} is no table of models: the router cannot read that in YAML")
    listed = {name: each.get(_BACKENDS) if isinstance(each, dict) else None for name, each in models.items()}
    broken = next((name for name, urls in listed.items() if not isinstance(urls, list)), None)
    if broken is not None:
        raise FleetError(f"{_MODELS}.{broken} has no list {_BACKENDS}")
    return [Backend(url=_url(url), model=str(name)) for name, urls in listed.items() for url in urls or ()]


def _backends_of_json(told: Mapping[str, Any]) -> list[Backend]:
    urls, models, kinds = _split(told.get(_BACKENDS)), _split(told.get(_MODELS)), _split(told.get(_TYPES))
    if len(urls) != len(models) or (kinds and len(kinds) != len(urls)):
        raise FleetError(f"{len(urls)} {_BACKENDS}, {len(models)} {_MODELS}, {len(kinds)} {_TYPES}: one each")
    return [
        Backend(url=_url(url), model=model, kind=kind)
        for url, model, kind in zip(urls, models, kinds or [""] * len(urls), strict=True)
    ]


def _url(value: Any) -> str:
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FleetError(f"{str(value)[:100]!r} is not the address of a backend")
    return str(value)


def _edited_json(file: RouterFile, backends: Sequence[Backend]) -> str:
    told = json.loads(file.text)
    told[_BACKENDS], told[_MODELS] = (",".join(getattr(each, key) for each in backends) for key in ("url", "model"))
    if _LABELS in told:
        told[_LABELS] = ",".join(each.label for each in backends)
    if _TYPES in told:
        told[_TYPES] = ",".join(each.kind for each in backends)
    indent = re.search(r"\n( +)\"", file.text)
    return json.dumps(told, indent=len(indent[1]) if indent else None) + ("\n" if file.text.endswith("\n") else "")


def _edited_yaml(file: RouterFile, backends: Sequence[Backend]) -> str:
    """Splices, the last one first, so that what stands before keeps its place."""
    root = yaml.compose(file.text)
    splices: list[tuple[int, int, str]] = []
    if any(each.label for each in backends):
        node = _at(root, _LABELS)
        quote = node.style or ""
        splices.append(
            (node.start_mark.index, node.end_mark.index, quote + ",".join(e.label for e in backends) + quote)
        )
    for name in dict.fromkeys(each.model for each in file.backends):
        node = _at(root, _MODELS, name, _BACKENDS)
        urls = [each.url for each in backends if each.model == name]
        if urls != [item.value for item in node.value]:
            splices += _list_splices(file.text, node, urls)
    text = file.text
    for start, end, new in sorted(splices, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _at(node: Any, *path: str) -> Any:
    """The value at `path`. It is there: the file was read."""
    for name in path:
        node = next(value for key, value in node.value if str(key.value) == name)
    return node


def _list_splices(text: str, node: Any, urls: Sequence[str]) -> list[tuple[int, int, str]]:
    """A list with these items: lines of items that go are cut, those that come follow the last that was there."""
    if node.flow_style:
        return [(node.start_mark.index, node.end_mark.index, f"[{', '.join(json.dumps(url) for url in urls)}]")]
    had = [item.value for item in node.value]
    splices = []
    for item in node.value:
        begin = text.rfind("\n", 0, item.start_mark.index) + 1
        end = text.find("\n", item.end_mark.index) + 1 or len(text)
        if item.value not in urls:
            splices.append((begin, end, ""))
    last = node.value[-1]
    begin = text.rfind("\n", 0, last.start_mark.index) + 1
    end = text.find("\n", last.end_mark.index) + 1 or len(text)
    dash = text[begin : last.start_mark.index].rstrip("\"'")
    new = "".join(f"{dash}{url}\n" for url in urls if url not in had)
    if new:
        splices.append((end, end, new if text[:end].endswith("\n") else "\n" + new))
    return splices
