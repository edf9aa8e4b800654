"""The arrivals of a simulated fleet: when a request comes and how long it is. Seeded, so the same every time. Pure.

Decided here: a Poisson process whose rate follows a day, and lengths drawn from two lognormals. Prompts share no
prefix, so a simulated fleet never shows prefix hits. Not decided here: what becomes of a request
(`control.fleets.sim_gateway`).

The defaults are the shape of the article's traffic: prompts with a median of 1,020 and a p99 of 4,142 tokens, outputs
with a median of 200, which at about 32 ms a token is a decode of 3 to 9 s for most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

_Z99 = 2.3263478740408408  # 99th percentile of the standard normal


@dataclass(frozen=True, slots=True, kw_only=True)
class SimTraffic:
    """What comes. rate(t) = mean_rps * (1 + swing * cos(2 pi (t - peak_at_s) / day_s)), t in Unix seconds."""

    mean_rps: float = 36.0
    swing: float = 0.25  # 0..1: how far the busy hours rise above the mean
    day_s: float = 86_400.0  # a shorter day runs through its hours faster
    peak_at_s: float = 54_000.0  # 15:00 UTC of a day of 86,400 s
    prompt_median_tokens: int = 1020
    prompt_p99_tokens: int = 4142
    output_median_tokens: int = 200
    output_p99_tokens: int = 700
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.mean_rps < math.inf:
            raise ValueError(f"sim traffic: mean_rps is {self.mean_rps}, must be at least 0 and finite")
        if not 0 <= self.swing <= 1:
            raise ValueError(f"sim traffic: swing is {self.swing}, must be 0..1")
        if not 0 < self.day_s < math.inf:
            raise ValueError(f"sim traffic: day_s is {self.day_s}, must be above 0 and finite")
        for name in ("prompt", "output"):
            median, p99 = getattr(self, f"{name}_median_tokens"), getattr(self, f"{name}_p99_tokens")
            if not 1 <= median <= p99:
                raise ValueError(f"sim traffic: {name}_median_tokens is {median}, must be 1..{name}_p99_tokens ({p99})")

    def rate_rps(self, unix_s: float) -> float:
        """Offered requests per second at that time."""
        phase = 2 * math.pi * (unix_s - self.peak_at_s) / self.day_s
        return self.mean_rps * (1 + self.swing * math.cos(phase))


@dataclass(frozen=True, slots=True)
class Arrival:
    at_unix_s: float
    prompt_tokens: int
    output_tokens: int
    first_token: int  # the prompt is first_token, first_token + 1, ..
    seed: int


class Arrivals:
    """The endless sequence of arrivals after `start_unix_s`, by thinning a faster process of constant rate."""

    def __init__(self, traffic: SimTraffic, start_unix_s: float, *, vocab_size: int, max_tokens: int) -> None:
        """Prompt and output together have at most `max_tokens` tokens."""
        self.traffic = traffic
        self._at_s = start_unix_s
        self._random = Random(traffic.seed)
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._prompt = _lognormal(traffic.prompt_median_tokens, traffic.prompt_p99_tokens)
        self._output = _lognormal(traffic.output_median_tokens, traffic.output_p99_tokens)

    def next(self) -> Arrival | None:
        """The next one; None when the rate is 0 for ever."""
        traffic, random = self.traffic, self._random
        ceiling = traffic.mean_rps * (1 + traffic.swing)
        if ceiling <= 0:
            return None
        while True:
            self._at_s += random.expovariate(ceiling)
            if random.random() * ceiling < traffic.rate_rps(self._at_s):
                break
        output = min(self._draw(self._output), self._max_tokens // 2)
        prompt = min(self._draw(self._prompt), self._max_tokens - output, self._vocab_size - 1)
        first = random.randrange(self._vocab_size - prompt)
        return Arrival(self._at_s, prompt, output, first, random.getrandbits(32))

    def _draw(self, shape: tuple[float, float]) -> int:
        return max(1, round(self._random.lognormvariate(*shape)))


def _lognormal(median: int, p99: int) -> tuple[float, float]:
    """mu and sigma of the lognormal with this median and 99th percentile."""
    return math.log(median), math.log(p99 / median) / _Z99
