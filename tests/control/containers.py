"""How much is kept: the lengths of all containers that an object of ours reaches, by the attribute that holds them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

OURS = ("control.", "engine.")
CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def kept(root: object, but: Iterable[object] = ()) -> Counter[str]:
    """Lengths by "Type.attribute", those of all objects of a type together. What is in `but` is not looked into."""
    found: Counter[str] = Counter()
    seen = {id(each) for each in but}
    waiting: list[tuple[str, Any]] = [(type(root).__name__, root)]
    while waiting:
        name, each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, CONTAINERS):
            found[name] += len(each)
            waiting += [(f"{name}[]", inner) for inner in (each.values() if isinstance(each, Mapping) else each)]
        elif type(each).__module__.startswith(OURS):
            waiting += [(f"{type(each).__name__}.{attribute}", value) for attribute, value in _attributes(each)]
    return found


def _attributes(of: Any) -> Iterator[tuple[str, Any]]:
    names = set(getattr(of, "__dict__", ()))
    for each in type(of).__mro__:
        slots = each.__dict__.get("__slots__", ())
        names |= {slots} if isinstance(slots, str) else set(slots)
    for name in names:
        if hasattr(of, name):
            yield name, getattr(of, name)
