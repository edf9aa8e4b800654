"""What Dynamo's frontend (1.6.1) says on its own page of its workers and of the prompts that it routed. Pure.

Decided here: names and ids (decimal here, hex on the workers' pages and in ours), and what the mean prompt is: of what
was routed lately. Prompts are routed in one look and counted by their workers in another, so a mean over one look alone
would give long prompts the number of short ones; with a memory, the sum over many is right. The gauges of a worker's
*last* TTFT and ITL are not read: one value says nothing of the others. Several frontends: this is what one of them
routed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from control.fleets.attached.engine_page import EnginePage, Gauges, Prompts
from control.fleets.attached.exposition import Page, parse_page
from control.fleets.attached.types import Finding
from control.types.workers import Role

BLOCKS: Final = "dynamo_frontend_worker_active_decode_blocks"
TOTAL_BLOCKS: Final = "dynamo_frontend_model_total_kv_blocks"
ROUTED: Final = "dynamo_component_router_input_sequence_tokens"
ROUTED_CACHED: Final = "dynamo_component_router_kv_selected_cached_prefix_tokens_total"
ASKED: Final = "dynamo_frontend_input_sequence_tokens"
ASKED_CACHED: Final = "dynamo_frontend_cached_tokens_sum"
_SUMS: Final = tuple(f"{name}_{part}" for name in (ROUTED, ASKED) for part in ("sum", "count"))
MEMORY: Final = 16  # prompts: so much does the mean weigh that was
WANTED: Final = (BLOCKS, TOTAL_BLOCKS, ROUTED_CACHED, ASKED_CACHED, *_SUMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Prompts since the frontend started."""

    num: float
    tokens: float
    cached_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendPage:
    """`kv_usage`: by worker, as the router counts the blocks that it gave out. `phases`: those that it routed."""

    model_id: str = ""
    kv_usage: Mapping[str, float] = field(default_factory=dict)
    routed: Routed | None = None
    phases: frozenset[str] = frozenset()


def read_frontend(text: str) -> FrontendPage:
    """Raises PageError."""
    page = parse_page(text, WANTED)
    totals = {each.labels.get("model", ""): each.value for each in page.named(TOTAL_BLOCKS)}
    phases = {each.labels.get("phase", "") for each in page.named(f"{ROUTED}_count") if each.value}
    return FrontendPage(
        model_id=", ".join(sorted(totals)),
        kv_usage=_usage(page, next(iter(totals.values()))) if len(totals) == 1 else {},
        routed=_routed(page),
        phases=frozenset(phases),
    )


def mean_prompt(before: Routed | None, now: Routed | None, last: Prompts | None) -> Prompts | None:
    """`last`: what it was. None until a prompt was routed."""
    if now is None:
        return last
    is_same_life = before is not None and now.num >= before.num
    since = before if before is not None and is_same_life else Routed(num=0, tokens=0, cached_tokens=0)
    num = now.num - since.num
    if num <= 0:
        return last
    tokens, cached = now.tokens - since.tokens, now.cached_tokens - since.cached_tokens
    old, weight = (last, MEMORY) if last is not None and is_same_life else (Prompts(computed_tokens=0), 0)
    return Prompts(
        computed_tokens=(max(0.0, tokens - cached) + weight * old.computed_tokens) / (num + weight),
        cached_tokens=(max(0.0, cached) + weight * old.cached_tokens) / (num + weight),
    )


def told_of(worker_id: str, role: Role, page: FrontendPage, prompts: Prompts | None) -> EnginePage:
    """What this frontend knows of one worker; a phase that its role has no part in is not missed."""
    usage = page.kv_usage.get(worker_id)
    found = [Finding(quantity="kv_usage", state="found", series=BLOCKS)] if usage is not None else []
    if prompts is not None or role is Role.DECODE:
        found.append(Finding(quantity="prefill_tokens", state="found", series=f"{ROUTED} by its requests"))
    if role is Role.PREFILL:
        found.append(Finding(quantity="decode_tokens", state="found", series="none, as it prefills"))
    return EnginePage(model_id=page.model_id, gauges=Gauges(kv_usage=usage), prompts=prompts, findings=tuple(found))


def hex_id(decimal: str) -> str:
    """ "" for what is no number."""
    return f"{int(decimal):x}" if decimal.isdecimal() else ""


def _usage(page: Page, blocks: float) -> dict[str, float]:
    """The mean over its data-parallel ranks; none where the sizes do not fit."""
    held: dict[str, list[float]] = {}
    for each in page.named(BLOCKS):
        held.setdefault(hex_id(each.labels.get("worker_id", "")), []).append(each.value)
    shares = {name: sum(found) / (len(found) * blocks) for name, found in held.items() if name and blocks > 0}
    return {name: share for name, share in shares.items() if 0 <= share <= 1}


def _routed(page: Page) -> Routed | None:
    """As the router counts them, which knows what was cached; else as the frontend does."""
    for name, cached, phases in ((ROUTED, ROUTED_CACHED, ("prefill", "aggregated")), (ASKED, ASKED_CACHED, (None,))):
        num, tokens, reused = (
            sum(each.value for each in page.named(series) if phases == (None,) or each.labels.get("phase") in phases)
            for series in (f"{name}_count", f"{name}_sum", cached)
        )
        if num:
            return Routed(num=num, tokens=tokens, cached_tokens=reused)
    return None
