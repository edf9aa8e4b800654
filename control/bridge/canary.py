"""The request that shows that an engine serves in a role: sent before the role holds, past all routing.

Decided here: what it asks, and what counts as proof. To decode, or to serve mixed, an engine must answer; to take part
in a split, the prompt is computed on one engine of the pair and decoded on the other, in the direction that the new
role means, and the answer must be the one that the engine which computed the prompt gives alone (the other one has not
seen it before, else it would have the KV already). Greedy, so that equal means equal. Where the engine that decodes
says for certain that it fetched nothing, the answer is right and the split is none: that is no proof.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Final

from control.bridge.engine_http import EngineAway, EngineHttp, EngineRefused
from control.bridge.fetches import Fetches, fetches_of, why_not_fetched
from control.bridge.speech import KEEP_KV, Asked, rendezvous, starts_behind_first
from engine.types import Role, SamplingParams

LIMIT_S: Final = 20.0
NUM_TOKENS: Final = 4
#: Longer than a block of any usual size, so that KV really moves, and no multiple of one, as most prompts.
NUM_PROMPT: Final = 165
#: Counters are noted after a token is sent: only what they still say after so many looks is certain.
NUM_LOOKS: Final = 4
LOOK_PAUSE_S: Final = 0.3
_GREEDY: Final = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)


async def canary(
    own: EngineHttp, partner: EngineHttp | None, role: Role, bootstrap_port: int = 0, block_tokens: int = 0
) -> str:
    """Why `own` does not serve in `role`; "" when it does. `partner`: an engine that takes the other half.

    `block_tokens`: of both; 0: theirs differ.
    """
    prompt = [50 + secrets.randbelow(200) for _ in range(NUM_PROMPT)]
    try:
        async with asyncio.timeout(LIMIT_S):
            if role is Role.MIXED or partner is None or not own.speech.splits:
                return await _serves_alone(own, prompt, role)
            source, target = (own, partner) if role is Role.PREFILL else (partner, own)
            before = fetches_of(await target.page())
            split = await _split(source, target, prompt, bootstrap_port, block_tokens)
            alone = await _answer(source, prompt, None)
            if split == alone and before is not None:
                unfetched = await _unfetched(target, before)
                return f"KV was not fetched: {target.url} decodes, but {unfetched}" if unfetched else ""
    except TimeoutError:
        return f"no answer within {LIMIT_S:g} s"
    except (EngineAway, EngineRefused) as error:
        return str(error)
    if split != alone:
        return f"prefilled at {source.url} and decoded at {target.url} it says {list(split)}, alone {list(alone)}"
    return ""


async def _answer(
    engine: EngineHttp, prompt: list[int], words: Mapping[str, Any] | None, num_tokens: int = NUM_TOKENS
) -> tuple[int, ...]:
    asked = Asked(prompt=prompt, max_tokens=num_tokens, sampling=_GREEDY, handoff=words)
    return (await engine.whole(asked)).tokens


async def _unfetched(target: EngineHttp, before: Fetches) -> str:
    """Why it is certain that nothing was fetched; "" where it was, or that is not known."""
    problem = ""
    for look in range(NUM_LOOKS):
        if look:
            await asyncio.sleep(LOOK_PAUSE_S)
        problem = why_not_fetched(before, fetches_of(await target.page()), NUM_PROMPT)
        if not problem:
            return ""
    return problem


async def _serves_alone(own: EngineHttp, prompt: list[int], role: Role) -> str:
    """What can be shown where nobody takes the other half."""
    if role is Role.PREFILL:
        return await _keeps_kv(own, prompt)
    await _answer(own, prompt, None)
    return ""


async def _keeps_kv(own: EngineHttp, prompt: list[int]) -> str:
    """There is nobody to fetch it, so all that can be shown is that it says where its KV would be."""
    if not own.speech.splits:
        return f"a server of kind {own.speech.kind} cannot prefill for another one"
    if own.speech.is_rendezvous:
        return "there is no other engine to meet"
    chunk = await own.whole(Asked(prompt=prompt, max_tokens=1, sampling=_GREEDY, handoff=KEEP_KV))
    return "" if chunk.handoff is not None else "its answer has no kv_transfer_params: is NIXL on there?"


async def _split(
    source: EngineHttp, target: EngineHttp, prompt: list[int], bootstrap_port: int, block_tokens: int
) -> tuple[int, ...]:
    """As requests are split (`control.bridge.asks`)."""
    if source.speech.is_rendezvous:
        host = source.url.split("://", 1)[1].rsplit(":", 1)[0]
        words = rendezvous(host, bootstrap_port, secrets.randbits(62))
        asked = Asked(prompt=prompt, max_tokens=1, sampling=_GREEDY, handoff=words)
        _, said = await asyncio.gather(source.whole(asked), _answer(target, prompt, words))
        return said
    chunk = await source.whole(Asked(prompt=prompt, max_tokens=1, sampling=_GREEDY, handoff=KEEP_KV))
    if chunk.handoff is None:
        raise EngineRefused(f"{source.url}: no kv_transfer_params in its answer: is NIXL on there?")
    if chunk.tokens and starts_behind_first(chunk.handoff, _GREEDY, len(prompt), block_tokens):
        rest = await _answer(target, [*prompt, chunk.tokens[0]], chunk.handoff, NUM_TOKENS - 1)
        return chunk.tokens[:1] + rest
    return await _answer(target, prompt, chunk.handoff)
