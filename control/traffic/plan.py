"""Which requests to send and when: pure, seeded, from a profile or a recorded trace. Sending is in `client`.

The loop is open: arrivals are fixed before the first answer, so a slow server cannot slow its own load down.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from control.errors import SettingsError

DATA = Path(__file__).resolve().parents[2] / "data" / "traffic"
#: Tokens per English word of the shipped text, roughly; the server's own count is what is reported.
TOKENS_PER_WORD = 1.25
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request of the plan. `at_s` is its scheduled arrival after the start."""

    index: int
    at_s: float
    prompt: str
    prompt_tokens: int  # aimed at
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A lognormal length distribution by its median and 99th percentile, clipped to [low, high] tokens."""

    median: float
    p99: float
    low: int = 1
    high: int = 100_000

    def draw(self, rng: random.Random) -> int:
        sigma = math.log(max(self.p99 / self.median, 1.0)) / 2.326
        return min(max(round(rng.lognormvariate(math.log(self.median), sigma)), self.low), self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A shape of traffic. `curve` is (fraction of the cycle, multiple of rate_rps), linear between its points."""

    name: str
    help: str
    rate_rps: float
    prompt: Lengths
    output: Lengths
    cycle_s: float = DAY_S
    curve: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 1.0))
    shared_prefix_tokens: int = 0
    shared_prefix_share: float = 0.0

    def rate_at(self, at_s: float) -> float:
        """Arrivals per second at `at_s` into the cycle."""
        x = (at_s % self.cycle_s) / self.cycle_s
        for (x0, y0), (x1, y1) in itertools.pairwise(self.curve):
            if x0 <= x <= x1:
                return self.rate_rps * (y0 + (y1 - y0) * (x - x0) / max(x1 - x0, 1e-9))
        return self.rate_rps


def load_profile(name: str) -> Profile:
    """Read one profile of data/traffic/profiles.toml. Raises SettingsError naming the ones there are."""
    with (DATA / "profiles.toml").open("rb") as file:
        table = tomllib.load(file)
    if name not in table:
        raise SettingsError(
            f"unknown traffic profile {name!r}: there are {', '.join(sorted(table))}", field="profile", value=name
        )
    row = dict(table[name])
    row["prompt"], row["output"] = Lengths(**row["prompt"]), Lengths(**row["output"])
    row["curve"] = tuple((float(x), float(y)) for x, y in row.get("curve", [(0, 1), (1, 1)]))
    return Profile(name=name, **row)


def sentences() -> list[str]:
    """The text that prompts are made of."""
    return [line for line in (DATA / "sentences.txt").read_text("utf-8").splitlines() if line]


def prompt_text(num_tokens: int, rng: random.Random, lines: list[str]) -> str:
    """About `num_tokens` tokens of text: drawn sentences, then a question."""
    words: list[str] = []
    wanted = max(int(num_tokens / TOKENS_PER_WORD), 1)
    while len(words) < wanted:
        words += rng.choice(lines).split()
    return " ".join(words[:wanted])


def plan_profile(profile: Profile, *, seed: int) -> Iterator[PlannedRequest]:
    """Poisson arrivals at the profile's rate (thinning), without end: cut it with `until`."""
    rng, lines = random.Random(seed), sentences()
    prefix = (
        prompt_text(profile.shared_prefix_tokens, random.Random(seed + 1), lines)
        if profile.shared_prefix_tokens
        else ""
    )
    peak = profile.rate_rps * max(y for _, y in profile.curve)
    at_s, index = 0.0, 0
    if peak <= 0:
        return
    while True:
        at_s += rng.expovariate(peak)
        if rng.random() * peak > profile.rate_at(at_s):
            continue
        text = prompt_text(profile.prompt.draw(rng), rng, lines)
        if prefix and rng.random() < profile.shared_prefix_share:
            text = f"{prefix} {text}"
        yield PlannedRequest(
            index=index,
            at_s=at_s,
            prompt=text,
            prompt_tokens=round(len(text.split()) * TOKENS_PER_WORD),
            max_tokens=profile.output.draw(rng),
        )
        index += 1


def plan_trace(
    path: Path, *, seed: int, speed: float, max_prompt: int | None, max_output: int | None, limit: int | None
) -> Iterator[PlannedRequest]:
    """Replay a trace `speed` times as fast, lengths capped. Equal hash_ids give equal text, so prefix hits survive.

    CSV: TIMESTAMP, ContextTokens, GeneratedTokens. JSONL: timestamp (ms), input_length, output_length, hash_ids.

    Raises SettingsError with the line number when a row cannot be read.
    """
    lines = sentences()
    rows = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
    for index, (at_s, num_prompt, num_output, hash_ids) in enumerate(itertools.islice(rows, limit)):
        capped = min(num_prompt, max_prompt or num_prompt)
        if hash_ids:
            each = max(capped // len(hash_ids), 1)
            text = " ".join(prompt_text(each, random.Random(f"{seed}/{block}"), lines) for block in hash_ids)
        else:
            text = prompt_text(capped, random.Random(f"{seed}/{index}"), lines)
        yield PlannedRequest(
            index=index,
            at_s=at_s / speed,
            prompt=text,
            prompt_tokens=capped,
            max_tokens=max(min(num_output, max_output or num_output), 1),
        )


def faster(plan: Iterator[PlannedRequest], speed: float) -> Iterator[PlannedRequest]:
    """The same requests, `speed` times as fast."""
    return (replace(each, at_s=each.at_s / speed) for each in plan)


def capped(plan: Iterator[PlannedRequest], max_prompt: int | None, max_output: int | None) -> Iterator[PlannedRequest]:
    """The same requests, none longer than the caps in tokens; None is no cap."""
    for each in plan:
        if max_prompt is not None and each.prompt_tokens > max_prompt:
            words = each.prompt.split()[: max(int(max_prompt / TOKENS_PER_WORD), 1)]
            each = replace(each, prompt=" ".join(words), prompt_tokens=max_prompt)
        yield replace(each, max_tokens=min(each.max_tokens, max_output or each.max_tokens))


def at_constant_rate(plan: Iterator[PlannedRequest], rate_rps: float) -> Iterator[PlannedRequest]:
    """The same requests, evenly spaced: for a load sweep."""
    return (replace(each, at_s=number / rate_rps) for number, each in enumerate(plan))


def until(plan: Iterator[PlannedRequest], duration_s: float) -> Iterator[PlannedRequest]:
    """The requests that arrive within `duration_s`."""
    return itertools.takewhile(lambda each: each.at_s <= duration_s, plan)


_Row = tuple[float, int, int, tuple[int, ...]]


def _read_csv(path: Path) -> Iterator[_Row]:
    start: datetime | None = None
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                moment = datetime.fromisoformat(row["TIMESTAMP"][:26])
                start = start or moment
                yield (moment - start).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]), ()
            except (KeyError, TypeError, ValueError) as error:
                raise SettingsError(f"{path.name} line {number} is not a trace row: {error}", field="trace") from error


def _read_jsonl(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield (
                    row["timestamp"] / 1000.0,
                    row["input_length"],
                    row["output_length"],
                    tuple(row.get("hash_ids", ())),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise SettingsError(f"{path.name} line {number} is not a trace row: {error}", field="trace") from error
