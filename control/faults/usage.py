"""Memory and open files of every process of a deployment over time, and how much they grew after a warm-up."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import psutil

from control.faults.place import Place
from control.processes import tree_of

#: Growth compares the means of so many samples after the warm-up and at the end, as single ones scatter.
NUM_MEAN = 5


@dataclass(frozen=True, slots=True)
class Usage:
    """One process at one time."""

    rss_bytes: int
    num_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One process that lived from the end of the warm-up to the end. `share`: 0.01 is 1%."""

    name: str
    rss_first_bytes: float
    rss_last_bytes: float
    files_first: float
    files_last: float

    @property
    def share(self) -> float:
        return self.rss_last_bytes / self.rss_first_bytes - 1.0


def sample(place: Place) -> dict[str, Usage]:
    """By name and pid: workers by their ids, others by component and program."""
    state = place.state
    workers = {each.pid: each.worker_id for each in place.readings() if each.alive}
    found: dict[str, Usage] = {}
    roots = {"supervisor": state.supervisor} | {n: r.root for n, r in state.components.items() if r.root is not None}
    for component, root in roots.items():
        below = [root] if component == "supervisor" else tree_of(root)
        for each in below:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(each.pid)
                name = workers.get(each.pid) or (component if each == root else f"{component}/{process.name()}")
                found[f"{name} {each.pid}"] = Usage(process.memory_info().rss, process.num_fds())
    return found


def growth(samples: Sequence[Mapping[str, Usage]]) -> list[Growth]:
    """Of processes that are in every sample; the samples begin after the warm-up. Empty with too few of them."""
    if len(samples) < 2 * NUM_MEAN:
        return []
    names = set.intersection(*(set(each) for each in samples))
    first, last = samples[:NUM_MEAN], samples[-NUM_MEAN:]
    return [
        Growth(
            name=name,
            rss_first_bytes=fmean(each[name].rss_bytes for each in first),
            rss_last_bytes=fmean(each[name].rss_bytes for each in last),
            files_first=fmean(each[name].num_files for each in first),
            files_last=fmean(each[name].num_files for each in last),
        )
        for name in sorted(names)
    ]
