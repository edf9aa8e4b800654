"""The mixes of bench/bottlenecks.py: traffic and a fleet, with capacities drawn around what the traffic asks for.

Decided here: what is offered and how much of each resource there is, by seed; and what "one more unit" of a resource
is. Not decided here, and not known here: which of them limits. That is found by trying.

Each mix draws, for each resource, how hard the offered traffic would use it (offered / capacity): mostly loose, and for
a few, chosen in turn, tight. Odd numbers are held out: they are not looked at while rules are written. They have a seed
of their own, the one after that of the even ones; when they have been looked at, it is time for another one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from control.types.bottleneck import Resource
from engine.cost_model import CostModel
from engine.device_catalogue import cost_model

MODEL: Final = "llama-3.1-8b-fp8"
DEVICE: Final = "h100-sxm-80gb"
BLOCK_TOKENS: Final = 16
TPOT_BOUND_S: Final = 0.1
#: Which resources are drawn tight, in turn; twice each, once for the odd numbers and once for the even ones.
TIGHT: Final[tuple[tuple[str, ...], ...]] = (
    (),
    ("prefill",),
    ("kv",),
    ("slots",),
    ("tpot",),
    ("link",),
    ("in_flight",),
    ("prefill", "kv"),
    ("cpu",),
    ("kv",),
    ("prefill",),
    ("prefill", "slots"),
    ("link",),
    ("tpot",),
    ("in_flight",),
    ("prompt",),
    ("kv", "tpot"),
    (),
    ("kv", "bytes"),
    ("kv", "bytes"),
    ("cpu",),
    ("cpu", "prefill"),
    ("cpu",),
    ("some_cpu",),
)
#: What a gateway uses for one of these requests, about, on the machine that this was written on.
GATEWAY_CPU_S: Final = 0.0022
#: Offered / capacity.
LOOSE: Final = (0.25, 0.6)
FULL: Final = (1.3, 1.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One fleet behind its gateways. `cpu_share`: of a core, what each gateway is given."""

    num_prefill: int
    num_decode: int
    num_gateways: int = 1
    cost: CostModel
    kv_bytes: int
    max_batch: int
    max_in_flight: int
    cpu_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    number: int
    tight: tuple[str, ...]  # what was drawn tight: not the truth
    rate_rps: float
    prompt_tokens: int
    output_tokens: int
    site: Site

    @property
    def is_held_out(self) -> bool:
        return self.number % 2 == 1

    def arrivals(self, seconds: float) -> Iterator[tuple[float, int]]:
        """Seconds from the start and prompt tokens, half to one and a half times the mean; the same every time."""
        rng = random.Random(1000 + self.number)
        at_s = rng.expovariate(self.rate_rps)
        while at_s < seconds:
            yield at_s, round(self.prompt_tokens * rng.uniform(0.5, 1.5))
            at_s += rng.expovariate(self.rate_rps)


def mix_of(number: int, seed: int) -> Mix:
    """One mix. Capacities are those of a fluid: what is offered, held for as long as it takes."""
    rng = random.Random(f"{seed + number % 2}-{number}")
    tight = TIGHT[number // 2 % len(TIGHT)]

    def load(name: str) -> float:
        return rng.uniform(*(FULL if name in tight else LOOSE))

    base = cost_model(DEVICE, MODEL)
    num_prefill, num_decode = rng.randint(1, 3), rng.randint(1, 3)
    rate_rps = rng.uniform(7.0, 10.0)
    prompt, output = rng.randint(200, 600), rng.randint(20, 40)
    prompt_rate = rate_rps * prompt / (num_prefill * load("prefill"))
    if "prompt" in tight:  # many workers, each so slow that a prompt is late by itself
        prompt_rate, num_prefill = 0.6 * prompt / (1.0 + 0.0005 * prompt), 12
        rate_rps = min(rate_rps, 0.5 * num_prefill * prompt_rate / prompt)
    step_s = rng.uniform(0.03, 0.06) if "tpot" not in tight else TPOT_BOUND_S * rng.uniform(1.1, 1.5)
    overhead = rng.uniform(0.1, 0.8) if "tpot" not in tight else 0.1
    if "bytes" in tight:  # a step is nothing but bytes that move
        overhead = 0.02
    weights = 0.25 if "tpot" in tight else 1.0  # with few weights the batch makes steps long
    link_rate = rate_rps * prompt * base.work.kv_token_bytes / (min(num_prefill, num_decode) * load("link"))
    held_s = output * step_s + prompt / prompt_rate + prompt * base.work.kv_token_bytes / link_rate
    batch = rate_rps * held_s / num_decode
    flops = base.work.prefill_flops(prompt, prompt * prompt // 2, 1)
    cost = replace(
        base,
        weight_dtype_bytes=weights,
        peak_flops=prompt_rate * flops / prompt / base.compute_efficiency,
        decode_overhead_s=overhead * step_s,
        prefill_overhead_s=0.002,
        handoff_bytes_per_s=link_rate,
    )  # fmt: skip
    step_bytes = cost.work.decode_bytes(round(batch * (prompt + output / 2)), max(1, round(batch)))
    bandwidth = step_bytes / ((1 - overhead) * step_s) / cost.bandwidth_efficiency
    kv_tokens = max(batch / load("kv"), 3.0) * (prompt + output)
    site = Site(
        num_prefill=num_prefill,
        num_decode=num_decode,
        cost=replace(cost, peak_bytes_per_s=bandwidth),
        kv_bytes=round(kv_tokens * cost.work.kv_token_bytes),
        max_batch=max(2, round(batch / load("slots"))),
        max_in_flight=max(2, round(rate_rps * held_s / load("in_flight"))) if "in_flight" in tight else 2000,
        cpu_share=rate_rps * GATEWAY_CPU_S / load("cpu") if {"cpu", "some_cpu"} & set(tight) else 1.0,
    )
    return Mix(number=number, tight=tight, rate_rps=rate_rps, prompt_tokens=prompt, output_tokens=output, site=site)


def one_more(site: Site, resource: Resource) -> Site:
    """The same fleet with one more unit of this."""
    more = (site.num_decode + 1) / site.num_decode
    match resource:
        case Resource.PREFILL:
            return replace(site, num_prefill=site.num_prefill + 1)
        case Resource.KV_ROOM:
            return replace(site, kv_bytes=round(site.kv_bytes * more))
        case Resource.DECODE_BANDWIDTH:
            return replace(site, cost=replace(site.cost, peak_bytes_per_s=site.cost.peak_bytes_per_s * more))
        case Resource.HANDOFF:
            return replace(site, cost=replace(site.cost, handoff_bytes_per_s=2 * site.cost.handoff_bytes_per_s))
        case Resource.GATEWAY:
            return replace(site, num_gateways=site.num_gateways + 1)


def variants(site: Site) -> dict[str, Site]:
    """The fleet as it is, with one more of each resource, and with one more of all."""
    found, everything = {"as it is": site}, site
    for resource in Resource:
        found[resource.value] = one_more(site, resource)
        everything = one_more(everything, resource)
    return {**found, "all": everything}
