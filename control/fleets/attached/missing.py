"""What the engines of an attached fleet do not say, with the remedy: a state of each quantity, never a zero. Pure.

Decided here: what stands together as one line, and what is told where no page was looked at, or where it is not a page
but the attachment that lacks something. What a page has is `dialects`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Literal

from control.fleets.attached.attachment import Plan
from control.fleets.attached.engine_page import EnginePage
from control.fleets.attached.types import Finding
from control.types.fleet import Missing

#: What shows the work of workers whose controller tells only that they are there.
REMEDIES: Final = {
    "dynamo": "start it with DYN_SYSTEM_PORT, and name that port with pages= unless discovery (etcd) does",
    "ray-serve": "log_engine_metrics: true in its LLMConfig, and 10 s: Ray's metrics agents then have ray_vllm_ series",
}
_BARE: Final = ("prefill_tokens", "decode_tokens", "kv_usage", "num_running", "num_waiting")


def bare_findings(kind: str) -> tuple[Finding, ...]:
    """Of a worker that has no page which we read."""
    return tuple(
        Finding(quantity=each, state="absent", series=f"no series of {each} by worker", remedy=REMEDIES.get(kind, ""))
        for each in _BARE
    )


def missing_of(plan: Plan, pages: Mapping[str, EnginePage], bare: Collection[str] = ()) -> tuple[Missing, ...]:
    """Once for all workers that lack it. `pages`: the newest of each worker; `bare`: workers without one."""
    lacking: dict[tuple[str, str, str, str], list[str]] = {}
    for worker_id, finding in (*_on_pages(pages), *_not_on_pages(plan, pages, bare)):
        key = (finding.quantity, finding.state, finding.series, finding.remedy)
        lacking.setdefault(key, []).append(worker_id)
    return tuple(
        Missing(quantity=what, state=_state(state), series=series, remedy=remedy, worker_ids=tuple(ids))
        for (what, state, series, remedy), ids in lacking.items()
    )


def _on_pages(pages: Mapping[str, EnginePage]) -> Iterable[tuple[str, Finding]]:
    for worker_id, page in pages.items():
        yield from ((worker_id, each) for each in page.findings if each.state != "found")


def _not_on_pages(plan: Plan, pages: Mapping[str, EnginePage], bare: Collection[str]) -> Iterable[tuple[str, Finding]]:
    for worker_id in bare:
        yield from ((worker_id, each) for each in bare_findings(plan.attachment.kind))
    for worker_id, page in pages.items():
        if page.counters.decode_tokens is None:
            continue  # nothing of its work is known: it is told above
        if plan.work is None and page.counters.exported_flops is None:
            yield worker_id, _WORK
        if plan.device.peak_flops is None:
            yield worker_id, _PEAK
        if page.counters.prefill_busy_s is None and page.counters.decode_busy_s is None:
            yield worker_id, _BUSY


_WORK: Final = Finding(
    quantity="work",
    state="absent",
    series="the shape of its model, or the engine's own estimate",
    remedy="attach it with its model (--model)",
)
_PEAK: Final = Finding(
    quantity="peak", state="absent", series="its device", remedy="attach it with its device (--device)"
)
_BUSY: Final = Finding(quantity="busy", state="absent", series="how long its steps took", remedy="")


def _state(word: str) -> Literal["off", "absent", "refused"]:
    return "off" if word == "off" else "refused" if word == "refused" else "absent"
