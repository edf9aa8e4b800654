"""FLOPs and bytes per phase from what an engine says of tokens: the difference of two of its pages. Pure.

Decided here: the rules by which the tokens of one engine become work of two phases. An engine's own estimate is one
number for both phases and, in vLLM 0.32, counts a causal prompt as if every token saw every other; ours follows
`engine.work`. All of it is *derived*:

- a prompt's first token is prefill's; all others are decode's. A page that is written while it is read may tell of the
  one in one look and of the other in the next: what was taken for too few is taken later (`owed_tokens`).
- query-key pairs of prompts: exact when one prompt ended, else from the counts per length bucket, such that the lengths
  add up to what was computed.
- a decode token has the mean prompt and half the mean answer to attend to.
- a step that decodes is decode's, and so are the weights that it reads; on a prefill worker every step is prefill's.
- a worker that only counts requests did what its role says, with the mean prompt of its fleet's router: a prefill
  worker computed it, each in a pass of its own, a decode worker received it (`_by_requests`).
- an engine that counts no steps made one for each token over the mean number of sequences that decoded, which is the
  time between tokens of all of them per second: exact while it decodes without a pause, else somewhat too many.

Without the model's shape there is no work, only tokens: None, which is not 0. So it is where tokens are unknown.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from control.fleets.attached.engine_page import Buckets, Counters, EnginePage, Prompts
from control.types.workers import Phase, Role
from engine.work import ModelWork

#: Of one engine, cached ones too: a hundred times and more what the fastest do.
MOST_TOKENS_PER_S: Final = 1e8
LEAPING: Final = ("prefill_tokens", "cached_tokens", "received_tokens", "decode_tokens", "prompt_tokens", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseWork:
    """Of one phase in one interval. None is unknown."""

    tokens: float = 0.0
    steps: float = 0.0
    busy_s: float | None = None
    flops: float | None = None
    bytes: float | None = None


def derive(
    before: EnginePage,
    now: EnginePage,
    role: Role,
    work: ModelWork | None,
    elapsed_s: float = 0.0,
    owed: float = 0.0,
) -> Mapping[Phase, PhaseWork]:
    """What was done between two pages of one life of an engine, `elapsed_s` apart, in `role`. `owed`: `owed_tokens`."""
    told = grown_by(before.counters, now.counters)
    grown = _paced(_by_requests(told, role, now.prompts), role, elapsed_s)
    is_counted = told.prefill_tokens is not None
    num_local = _local_prompts(grown, role, count_of(before.lengths, now.lengths))
    prefill_tokens = grown.prefill_tokens or 0.0
    decode_tokens = max(0.0, (grown.decode_tokens or 0.0) - num_local - owed)
    steps = grown.steps or 0.0
    decode_steps = 0.0 if role is Role.PREFILL else min(steps, decode_tokens)
    found = {
        Phase.PREFILL: PhaseWork(tokens=prefill_tokens, steps=steps - decode_steps, busy_s=grown.prefill_busy_s),
        Phase.DECODE: PhaseWork(tokens=decode_tokens, steps=decode_steps, busy_s=grown.decode_busy_s),
    }
    if work is None:
        return found
    alike = 0.0 if is_counted else grown.num_requests or 0.0
    pairs = pairs_of(before.lengths, now.lengths, prefill_tokens) if not alike else alike_pairs(prefill_tokens, alike)
    context = mean_context(now.counters, now.prompts)
    contexts = decode_tokens * (context or 0.0)
    weights, kv = work.body_bytes + work.head_bytes, work.kv_token_bytes
    has_steps = grown.steps is not None
    read = prefill_tokens + (grown.cached_tokens or 0.0)
    prefill_bytes = weights * found[Phase.PREFILL].steps + kv * (read + prefill_tokens)
    decode_bytes = weights * decode_steps + kv * (contexts + decode_tokens)
    prefill_flops = (
        work.flops_per_token * prefill_tokens + work.flops_per_pair * pairs + work.flops_per_sample * num_local
    )
    decode_flops = (work.flops_per_token + work.flops_per_sample) * decode_tokens + work.flops_per_pair * contexts
    has_prefill = grown.prefill_tokens is not None
    has_decode = role is Role.PREFILL or None not in (grown.decode_tokens, context)
    return {
        Phase.PREFILL: dataclasses.replace(
            found[Phase.PREFILL],
            flops=prefill_flops if has_prefill else None,
            bytes=prefill_bytes if has_prefill and has_steps else None,
        ),
        Phase.DECODE: dataclasses.replace(
            found[Phase.DECODE],
            flops=decode_flops if has_decode else None,
            bytes=decode_bytes if has_decode and has_steps else None,
        ),
    }


def owed_tokens(before: EnginePage, now: EnginePage, role: Role, owed: float) -> float:
    """First tokens of a prefill worker that were booked as decode's before their prompts had ended on its page."""
    if role is not Role.PREFILL:
        return 0.0
    grown = grown_by(before.counters, now.counters)
    num_local = _local_prompts(grown, role, count_of(before.lengths, now.lengths))
    return max(0.0, num_local + owed - (grown.decode_tokens or 0.0))


def _by_requests(grown: Counters, role: Role, prompts: Prompts | None) -> Counters:
    """What a worker did with its prompts that counts only requests; unknown without a word of its router."""
    num = grown.num_requests
    if grown.prefill_tokens is not None or num is None:
        return grown
    if role is Role.DECODE:
        return dataclasses.replace(grown, prefill_tokens=0.0, cached_tokens=0.0)
    if prompts is None:
        return grown
    computed, cached = num * prompts.computed_tokens, num * prompts.cached_tokens
    steps = num if role is Role.PREFILL and grown.steps is None else grown.steps
    return dataclasses.replace(grown, prefill_tokens=computed, cached_tokens=cached, steps=steps)


def _paced(grown: Counters, role: Role, elapsed_s: float) -> Counters:
    """With steps, where an engine counts none and says how long its sequences waited for their tokens."""
    if grown.steps is not None or grown.itl_s is None or grown.decode_tokens is None or elapsed_s <= 0:
        return grown
    if role is not Role.DECODE:  # steps of prompts are between them: nobody says how many
        return grown
    return dataclasses.replace(grown, steps=grown.decode_tokens / max(1.0, grown.itl_s / elapsed_s))


def grown_by(before: Counters, now: Counters) -> Counters:
    """The difference, counter by counter; None where either is unknown. Never negative: see `has_restarted`."""
    values: dict[str, float | None] = {}
    for each in dataclasses.fields(Counters):
        old, new = getattr(before, each.name), getattr(now, each.name)
        values[each.name] = None if old is None or new is None else max(0.0, new - old)
    return Counters(**values)


def has_restarted(before: EnginePage, now: EnginePage) -> bool:
    """Another life of the engine: it says another start, or one of its counters fell."""
    if before.started_unix_s is not None and now.started_unix_s is not None:
        return now.started_unix_s > before.started_unix_s + 1.0
    pairs = [(getattr(before.counters, f.name), getattr(now.counters, f.name)) for f in dataclasses.fields(Counters)]
    return any(old is not None and new is not None and new < old for old, new in pairs)


def leap_of(before: Counters, now: Counters, elapsed_s: float) -> str:
    """Why the growth between two looks cannot be; "" where it can. A counter that leaps is no work that was done."""
    grown, most = grown_by(before, now), MOST_TOKENS_PER_S * max(1.0, elapsed_s)
    for name in LEAPING:
        each = getattr(grown, name)
        if each is not None and each > most:
            return f"{name} grew by {each:g} in {elapsed_s:.1f} s, which no engine can: left out"
    return ""


def count_of(before: Buckets, now: Buckets) -> float:
    """Observations between two histograms."""
    return max(0.0, (now[-1][1] if now else 0.0) - (before[-1][1] if before else 0.0))


def per_bucket(before: Buckets, now: Buckets) -> list[tuple[float, float, float]]:
    """(above, up to, count) of what was observed between two histograms; nothing when their bounds differ."""
    if before and [bound for bound, _ in before] != [bound for bound, _ in now]:
        return []
    earlier = dict(before)
    found: list[tuple[float, float, float]] = []
    low, counted = 0.0, 0.0
    for bound, total in now:
        grown = total - earlier.get(bound, 0.0)
        if grown - counted > 0:
            found.append((low, bound, grown - counted))
        low, counted = bound, max(counted, grown)
    return found


def pairs_of(before: Buckets, now: Buckets, prefill_tokens: float) -> float:
    """Query-key pairs of the prompts that were computed: sum of (c*c + c)/2 over lengths that add up to the tokens.

    Each prompt lies equally far into its length bucket, as far as makes the sum right: exact for one prompt.
    """
    if prefill_tokens <= 0:
        return 0.0
    found = [(low, 2 * low if math.isinf(high) else high, count) for low, high, count in per_bucket(before, now)]
    lowest = sum(low * count for low, _, count in found)
    width = sum((high - low) * count for low, high, count in found)
    if not found or not width:  # nothing ended yet: as one prompt
        return (prefill_tokens * prefill_tokens + prefill_tokens) / 2
    depth = (prefill_tokens - lowest) / width
    if not 0 <= depth <= 1:  # cached, received or unfinished parts: no lengths that add up, so each as a share
        scale = prefill_tokens / (lowest + width / 2)
        found, depth = [(low * scale, high * scale, count) for low, high, count in found], 0.5
    squares = sum(count * (low + depth * (high - low)) ** 2 for low, high, count in found)
    return (squares + prefill_tokens) / 2


def alike_pairs(prefill_tokens: float, num_prompts: float) -> float:
    """Query-key pairs of prompts whose lengths nobody says: as if they were equal, which is the least it can be."""
    return prefill_tokens * (prefill_tokens / num_prompts + 1) / 2


def mean_context(counters: Counters, prompts: Prompts | None = None) -> float | None:
    """Tokens that a decode token attends to, over all requests that this life of the engine has ended. An engine that
    does not count their prompts has the mean one of its router; None without that."""
    num, tokens = counters.num_prompts, counters.prompt_tokens or 0.0
    if num is None and prompts is not None and counters.num_requests is not None:
        num = counters.num_requests
        tokens = num * (prompts.computed_tokens + prompts.cached_tokens)
    if num is None:
        return None
    return (tokens + (counters.decode_tokens or 0.0) / 2) / num if num else 0.0


def _local_prompts(grown: Counters, role: Role, num_ended: float) -> float:
    """Prompts whose first token was computed here: of a prompt that was received, it was not."""
    lengths, computed = grown.length_tokens, grown.prefill_tokens
    if role is Role.PREFILL and computed is not None:
        return num_ended
    if not lengths or computed is None:
        return 0.0
    return num_ended * min(1.0, computed / lengths)
