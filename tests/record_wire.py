"""Records one frame of every message between processes, for the releases to come.

    python -m tests.record_wire > tests/wire_REVISION.json

Each field gets a value that is not its default, made from its type alone, so that a frame is the same in every release
that has the same fields. Recorded are the wire (gateways, plane and workers) and the link (gateways and plane).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from enum import Enum
from types import UnionType
from typing import Any

import msgspec

from control.gateway import link
from engine import wire


def sample(kind: Any, depth: int = 0) -> Any:
    """A value of this type, never the empty one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        return sample(next(each for each in arguments if each is not type(None)), depth)
    if origin in (list, tuple, set, frozenset):
        inner = arguments[0] if arguments else int
        return origin([sample(inner, depth + 1)])
    if origin is dict:
        return {sample(arguments[0], depth + 1): sample(arguments[1], depth + 1)}
    if origin is typing.Literal:
        return arguments[-1]
    if origin is typing.Annotated:
        return sample(arguments[0], depth)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return filled(kind, depth + 1)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{each.name: sample(hints[each.name], depth + 1) for each in dataclasses.fields(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind)[1]
    return {bool: True, int: 7, float: 2.5, str: "words", bytes: b"bytes"}[kind]


def filled(kind: type[msgspec.Struct], depth: int = 0) -> Any:
    """A struct with a value in every field."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: sample(hints[name], depth) for name in kind.__struct_fields__})


def messages(union: Any) -> list[type[Any]]:
    """Every message that is sent on its own, by name."""
    return sorted(typing.get_args(union), key=lambda each: str(each.__name__))


def wire_frames() -> dict[str, bytes]:
    return {each.__name__: wire.encode(filled(each)) for each in messages(wire.AnyMessage)}


def link_frames() -> dict[str, bytes]:
    return {each.__name__: link.encode(filled(each)) for each in messages(link.AnyLinkMessage)}


def record() -> dict[str, Any]:
    return {
        "protocol": wire.PROTOCOL,
        "features": list(wire.FEATURES),
        "wire": {name: frame.hex() for name, frame in wire_frames().items()},
        "link": {name: frame.hex() for name, frame in link_frames().items()},
    }


if __name__ == "__main__":
    json.dump(record(), sys.stdout, indent=1, sort_keys=True)
    print()
