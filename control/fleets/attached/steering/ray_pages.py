"""What vLLM's replicas in Ray Serve (2.60 tried) export through Ray: from the page of a node to one per replica. Pure.

A Serve LLM engine has no page of its own: its series, as `ray_vllm_*`, are on the page of its node's metrics agent,
with those of all others there. Decided here: which lines are whose, and what a series that is not there means.

- `ReplicaId` (vLLM's own label) names the replica; without it `WorkerId` does, by the process that Serve lists.
- A worker pushes its numbers every 10 s, so most looks see what the last one saw. Only a page that has changed counts,
  or else what was done in ten seconds would be shown as done in the last two.
- Ray shows a counter from its first increase on, and vLLM never adds 0. So one that is absent stands at 0 while the
  engine has answered nothing, or where its series is there for other sources; else it is unknown, as everywhere.
- Ray keeps of a histogram the buckets only: its `_sum` takes every value for the middle of its bucket (seen: 4 prompts
  of 700 tokens are 3000). So sums of prompt tokens are taken from the counters by source, which are exact.
- A gauge that nobody sets is dropped after some time: what an idle engine runs or holds is not said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from control.fleets.attached.dialects import VLLM, read_page
from control.fleets.attached.engine_page import Counters, EnginePage

PREFIX: Final = "ray_vllm_"
#: A page that stands still for so long is one of an idle engine: pushes are 10 s apart (`metrics_report_interval_ms`).
STILL_S: Final = 15.0
_REPLICA: Final = re.compile(r'[{,]ReplicaId="([^"]*)"')
_WORKER: Final = re.compile(r'[{,]WorkerId="([^"]*)"')
#: Of counters that are one series by source.
_SOURCES: Final = ("prefill_tokens", "cached_tokens", "received_tokens")
_COUNTED: Final = (*_SOURCES, "decode_tokens", "num_prompts", "prompt_tokens", "length_tokens", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The last page of one replica that counted."""

    page: EnginePage
    at_unix_s: float


def lines_by_replica(texts: list[str], replica_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Of the pages of all nodes. `replica_of`: the replica in each worker process, by its id."""
    found: dict[str, list[str]] = {}
    for text in texts:
        for line in text.splitlines():
            if not line.startswith(PREFIX):
                continue
            named = _REPLICA.search(line)
            worker = _WORKER.search(line)
            replica = named[1] if named and named[1] else replica_of.get(worker[1], "") if worker else ""
            if replica:
                found.setdefault(replica, []).append(line)
    return found


def page_of(lines: list[str]) -> EnginePage:
    """One replica's. Raises PageError."""
    page = read_page("\n".join(lines) + "\n", VLLM)
    if not page.has_anything:
        return page
    counters = _with_zeros(page.counters)
    known = [each for each in page.findings if each.state != "absent" or getattr(counters, each.quantity, None) is None]
    return replace(page, counters=_exact(counters), findings=tuple(known))


def counting(pages: Mapping[str, EnginePage], seen: Mapping[str, Seen], now_unix_s: float) -> dict[str, Seen]:
    """Those that say something since they were last taken: another page, or one that has stood still for long."""
    return {
        name: Seen(page=page, at_unix_s=now_unix_s)
        for name, page in pages.items()
        if name not in seen or page != seen[name].page or now_unix_s - seen[name].at_unix_s >= STILL_S
    }


#: Of an engine that has said nothing yet.
NOTHING_YET: Final = EnginePage(counters=Counters(**dict.fromkeys(_COUNTED, 0.0)))


def _exact(counters: Counters) -> Counters:
    """All prompts together, and what of them was not cached."""
    here, cached, received = (getattr(counters, name) for name in _SOURCES)
    if here is None or cached is None or received is None:
        return replace(counters, prompt_tokens=None, length_tokens=None)
    return replace(counters, prompt_tokens=here + cached + received, length_tokens=here + received)


def _with_zeros(counters: Counters) -> Counters:
    has_answered = bool(counters.decode_tokens)
    by_source = any(getattr(counters, name) is not None for name in _SOURCES)
    absent = [name for name in _SOURCES if by_source and getattr(counters, name) is None]
    if not has_answered:
        absent = [name for name in _COUNTED if getattr(counters, name) is None]
    return replace(counters, **dict.fromkeys(absent, 0.0))
