"""What vLLM's own counters say of a canary's KV: fetched from the other server, or computed again where it was decoded.

Pure. Decided here: when that is certain. The series count all requests of an engine, so one of somebody else's that
fetched meanwhile hides what became of ours; where nobody's fetched anything, ours did not. Read from vLLM 0.32.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from control.fleets.attached.exposition import Page, PageError, parse_page

TOKENS: Final = "vllm:prompt_tokens_by_source_total"
TRANSFERS: Final = "vllm:nixl_bytes_transferred_count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetches:
    """Of one engine, since it began. `num_transfers`: by NIXL; None where it has no such series."""

    computed_tokens: float
    fetched_tokens: float
    num_transfers: float | None = None


def fetches_of(text: str) -> Fetches | None:
    """As a metrics page has them; None where it does not say."""
    try:
        page = parse_page(text, (TOKENS, TRANSFERS))
    except PageError:
        return None
    computed, fetched = (_sum(page, TOKENS, source=each) for each in ("local_compute", "external_kv_transfer"))
    if computed is None or fetched is None:
        return None
    return Fetches(computed_tokens=computed, fetched_tokens=fetched, num_transfers=_sum(page, TRANSFERS))


def why_not_fetched(before: Fetches | None, after: Fetches | None, num_prompt: int) -> str:
    """Why it is certain that a prompt of so many tokens was computed at this engine itself; "" where it is not."""
    if before is None or after is None:
        return ""
    computed = after.computed_tokens - before.computed_tokens
    if computed >= num_prompt and after.fetched_tokens == before.fetched_tokens:
        return f"it computed {computed:g} prompt tokens and fetched none"
    if before.num_transfers and after.num_transfers == before.num_transfers:  # 0: whether it counts is not known
        return "no KV was transferred to it"
    return ""


def _sum(page: Page, name: str, **labels: str) -> float | None:
    """Over all engines of a server; None: no such series."""
    found = page.named(name, **labels)
    return sum(each.value for each in found) if found else None
