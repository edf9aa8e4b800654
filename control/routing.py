"""Which workers serve a request, and why. Pure: the same request, view and policy always give the same decision.

Decided here: the rule (DESIGN section 6, walked in a fixed order), then one worker per phase: filter, score, pick.
Not here: how a view is put together (`control.gateway.fleet`), and what is done with a decision.

Contract of a score: a worker's *cost* is in tokens (prefill) or a fraction of its KV pool (decode, local), lower is
better: what lies on it already divided by the operator's weight, plus what this request would add there. Weight 0 takes
nothing new. Between workers of equal cost a weighted hash of the request id decides, so an idle fleet shares requests
in the ratio of the weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from control.types.bottleneck import Resource
from control.types.routing import RouteRule, RoutingPolicy

#: How long a client is told to stay away when nothing can take its request.
RETRY_AFTER_S = 1.0


class WorkerView(msgspec.Struct, frozen=True):
    """A worker that is connected, ready and admitted to the table, as it looked at its last message."""

    worker_id: str
    slot: int  # its bit in `FleetView.prefixes`
    weight: float
    queued_prefill_tokens: int  # waiting there, and sent there since its last message
    kv_used_tokens: int  # held and reserved there, and sent there since its last message
    kv_total_tokens: int
    num_free_slots: int | None = None  # of its decode batch; None: it does not say
    num_taken_slots: int = 0
    prefill_tokens_per_s: float | None = None  # as measured; None: not yet
    is_backlogged: bool = False  # enough is queued there: the next prompt waits in the gateway's line


class FleetView(msgspec.Struct, frozen=True):
    """What a gateway knows of the fleet at one moment."""

    num_devices: int
    max_context: int
    block_tokens: int
    expected_output_tokens: int  # recent median
    prefill: tuple[WorkerView, ...] = ()
    decode: tuple[WorkerView, ...] = ()
    mixed: tuple[WorkerView, ...] = ()
    prefixes: Mapping[int, int] = {}  # block hash -> bits of the workers that hold the block
    has_line: bool = False  # who finds all workers full waits at the gateway, not on a worker


class RouteRequest(msgspec.Struct, frozen=True):
    """What routing needs to know of a request. `excluded`: workers that have just refused or lost it."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    block_hashes: Sequence[int] = ()
    excluded: frozenset[str] = frozenset()


class RouteDecision(msgspec.Struct, frozen=True):
    """`prefill_worker` is None when one worker serves both phases; both are None when nothing can serve it."""

    rule: RouteRule
    reason: str
    prefill_worker: str | None = None
    decode_worker: str | None = None
    retry_after_s: float = 0.0
    cached_tokens: int = 0  # of the prompt, on the decode worker
    decode_cached_tokens: int = 0  # what the rules looked at: see `RuleFacts.cached_tokens`
    lacks: Resource | None = None  # why nothing can serve it now, where more of something would help
    computing_cached_tokens: int = 0  # of the prompt, on the worker that computes it: the prefill worker where split


class RuleFacts(msgspec.Struct, frozen=True):
    """What the rules look at, without any worker: enough to replay them over stored request records."""

    request_id: str
    num_devices: int
    prompt_tokens: int
    max_tokens: int
    expected_output_tokens: int
    cached_tokens: int  # most of the prompt that one decode or mixed worker holds
    num_prefill: int
    num_decode: int


def choose_rule(facts: RuleFacts, policy: RoutingPolicy) -> tuple[RouteRule, str]:
    """Rules 1 (empty pool) to 6, in order: the first that holds, and why in words."""
    if not facts.num_prefill or not facts.num_decode:
        return RouteRule.EMPTY_POOL, f"no {'decode' if facts.num_prefill else 'prefill'} worker takes requests"
    if facts.num_devices < policy.min_fleet_devices:
        return RouteRule.SMALL_FLEET, f"{facts.num_devices} devices < min_fleet_devices {policy.min_fleet_devices}"
    uncached = facts.prompt_tokens - facts.cached_tokens
    cached_ratio = facts.cached_tokens / facts.prompt_tokens
    if facts.cached_tokens and cached_ratio >= policy.local_cache_ratio:
        return (
            RouteRule.CACHED_LOCAL,
            f"{cached_ratio:.2f} of the prompt is cached >= local_cache_ratio {policy.local_cache_ratio:g}",
        )
    output = min(facts.max_tokens, facts.expected_output_tokens)
    if uncached < policy.min_remote_prefill_tokens and output < policy.max_local_output_tokens:
        return (
            RouteRule.SHORT_LOCAL,
            f"{uncached} uncached tokens < {policy.min_remote_prefill_tokens} "
            f"and {output} expected output < {policy.max_local_output_tokens}",
        )
    if share_of(facts.request_id) >= policy.remote_share:
        return RouteRule.CONTROL_ARM, f"outside remote_share {policy.remote_share:g}"
    return RouteRule.REMOTE, f"{uncached} uncached tokens, {output} expected output"


def route(request: RouteRequest, view: FleetView, policy: RoutingPolicy) -> RouteDecision:
    """The workers for one request, with the rule that chose them and the reason."""
    need_tokens = request.prompt_tokens + request.max_tokens
    if view.max_context and need_tokens > view.max_context:
        return RouteDecision(
            RouteRule.CANNOT_FIT, f"prompt + max_tokens = {need_tokens} tokens > context of {view.max_context} tokens"
        )
    prefill = eligible(view.prefill, request.prompt_tokens, request.excluded)
    decode = eligible(view.decode, need_tokens, request.excluded)
    local = [*decode, *eligible(view.mixed, need_tokens, request.excluded)]
    if not local:
        return _nobody(request, view)
    cached = cached_tokens(request, view)
    facts = RuleFacts(
        request.request_id,
        view.num_devices,
        request.prompt_tokens,
        request.max_tokens,
        view.expected_output_tokens,
        max([cached.get(worker.slot, 0) for worker in local]) if cached else 0,
        len(prefill),
        len(decode),
    )
    rule, reason = choose_rule(facts, policy)
    if rule is RouteRule.REMOTE:
        return _split(request, prefill, decode, cached, reason, facts.cached_tokens)
    roomy = [worker for worker in local if has_room(worker, request) and not worker.is_backlogged]
    if view.has_line and not roomy:
        need_tokens = request.prompt_tokens + request.max_tokens
        reason = f"none of {len(local)} workers has KV room for {need_tokens} tokens and time for a prompt"
        has_place_somewhere = any(has_room(worker, request) for worker in local)
        return _no_capacity(reason, Resource.PREFILL if has_place_somewhere else _no_place(local, need_tokens))
    if rule is RouteRule.CACHED_LOCAL:
        local = [worker for worker in local if cached.get(worker.slot, 0) == facts.cached_tokens]
        local = [worker for worker in local if worker in roomy] or (roomy if view.has_line else local)
    else:
        local = roomy or local  # a full worker queues it
    chosen = pick(local, request, cached, with_queue=True)
    return RouteDecision(
        rule,
        reason,
        None,
        chosen.worker_id,
        cached_tokens=cached.get(chosen.slot, 0),
        decode_cached_tokens=facts.cached_tokens,
        computing_cached_tokens=cached.get(chosen.slot, 0),
    )


def _split(
    request: RouteRequest,
    prefill: list[WorkerView],
    decode: list[WorkerView],
    cached: dict[int, int],
    reason: str,
    decode_cached_tokens: int,
) -> RouteDecision:
    """Prefill by queued uncached tokens, decode by KV room, which is reserved before the prefill starts."""
    roomy = [worker for worker in decode if has_room(worker, request)]
    if not roomy:
        need_tokens = request.prompt_tokens + request.max_tokens
        reason = f"none of {len(decode)} decode workers has KV room for {need_tokens} tokens"
        return _no_capacity(reason, _no_place(decode, need_tokens))
    prefill = [worker for worker in prefill if not worker.is_backlogged]
    if not prefill:
        return _no_capacity("all prefill workers have enough prompts queued", Resource.PREFILL)
    source = pick(prefill, request, cached, with_queue=True, with_kv=False)
    target = pick(roomy, request, cached, with_queue=False)
    return RouteDecision(
        RouteRule.REMOTE,
        reason,
        source.worker_id,
        target.worker_id,
        cached_tokens=cached.get(target.slot, 0),
        decode_cached_tokens=decode_cached_tokens,
        computing_cached_tokens=cached.get(source.slot, 0),
    )


def _nobody(request: RouteRequest, view: FleetView) -> RouteDecision:
    """No worker can decode it: because of its length for ever, or for now."""
    need_tokens = request.prompt_tokens + request.max_tokens
    decoders = [*view.decode, *view.mixed]
    largest = max([worker.kv_total_tokens for worker in decoders], default=need_tokens)
    if need_tokens > largest:
        return RouteDecision(
            RouteRule.CANNOT_FIT, f"prompt + max_tokens = {need_tokens} tokens > KV pool of {largest} tokens"
        )
    tried = f", {len(request.excluded)} refused" if request.excluded else ""
    return _no_capacity(f"no worker takes new requests that decode ({len(decoders)} ready{tried})")


def _no_capacity(reason: str, lacks: Resource | None = None) -> RouteDecision:
    return RouteDecision(RouteRule.NO_CAPACITY, reason, retry_after_s=RETRY_AFTER_S, lacks=lacks)


def _no_place(workers: Iterable[WorkerView], need_tokens: int) -> Resource:
    """None of these has a place: is it the KV, or the places in the decode batch, which faster steps free sooner?"""
    has_kv = any(each.kv_total_tokens - each.kv_used_tokens >= need_tokens for each in workers)
    return Resource.DECODE_BANDWIDTH if has_kv else Resource.KV_ROOM


# --- filter ------------------------------------------------------------------------------------------------------


def eligible(workers: Iterable[WorkerView], need_tokens: int, excluded: frozenset[str]) -> list[WorkerView]:
    """Workers that may be given something new of this size."""
    fit = [each for each in workers if each.weight > 0.0 and each.kv_total_tokens >= need_tokens]
    return [each for each in fit if each.worker_id not in excluded] if excluded else fit


def has_room(worker: WorkerView, request: RouteRequest) -> bool:
    """Whether the whole request fits beside what is held and reserved there, with a place in the decode batch."""
    return has_place(worker, request.prompt_tokens + request.max_tokens)


def has_place(worker: WorkerView, kv_tokens: float) -> bool:
    """The same for so many tokens of KV."""
    if worker.num_free_slots is not None and worker.num_free_slots < 1:
        return False
    return worker.kv_total_tokens - worker.kv_used_tokens >= kv_tokens


# --- score -------------------------------------------------------------------------------------------------------


def cached_tokens(request: RouteRequest, view: FleetView) -> dict[int, int]:
    """Leading prompt tokens that each worker holds, by slot; workers that hold none are absent.

    One walk over the prompt's blocks serves all workers: a worker drops out at its first miss. At least the last
    token is always computed, so a whole cached prompt counts as one token less.
    """
    prefixes = view.prefixes
    found: dict[int, int] = {}
    holders = -1
    num_blocks = 0
    for block_hash in request.block_hashes:
        still = holders & prefixes.get(block_hash, 0)
        if still != holders:
            if num_blocks:
                _add(found, holders & ~still, num_blocks * view.block_tokens)
            holders = still
            if not holders:
                return found
        num_blocks += 1
    if num_blocks:
        _add(found, holders, min(num_blocks * view.block_tokens, request.prompt_tokens - 1))
    return found


def _add(found: dict[int, int], slots: int, tokens: int) -> None:
    while slots > 0:
        lowest = slots & -slots
        found[lowest.bit_length() - 1] = tokens
        slots ^= lowest


def share_of(request_id: str) -> float:
    """A request's place in [0, 1): uniform, and always the same for one id."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little") / 2**64


# --- pick --------------------------------------------------------------------------------------------------------


def pick(
    workers: Sequence[WorkerView],
    request: RouteRequest,
    cached: Mapping[int, int],
    *,
    with_queue: bool,
    with_kv: bool = True,
) -> WorkerView:
    """The cheapest worker. `with_queue` counts queued prefill tokens, `with_kv` KV in use, as a fraction."""
    prompt = request.prompt_tokens
    best: list[WorkerView] = []
    lowest = math.inf
    for worker in workers:
        there = (worker.queued_prefill_tokens if with_queue else 0) + (worker.kv_used_tokens if with_kv else 0)
        added = prompt - cached.get(worker.slot, 0) if cached else prompt
        cost = there / worker.weight + added
        if with_kv:
            cost /= worker.kv_total_tokens
        if cost < lowest:
            lowest = cost
            best = [worker]
        elif cost == lowest:
            best.append(worker)
    return best[0] if len(best) == 1 else _weighted_hash(best, request.request_id)


def _weighted_hash(workers: Sequence[WorkerView], request_id: str) -> WorkerView:
    """A worker wins with probability weight / sum of weights, over request ids."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8, person=b"pick").digest()
    left = int.from_bytes(digest, "little") / 2**64 * sum([worker.weight for worker in workers])
    for worker in workers:
        left -= worker.weight
        if left < 0.0:
            return worker
    return workers[-1]
