"""What is asked of a pair of engines, and what came back: our own load, a table's row, a server killed under streams.

Decided here: when a request counts as failed, refused, or changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from _streams import Round, prompts
from control.traffic.client import Outcome, SendOptions, send_plan
from control.traffic.plan import Lengths, Profile, plan_profile, until
from control.traffic.report import fingerprint, quantiles

SEED = 11
NUM_STREAMS = 8
STREAM_TOKENS = 200
PIECES_BEFORE = 40  # that each stream has given when its server is killed


def own_load(url: str, model: str, rate_rps: float, seconds: float) -> list[Outcome]:
    profile = Profile(name="pair", help="", rate_rps=rate_rps, prompt=Lengths(median=120, p99=500, low=40, high=900),
                      output=Lengths(median=24, p99=64, low=4, high=96))  # fmt: skip
    outcomes: list[Outcome] = []
    plan = until(plan_profile(profile, seed=SEED), seconds)
    options = SendOptions(base_url=url, model=model, keep_text=True, timeout_s=120.0)
    asyncio.run(send_plan(plan, options, outcomes.append, asyncio.Event()))
    return sorted(outcomes, key=lambda each: each.index)


def is_refused(outcome: Outcome) -> bool:
    return outcome.status == 429


def row(system: str, outcomes: list[Outcome], base: list[Outcome]) -> dict[str, Any]:
    """One run; `base`: the answers that it is compared with, none for the first run."""
    known = {each.index: fingerprint(each) for each in base if not each.error}
    compared = [each for each in outcomes if each.index in known and not each.error]
    broken = [each for each in outcomes if each.error and not is_refused(each)]
    ttft, e2e = quantiles(each.ttft_s for each in outcomes), quantiles(each.e2e_s for each in outcomes)
    firsts = quantiles(each.gaps_s[0] for each in outcomes if each.gaps_s)
    laters = quantiles(gap for each in outcomes for gap in each.gaps_s[1:])
    second = quantiles(each.ttft_s + each.gaps_s[0] for each in outcomes if each.gaps_s and each.ttft_s is not None)
    return {
        "system": system,
        "requests": len(outcomes),
        "failed": len(broken),
        "refused_429": sum(map(is_refused, outcomes)),
        "retry_after_max_s": max((each.retry_after_s for each in outcomes if each.retry_after_s), default=None),
        "compared": len(compared),
        "changed": sum(fingerprint(each) != known[each.index] for each in compared),
        "answers": len({each.text for each in outcomes if each.text}),
        "ttft_p50_s": ttft.p50,
        "ttft_p99_s": ttft.p99,
        "first_gap_p50_s": firsts.p50,
        "first_gap_p99_s": firsts.p99,
        "second_token_p50_s": second.p50,
        "second_token_p99_s": second.p99,
        "later_gap_p50_s": laters.p50,
        "later_gap_p99_s": laters.p99,
        "e2e_p50_s": e2e.p50,
        "e2e_p99_s": e2e.p99,
        "tokens": sum(each.output_tokens for each in outcomes),
        "errors": sorted({each.error for each in broken})[:3],
        "refusals": sorted({each.error for each in outcomes if is_refused(each)})[:3],
    }


async def killed(url: str, model: str, kill: Callable[[], None]) -> dict[str, Any]:
    """What greedy streams lose with the server that gives them; `kill` ends it."""
    texts = prompts("Kill", NUM_STREAMS, (1, 4))
    expected = await Round(url, model, texts, STREAM_TOKENS, 120.0, temperature=0).ended()
    streams = Round(url, model, texts, STREAM_TOKENS, 120.0, temperature=0)
    await streams.until_heard(PIECES_BEFORE, 60.0)
    kill()
    heard = await streams.ended()
    return {
        "killed_under": len(heard),
        "kill_lost": sum(bool(each.problem) for each in heard),
        "kill_changed": sum(a.text != b.text for a, b in zip(heard, expected, strict=True) if not a.problem),
        "kill_gap_max_s": max(each.max_gap_s for each in heard),
    }
