"""Gaps of many requests counted at once are those counted one by one, however long an answer is."""

from __future__ import annotations

import math
import random
from array import array
from itertools import pairwise

import numpy as np

from control.gateway.gaps import FEW, buckets_of, gaps_of
from control.gateway.timeline import MOST_KEPT, Timeline
from engine.histogram import GAMMA, MAX_S, MIN_S, bucket_of, of_values


def times(count: int, chance: random.Random) -> array[float]:
    """Gaps from none to over an hour."""
    at_s, found = 1000.0, array("d")
    for _ in range(count):
        found.append(at_s)
        at_s += chance.choice((0.0, 1e-6, chance.lognormvariate(-3.0, 2.0), 4000.0))
    return found


def one_by_one(series: array[float]) -> tuple[float, dict[int, int]]:
    gaps_s = [later - before for before, later in pairwise(series)]
    return max(gaps_s, default=0.0), of_values(gaps_s)


def test_many_series_are_counted_as_each_by_itself() -> None:
    chance = random.Random(5)
    series = [times(count, chance) for count in (0, 1, 2, 300, 0, 40, 1, 7)]
    assert sum(map(len, series)) > FEW
    assert [tuple(each) for each in gaps_of(series)] == [one_by_one(each) for each in series]


def test_few_are_counted_alike() -> None:
    series = [times(count, random.Random(count)) for count in (0, 1, 2, 9)]
    assert [tuple(each) for each in gaps_of(series)] == [one_by_one(each) for each in series]


def test_series_without_any_gap_have_none() -> None:
    assert gaps_of([array("d", [1.0])] * (FEW + 1)) == [(0.0, {})] * (FEW + 1)


def test_a_bucket_is_the_histograms_own_or_on_the_edge_its_neighbour() -> None:
    chance = random.Random(1)
    values = [0.0, MIN_S, MAX_S, 2 * MAX_S, *(10 ** chance.uniform(-6, 5) for _ in range(2_000))]
    assert buckets_of(np.array(values)).tolist() == [bucket_of(each) for each in values]
    edges = [MIN_S * GAMMA**bucket for bucket in range(1, 900)]
    for found, edge in zip(buckets_of(np.array(edges)).tolist(), edges, strict=True):
        assert abs(found - bucket_of(edge)) <= 1


def test_a_long_answer_keeps_few_times_and_loses_no_gap() -> None:
    chance, timeline, arrived_s = random.Random(2), Timeline(999.0), times(5 * MOST_KEPT, random.Random(3))
    numbers = [chance.choice((1, 1, 1, 4)) for _ in arrived_s]
    for number, at_s in zip(numbers, arrived_s, strict=True):
        timeline.add(number, at_s)
        assert len(timeline.at_s) <= MOST_KEPT
    largest_s, counts = one_by_one(arrived_s)
    counts[0] = counts.get(0, 0) + sum(numbers) - len(numbers)
    assert timeline.gaps == (largest_s, counts)
    assert (timeline.num_tokens, timeline.first_s, timeline.last_s) == (sum(numbers), 1000.0, arrived_s[-1])
    assert timeline.tpot_s is not None
    assert math.isclose(timeline.tpot_s, (arrived_s[-1] - 1000.0) / (sum(numbers) - 1))
