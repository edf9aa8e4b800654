"""What is different about the slow requests: values that are more frequent among them than among the rest. Pure.

For each dimension (route, workers, lengths, ..) and each of its values: its share of the weight of the requests that
were asked about, against its share of the rest. Ranked by the difference, as in Honeycomb's BubbleUp; what may be
chance is left out. Decided here: the dimensions and their bins, and what is too little to be told. A difference is not
a cause: a worker with long prompts and long prompts themselves show up together, and both are told. Not decided here:
which requests are asked about (`control.history.differences`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from control.types.latencies import Difference
from control.types.requests import RequestRecord

#: Less of a difference is not told, however certain.
LEAST_DIFFERENCE: Final = 0.05
#: A difference that chance alone would show more often than this, over all values that are compared, is not told.
MAX_P_VALUE: Final = 0.01
#: With fewer requests on a side nothing is told.
LEAST_RECORDS: Final = 10

_TOKEN_BINS: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)


def token_bin(tokens: int) -> str:
    """Lengths by powers of two: "512-1023 tokens"."""
    above = next((bound for bound in _TOKEN_BINS if tokens < bound), None)
    if above is None:
        return f"{_TOKEN_BINS[-1]} tokens and over"
    return f"under {above} tokens" if above == _TOKEN_BINS[0] else f"{above // 2}-{above - 1} tokens"


def cached_bin(record: RequestRecord) -> str:
    """Share of the prompt that was found in a cache, by quarters; none and all but the last are their own."""
    if record.cached_tokens <= 0 or record.prompt_tokens <= 0:
        return "nothing cached"
    share = record.cached_tokens / record.prompt_tokens
    low = next(low for low in (0.75, 0.5, 0.25, 0.0) if share >= low)
    return f"{low:.0%}-{low + 0.25:.0%} cached"


def priority_class(record: RequestRecord) -> str:
    """As `control.gateway.urgency` says it: somebody waits for an interactive answer."""
    return "batch" if record.priority > 0 else "interactive"


def _moved(record: RequestRecord) -> str:
    kinds = {move.kind for move in record.moves}
    if "failover" in kinds:
        return "lost a worker"
    return "left a worker" if kinds else "stayed on its workers"


DIMENSIONS: Final[Mapping[str, Callable[[RequestRecord], str]]] = {
    "route rule": lambda record: record.rule or "not routed",
    "prefill worker": lambda record: record.prefill_worker or "none",
    "decode worker": lambda record: record.decode_worker or "none",
    "prompt length": lambda record: token_bin(record.prompt_tokens),
    "output length": lambda record: token_bin(record.output_tokens),
    "cached share": cached_bin,
    "class": priority_class,
    "API key": lambda record: record.api_key_name or record.api_key_id or "none",
    "gateway": lambda record: record.gateway_id,
    "failover": _moved,
}


@dataclass(slots=True)
class _Side:
    """The requests of one side: their weights by (dimension, value), and how many records they rest on."""

    weight: float = 0.0
    squares: float = 0.0
    weights: dict[tuple[str, str], float] = field(default_factory=dict)
    records: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, record: RequestRecord) -> None:
        self.weight += record.weight
        self.squares += record.weight**2
        for dimension, value_of in DIMENSIONS.items():
            key = (dimension, value_of(record))
            self.weights[key] = self.weights.get(key, 0.0) + record.weight
            self.records[key] = self.records.get(key, 0) + 1

    @property
    def effective(self) -> float:
        """How many records of equal weight would say as much (Kish)."""
        return self.weight**2 / self.squares if self.squares else 0.0


def differences(
    asked: Sequence[RequestRecord], rest: Sequence[RequestRecord], limit: int = 20
) -> tuple[Difference, ...]:
    """Values that are more frequent among `asked` than among `rest`, the largest difference first."""
    mine, others = _Side(), _Side()
    for side, records in ((mine, asked), (others, rest)):
        for record in records:
            side.add(record)
    if len(asked) < LEAST_RECORDS or len(rest) < LEAST_RECORDS:
        return ()
    num_compared = len(mine.weights.keys() | others.weights.keys())
    found = [_difference(mine, others, key, num_compared) for key in mine.weights]
    told = [each for each in found if each.difference >= LEAST_DIFFERENCE and each.p_value <= MAX_P_VALUE]
    told.sort(key=lambda each: (-each.difference, each.p_value, each.dimension, each.value))
    return tuple(told[:limit])


def _difference(mine: _Side, others: _Side, key: tuple[str, str], num_compared: int) -> Difference:
    share, rest_share = mine.weights[key] / mine.weight, others.weights.get(key, 0.0) / others.weight
    by_chance = p_value(share, mine.effective, rest_share, others.effective)
    return Difference(
        dimension=key[0],
        value=key[1],
        share=share,
        rest_share=rest_share,
        num_records=mine.records[key],
        p_value=min(1.0, by_chance * num_compared),
    )


def p_value(share: float, num: float, rest_share: float, num_rest: float) -> float:
    """How often two samples of one population differ so much: the two-proportion z-test, two-sided."""
    pooled = (share * num + rest_share * num_rest) / (num + num_rest)
    spread = math.sqrt(pooled * (1.0 - pooled) * (1.0 / num + 1.0 / num_rest))
    if spread <= 0.0:
        return 1.0
    return math.erfc(abs(share - rest_share) / spread / math.sqrt(2.0))
