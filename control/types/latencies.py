"""Requests by latency: the heatmap, and what is different about the slow ones."""

from __future__ import annotations

from dataclasses import dataclass

from control.types.requests import LatencyKind, RecordCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Requests by arrival and latency. Cell i is in column `columns[i]` (from since + column x step on) and in bin
    `bins[i]` (above edges[bin] s, up to edges[bin + 1] s), and holds `counts[i]` > 0 requests."""

    fleet_id: str
    metric: LatencyKind
    since_unix_s: float  # of whole columns
    until_unix_s: float
    step_s: int
    edges_s: tuple[float, ...]
    columns: tuple[int, ...]
    bins: tuple[int, ...]
    counts: tuple[float, ...]
    is_estimated: bool  # counts are sums of weights of the records that are kept, else every request was counted
    bound_s: float | None  # the SLO's; of the time to first token, that of a prompt that is cached whole
    bound_text: str
    simulated: bool
    requests: RecordCounts
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One value of one dimension: its share of the requests that were asked about against its share of the rest."""

    dimension: str
    value: str
    share: float
    rest_share: float
    num_records: int  # of those asked about, with this value
    p_value: float  # of a difference as large by chance, over all values that were compared

    @property
    def difference(self) -> float:
        return self.share - self.rest_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is different about some requests: values that are more frequent among them, the largest difference first."""

    fleet_id: str
    asked: str  # which requests, in words
    since_unix_s: float
    until_unix_s: float
    num_requests: float  # they and the rest: by the weights of their records
    num_rest: float
    num_records: int  # that were looked at, of them and of the rest
    num_rest_records: int
    differences: tuple[Difference, ...]
    note: str = ""
