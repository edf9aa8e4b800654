"""Which series of which engine is which of our quantities: tables, and one reader for all of them.

Decided here: names (the present one first, then those of other versions), labels, and what to say of a series that is
not there. Read from vLLM 0.32.0, SGLang 0.5.23 and Dynamo 1.6.1. Rules for every engine:

- `_total` may be missing or doubled, Ray's `ray_vllm_x` is `vllm:x`; all ranks of one engine are added up.
- `_created` series and everything that has no row here are not read.
- a label that was never counted has no line yet: beside another one that was, it is 0.
- a counter that stands at 0 while the engine has served is *off*, not 0, where a flag turns it on.
- a page that something else put around an engine's own (Dynamo) is read as the engine's, and fills what that lacks.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from control.fleets.attached.engine_page import Buckets, Counters, EnginePage, Gauges, filled
from control.fleets.attached.exposition import MAX_VALUE, Page, PageError, Sample, parse_page
from control.fleets.attached.types import Finding

STARTED: Final = "process_start_time_seconds"
MAX_MODEL_CHARS: Final = 200
#: Of one engine at a time, running or waiting.
MAX_REQUESTS: Final = 1e7


@dataclass(frozen=True, slots=True)
class Series:
    """Where one quantity is. `names`: the first that is there counts. `flag`: what turns it on; it is 0 until then."""

    names: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    flag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One engine's page. Counters that are the sum of several series have several entries."""

    kind: str
    counters: Mapping[str, tuple[Series, ...]]
    gauges: Mapping[str, Series]
    latencies: Mapping[str, Series]
    lengths: Series | None = None
    model_label: str = "model_name"
    path: str = ""  # where its page is, whatever the target says; that is then the list of its models, in JSON
    around: tuple[Dialect, ...] = ()  # engines one of whose pages is in this one
    who: str = ""  # the series whose label `worker_id` says whose page it is

    @property
    def wanted(self) -> tuple[str, ...]:
        """How the lines begin that are read at all, in every spelling."""
        parts = [*(each for parts in self.counters.values() for each in parts), *self.gauges.values()]
        parts += [*self.latencies.values(), *([self.lengths] if self.lengths else [])]
        names = {name.removesuffix("_total") for each in parts for name in each.names}
        spelled = {name.replace("vllm:", "ray_vllm_") for name in names} | {name.replace(":", "_") for name in names}
        return (STARTED, *sorted(names | spelled), *([self.who] if self.who else []))


def _by_source(source: str) -> Series:
    return Series(("vllm:prompt_tokens_by_source_total",), {"source": source})


_VLLM_MFU: Final = "--enable-mfu-metrics"

VLLM: Final = Dialect(
    kind="vllm",
    counters=MappingProxyType(
        {
            "prefill_tokens": (_by_source("local_compute"),),
            "cached_tokens": (_by_source("local_cache_hit"),),
            "received_tokens": (_by_source("external_kv_transfer"),),
            "decode_tokens": (Series(("vllm:generation_tokens_total",)),),
            "num_prompts": (Series(("vllm:request_prompt_tokens_count",)),),
            "prompt_tokens": (Series(("vllm:request_prompt_tokens_sum",)),),
            "steps": (Series(("vllm:iteration_tokens_total_count",)),),
            "length_tokens": (Series(("vllm:request_prefill_kv_computed_tokens_sum",)),),
            "exported_flops": (Series(("vllm:estimated_flops_per_gpu_total",), flag=_VLLM_MFU),),
            "exported_bytes": (
                Series(("vllm:estimated_read_bytes_per_gpu_total",), flag=_VLLM_MFU),
                Series(("vllm:estimated_write_bytes_per_gpu_total",), flag=_VLLM_MFU),
            ),
        }
    ),
    gauges=MappingProxyType(
        {
            "num_running": Series(("vllm:num_requests_running",)),
            "num_waiting": Series(("vllm:num_requests_waiting",)),
            "kv_usage": Series(("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")),
        }
    ),
    latencies=MappingProxyType(
        {
            "queue": Series(("vllm:request_queue_time_seconds",)),
            "prefill": Series(("vllm:request_prefill_time_seconds",)),
            "handoff": Series(("vllm:nixl_xfer_time_seconds",)),
            "ttft": Series(("vllm:time_to_first_token_seconds",)),
            "itl": Series(("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")),
            "tpot": Series(("vllm:request_time_per_output_token_seconds",)),
            "e2e": Series(("vllm:e2e_request_latency_seconds",)),
        }
    ),
    lengths=Series(("vllm:request_prefill_kv_computed_tokens",)),
)


def _by_mode(mode: str) -> Series:
    return Series(("sglang:realtime_tokens_total",), {"mode": mode})


_SGLANG_TIMER: Final = "SGLANG_ENABLE_METRICS_DEVICE_TIMER=1, on a GPU (0.5.23 crashes with it on a CPU)"


def _forward(category: str) -> Series:
    return Series(("sglang:forward_execution_seconds_total",), {"category": category}, flag=_SGLANG_TIMER)


SGLANG: Final = Dialect(
    kind="sglang",
    counters=MappingProxyType(
        {
            "prefill_tokens": (_by_mode("prefill_compute"),),
            "cached_tokens": (_by_mode("prefill_cache"),),
            "decode_tokens": (Series(("sglang:generation_tokens_total",)),),
            "num_prompts": (Series(("sglang:num_requests_total",)),),
            "prompt_tokens": (Series(("sglang:prompt_tokens_total",)),),
            "length_tokens": (Series(("sglang:uncached_prompt_tokens_histogram_sum",)),),
            "prefill_busy_s": (_forward("EXTEND"),),
            "decode_busy_s": (_forward("DECODE"),),
            "exported_flops": (Series(("sglang:estimated_flops_per_gpu_total",), flag=_VLLM_MFU),),
            "exported_bytes": (
                Series(("sglang:estimated_read_bytes_per_gpu_total",), flag=_VLLM_MFU),
                Series(("sglang:estimated_write_bytes_per_gpu_total",), flag=_VLLM_MFU),
            ),
        }
    ),
    gauges=MappingProxyType(
        {
            "num_running": Series(("sglang:num_running_reqs",)),
            "num_waiting": Series(("sglang:num_queue_reqs",)),
            "kv_usage": Series(("sglang:token_usage",)),
        }
    ),
    latencies=MappingProxyType(
        {
            "queue": Series(("sglang:queue_time_seconds",)),
            "ttft": Series(("sglang:time_to_first_token_seconds",)),
            "itl": Series(("sglang:inter_token_latency_seconds",)),
            "tpot": Series(("sglang:request_time_per_output_token_seconds",)),
            "e2e": Series(("sglang:e2e_request_latency_seconds",)),
        }
    ),
    lengths=Series(("sglang:uncached_prompt_tokens_histogram",)),
)

_DYNAMO_GENERATE: Final = {"dynamo_endpoint": "generate"}

#: The system page of a Dynamo worker (DYN_SYSTEM_PORT): its engine's series, and Dynamo's own around them. Its mock
#: workers count no tokens; those of their answers are the times that they measured: first tokens and gaps after one.
DYNAMO: Final = Dialect(
    kind="dynamo",
    counters=MappingProxyType(
        {
            "decode_tokens": (
                Series(("vllm:inter_token_latency_seconds_count",)),
                Series(("vllm:time_to_first_token_seconds_count",)),
            ),
            "itl_s": (Series(("vllm:inter_token_latency_seconds_sum",)),),
            "num_requests": (Series(("dynamo_component_requests_total",), _DYNAMO_GENERATE),),
        }
    ),
    gauges=MappingProxyType(
        {
            "num_running": Series(("dynamo_component_inflight_requests",), _DYNAMO_GENERATE),
            "kv_usage": Series(("dynamo_component_gpu_cache_usage_percent",)),
        }
    ),
    latencies=MappingProxyType(
        {
            "prefill": Series(
                ("dynamo_component_request_duration_seconds",), {**_DYNAMO_GENERATE, "dynamo_component": "prefill"}
            )
        }
    ),
    around=(VLLM, SGLANG),
    who="dynamo_component_uptime_seconds",
)

#: Any server of the OpenAI API: it is routed to, and nothing is known of its phases.
OPENAI: Final = Dialect(kind="openai", counters={}, gauges={}, latencies={}, path="/v1/models")

#: llm-d's pods are vLLM's servers; where they are SGLang's, the kind is `sglang`.
DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {each.kind: each for each in (VLLM, SGLANG, DYNAMO, OPENAI)} | {"llm-d": VLLM}
)


def page_url(url: str, dialect: Dialect) -> str:
    """What to look at of a target."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{dialect.path}" if dialect.path else url


def read_models(text: str) -> EnginePage:
    """A server that says what it serves, and nothing of how it fares. Raises PageError."""
    try:
        model = json.loads(text)["data"][0]["id"]
    except (ValueError, LookupError, TypeError) as error:
        raise PageError("the list of models has none", field="models") from error
    found = Finding(quantity="model", state="found", series="data.id")
    return EnginePage(model_id=str(model)[:MAX_MODEL_CHARS], findings=(found,))


def read_page(text: str, dialect: Dialect) -> EnginePage:
    """One engine's page in our words. Raises PageError."""
    if dialect.path:
        return read_models(text)
    if dialect.around:
        engines = [read_page(text, each) for each in dialect.around]
        return filled(max(engines, key=_num_found), _read_own(text, dialect))
    return _read_own(text, dialect)


def _num_found(page: EnginePage) -> int:
    return sum(1 for each in page.findings if each.state == "found")


def _read_own(text: str, dialect: Dialect) -> EnginePage:
    told = parse_page(text, dialect.wanted)
    page = _sound(_plainly_named(told), dialect)
    findings: list[Finding] = []
    has_served = any(each.value > 0 for name in _served(dialect) for each in page.named(name))
    counters = {name: _counter(name, parts, page, has_served, findings) for name, parts in dialect.counters.items()}
    gauges = {name: _gauge(name, series, page, findings) for name, series in dialect.gauges.items()}
    latencies = {kind: _buckets(kind, series, page, findings) for kind, series in dialect.latencies.items()}
    lengths = _buckets("lengths", dialect.lengths, page, findings) if dialect.lengths else ()
    # On a page of Ray's agent it is the agent that started then, not the engine.
    started = () if any(name.startswith("ray_") for name in told.samples) else page.named(STARTED)
    return EnginePage(
        worker_id=next((each.labels.get("worker_id", "") for each in page.named(dialect.who)), ""),
        model_id=_model_of(page, dialect),
        started_unix_s=started[0].value if started else None,
        counters=Counters(**counters),
        gauges=Gauges(**gauges),
        lengths=lengths,
        latencies={kind: buckets for kind, buckets in latencies.items() if buckets},
        findings=(*findings, *(Finding(quantity="", state="refused", series=each) for each in page.refused.values())),
    )


def _plainly_named(page: Page) -> Page:
    """Ray's and older spellings as the engines' own: `ray_vllm_x` and `sglang_x` are `vllm:x` and `sglang:x`."""
    samples: dict[str, tuple[Sample, ...]] = {}
    for name, found in page.samples.items():
        plain = _plain(name)
        samples[plain] = samples.get(plain, ()) + found
    return Page(samples, {_plain(name): why for name, why in page.refused.items()})


def _plain(name: str) -> str:
    plain = name.replace("ray_vllm_", "vllm:", 1) if name.startswith("ray_vllm_") else name
    return plain.replace("sglang_", "sglang:", 1) if plain.startswith("sglang_") else plain


def _sound(page: Page, dialect: Dialect) -> Page:
    """Without the series of which a value cannot be: nothing is below 0, and no share is above 1.

    Such a series goes with all its ranks: the sum of the others would look as if the engine had started anew.
    """
    shares = dialect.gauges["kv_usage"].names if "kv_usage" in dialect.gauges else ()
    counts = [
        name for each in ("num_running", "num_waiting") if each in dialect.gauges for name in dialect.gauges[each].names
    ]
    refused = dict(page.refused)
    for name, found in page.samples.items():
        low, high = min(each.value for each in found), max(each.value for each in found)
        most = 1.0 if name in shares else MAX_REQUESTS if name in counts else MAX_VALUE
        if low < 0 or high > most:
            refused.setdefault(name, f"{name} is {low if low < 0 else high:g}: not within 0..{most:g}")
    return Page({name: found for name, found in page.samples.items() if name not in refused}, refused)


def _served(dialect: Dialect) -> tuple[str, ...]:
    return tuple(name for series in dialect.counters["decode_tokens"] for name in series.names)


def _find(series: Series, page: Page) -> tuple[str, tuple[Sample, ...]]:
    """The first name that is there, with or without `_total`, and its samples; ("", ()) when none is."""
    for name in series.names:
        for spelling in (name, name.removesuffix("_total"), f"{name}_total"):
            if found := page.named(spelling, **series.labels):
                return spelling, found
    return "", ()


def _counter(
    quantity: str, parts: tuple[Series, ...], page: Page, has_served: bool, findings: list[Finding]
) -> float | None:
    """The sum of its series over all ranks; None when one of them is absent or off."""
    total: float | None = 0.0
    for series in parts:
        name, found = _find(series, page)
        value = sum(each.value for each in found)
        looked_for = name or " or ".join(series.names)
        if not found and _counts_others(series, page):
            state, remedy = "found", ""
        elif not found:
            state, remedy = "absent", f"start the engine with {series.flag}" if series.flag else ""
        elif series.flag and not value and has_served:
            state, remedy = "off", f"start the engine with {series.flag}"
        else:
            state, remedy = "found", ""
        words = ", ".join(f'{key}="{each}"' for key, each in series.labels.items())
        series_words = f"{looked_for}{{{words}}}" if words else looked_for
        findings.append(Finding(quantity=quantity, state=state, series=series_words, remedy=remedy))
        total = total + value if total is not None and state == "found" else None
    return total


def _counts_others(series: Series, page: Page) -> bool:
    """It has counted under another label: a label that was never counted has no line yet, and is 0."""
    return bool(series.labels) and any(each.value > 0 for each in _find(Series(series.names), page)[1])


def _gauge(quantity: str, series: Series, page: Page, findings: list[Finding]) -> float | None:
    """Counts add up over the ranks, a share is their mean."""
    name, found = _find(series, page)
    state = "found" if found else "absent"
    findings.append(Finding(quantity=quantity, state=state, series=name or " or ".join(series.names)))
    if not found:
        return None
    total = sum(each.value for each in found)
    return total / len(found) if quantity == "kv_usage" else total


def _buckets(quantity: str, series: Series, page: Page, findings: list[Finding]) -> Buckets:
    """Counts at or below each bound, over all ranks; empty when there is no such histogram."""
    for name in series.names:
        totals: dict[float, float] = {}
        for each in page.named(f"{name}_bucket", **series.labels):
            bound = _bound_of(each)
            if bound is not None:
                totals[bound] = totals.get(bound, 0.0) + each.value
        if totals:
            findings.append(Finding(quantity=quantity, state="found", series=name))
            return tuple(sorted(totals.items()))
    findings.append(Finding(quantity=quantity, state="absent", series=" or ".join(series.names)))
    return ()


def _bound_of(bucket: Sample) -> float | None:
    """Up to where it counts; None where that is no number, or none that anything of an engine reaches."""
    try:
        bound = float(bucket.labels.get("le", "nan"))
    except ValueError:
        return None
    return bound if 0 <= bound <= MAX_VALUE or bound == math.inf else None


def _model_of(page: Page, dialect: Dialect) -> str:
    """As the engine labels its series; several models (adapters) are named together."""
    names = {
        each.labels[dialect.model_label]
        for samples in page.samples.values()
        for each in samples
        if dialect.model_label in each.labels
    }
    return ", ".join(sorted(names))[:MAX_MODEL_CHARS]


assert all(set(each.counters) <= {one.name for one in dataclasses.fields(Counters)} for each in DIALECTS.values())
