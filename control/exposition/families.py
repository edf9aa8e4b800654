"""Families of Prometheus metrics, and one scrape of them as text. A table of names, and pure functions.

Decided here: what a name must look like, which bounds a histogram has, and that the scraper chooses the format
(`Accept`): OpenMetrics with exemplars, or the classic text. Not decided here: which metrics there are; each page says.
Encoding is `prometheus_client`'s. Its own counters are not used: ours exist already, with exact buckets.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from engine.histogram import GAMMA, MIN_S, NUM_BUCKETS, bucket_of, value_of

Kind = Literal["counter", "gauge", "histogram"]
#: One bound in so many of our buckets: five to a decade. A bound is an edge of ours, so its count is exact, and counts
#: of several pages add up. 1 ms to 250 s.
_EVERY: Final = 23
_FIRST: Final = bucket_of(0.001)
_EDGES: Final = tuple(range(_FIRST, bucket_of(300.0) + 1, _EVERY))
BOUNDS_S: Final = tuple(MIN_S * GAMMA**bucket for bucket in _EDGES)
#: Series of one histogram under one set of labels: its bounds, +Inf, sum and count.
SERIES_PER_HISTOGRAM: Final = len(BOUNDS_S) + 3
_BOUND_WORDS: Final = (*map(repr, BOUNDS_S), "+Inf")
#: Of each bucket of ours: the index of the first bound that is not below it, and the value that stands for it.
_BOUND_OF: Final = tuple(min(len(_EDGES), max(0, -(-(bucket - _FIRST) // _EVERY))) for bucket in range(NUM_BUCKETS))
_VALUE_OF: Final = tuple(map(value_of, range(NUM_BUCKETS)))
_NAME: Final = re.compile(r"phaseline(_[a-z0-9]+)+")
_UNITS: Final = ("_seconds", "_bytes", "_ratio", "_tokens", "_flops", "_info", "_watts")


@dataclass(frozen=True, slots=True)
class Family:
    """One name: what it counts, and by which labels. Raises ValueError for a name that breaks the rules."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_total = self.name.endswith("_total")
        if not _NAME.fullmatch(self.name) or is_total != (self.kind == "counter"):
            raise ValueError(f"{self.name}: a counter, and only a counter, is named phaseline_.._total")
        if self.kind == "histogram" and not self.name.endswith(_UNITS):
            raise ValueError(f"{self.name}: a histogram's name ends with its unit")


@dataclass(slots=True)
class Latencies:
    """Durations that were observed: how many up to each bound, their sum, and the newest trace at each. Fixed size."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))  # the last is +Inf; not cumulated
    sum_s: float = 0.0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)  # by index of the bound

    def observe(self, value_s: float, trace_id: str = "", at_unix_s: float | None = None) -> None:
        index = bisect_left(BOUNDS_S, value_s)
        self.counts[index] += 1
        self.sum_s += value_s
        if trace_id:
            self.exemplars[index] = Exemplar({"trace_id": trace_id}, value_s, at_unix_s)

    def add(self, buckets: Mapping[int, int]) -> None:
        """What `engine.histogram` counted: the counts are exact, the sum is within 1%."""
        counts, sum_s = self.counts, self.sum_s
        for bucket, count in buckets.items():
            counts[_BOUND_OF[bucket]] += count
            sum_s += _VALUE_OF[bucket] * count
        self.sum_s = sum_s


class Page:
    """What one scrape says. Families come out in the order of the catalogue; one without samples is left out."""

    def __init__(self, catalogue: Iterable[Family], constant: Mapping[str, str] | None = None) -> None:
        """`constant`: labels of every series."""
        self._constant = dict(constant or {})
        self._found: dict[str, Metric] = {each.name: self._empty(each) for each in catalogue}

    def _empty(self, family: Family) -> Metric:
        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
        found: Metric = kinds[family.kind](family.name, family.help, labels=[*self._constant, *family.labels])
        return found

    def put(self, family: Family, value: float | None, *labels: str) -> None:
        """One sample. None is unknown: no sample, which a chart shows as a gap."""
        assert len(labels) == len(family.labels), f"{family.name} has the labels {family.labels}"
        metric = self._found[family.name]
        assert isinstance(metric, CounterMetricFamily | GaugeMetricFamily)
        if value is not None:
            metric.add_metric([*self._constant.values(), *labels], value)

    def put_latencies(self, family: Family, latencies: Latencies, *labels: str) -> None:
        assert len(labels) == len(family.labels), f"{family.name} has the labels {family.labels}"
        metric = self._found[family.name]
        assert isinstance(metric, HistogramMetricFamily)
        metric.add_metric([*self._constant.values(), *labels], _cumulated(latencies), latencies.sum_s)

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in self._found.values() if metric.samples)

    @property
    def num_series(self) -> int:
        return sum(len(metric.samples) for metric in self.collect())


def rendered(pages: Sequence[Page], accept: str) -> tuple[bytes, str]:
    """Several pages of one catalogue as one scrape, in the format asked for, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(_Joined(pages)), content_type


class _Joined:
    """Pages of several fleets: each family once, with the samples of all."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for page in self._pages:
            for metric in page.collect():
                if metric.name in found:
                    found[metric.name].samples += metric.samples
                else:
                    found[metric.name] = metric
        return iter(found.values())


def _cumulated(latencies: Latencies) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    found: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for index, count in enumerate(accumulate(latencies.counts)):
        bound, exemplar = _BOUND_WORDS[index], latencies.exemplars.get(index)
        found.append((bound, count) if exemplar is None else (bound, count, exemplar))
    return found


def families_markdown(families: Iterable[Family]) -> str:
    """The catalogue as a table of the documentation."""
    rows = ["| name | type | labels | what |", "|---|---|---|---|"]
    for each in families:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    return "\n".join(rows)
