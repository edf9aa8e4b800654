"""A Prometheus text page as samples, within bounds: a hostile or broken page costs one target its reading, no more.

Decided here: what is taken of a page, and which values are refused. Not here: what a series means (`dialects`). Parsing
is prometheus_client's; lines that nobody asked for are dropped before it, as engines export far more than we read. What
stands before a line's number is the same at each look, and mostly on each engine: it is parsed once and remembered.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from control.errors import FleetError

MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
#: Samples of the series that we read; a vLLM engine has about 400.
MAX_SAMPLES: Final = 20_000
MAX_LINE_BYTES: Final = 4096
#: Nothing that an engine or a GPU counts in years is as large; what is added up or multiplied below it stays finite.
MAX_VALUE: Final = 1e24
#: Of what is remembered: heads of lines, and how long each may be. Together some MiB at most.
MAX_HEADS: Final = 16_384
MAX_HEAD_BYTES: Final = 512
#: A line without a timestamp, an exemplar, escapes or braces within its labels; all others are parsed as they come.
_PLAIN: Final = re.compile(r"([a-zA-Z_:][\w:]*(?:\{[^{}\\]*\})?) +([-+.\deE]+)")


class PageError(FleetError):
    """The page cannot be used; `str` says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Page:
    """Samples by name. `refused`: by series, why samples of it were left out."""

    samples: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str, **labels: str) -> tuple[Sample, ...]:
        """Those of one name whose labels are as given."""
        found = self.samples.get(name, ())
        return tuple(each for each in found if all(each.labels.get(key) == value for key, value in labels.items()))


def parse_page(text: str, prefixes: Iterable[str]) -> Page:
    """The samples whose names begin with one of `prefixes`. Raises PageError."""
    if len(text) > MAX_PAGE_BYTES:
        raise PageError(f"the page has {len(text)} bytes", field="page", value=len(text), bound=f"{MAX_PAGE_BYTES}")
    wanted = tuple(prefixes)
    lines = [line for line in text.splitlines() if line.startswith(wanted)]
    if len(lines) > MAX_SAMPLES:
        raise PageError(f"the page has {len(lines)} samples of {', '.join(wanted)}", bound=f"{MAX_SAMPLES}")
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise PageError(f"a line begins {line[:60]!r} and has {len(line)} characters", bound=f"{MAX_LINE_BYTES}")
    found: dict[str, list[Sample]] = {}
    refused: dict[str, str] = {}
    try:
        for name, labels, value in _samples(lines):
            if abs(value) <= MAX_VALUE:
                found.setdefault(name, []).append(Sample(labels, value))
            elif math.isfinite(value):
                refused[name] = f"{name} is {value:g}: beyond {MAX_VALUE:g}"
            else:
                refused[name] = f"{name} is {value}: unknown"
    except ValueError as error:
        raise PageError(f"not a Prometheus text page: {error}") from error
    return Page({name: tuple(samples) for name, samples in found.items()}, refused)


def _samples(lines: Iterable[str]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Name, labels, value. Raises ValueError."""
    others = []
    for line in lines:
        plain = _PLAIN.fullmatch(line)
        if plain is None or len(plain[1]) > MAX_HEAD_BYTES:
            others.append(line)
        else:
            yield *_head(plain[1]), float(plain[2])
    for family in text_string_to_metric_families("\n".join(others) + "\n"):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


@functools.lru_cache(MAX_HEADS)
def _head(text: str) -> tuple[str, Mapping[str, str]]:
    """Name and labels of a line, from what stands before its number."""
    (family,) = text_string_to_metric_families(f"{text} 0\n")
    (sample,) = family.samples
    return sample.name, sample.labels
