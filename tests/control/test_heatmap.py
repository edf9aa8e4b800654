"""Bins of the heatmap: each request in one, none lost, the same ones that a search by the bin's edges finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.heatmap import COLUMN_STEPS_S, MAX_COLUMNS, binned, bound_of, cells_of, column_step, edge_s
from control.types.requests import Slo
from engine.histogram import of_values

TIMES = st.lists(st.floats(1e-4, 900.0), min_size=1, max_size=60)


@given(st.dictionaries(st.integers(0, 100), TIMES, min_size=1, max_size=5))
def test_every_request_is_in_the_cell_whose_edges_hold_it(times: dict[int, list[float]]) -> None:
    cells = cells_of(binned({column: of_values(values) for column, values in times.items()}), 1.0)
    assert sum(cells.counts) == sum(len(values) for values in times.values())
    for column, bin_number, count in zip(cells.columns, cells.bins, cells.counts, strict=True):
        low, high = cells.edges_s[bin_number], cells.edges_s[bin_number + 1]
        assert count == sum(low < value <= high for value in times[column])


def test_bins_end_about_a_quarter_above_their_start_and_reach_over_the_bound() -> None:
    cells = cells_of({(0, 30): 4.0}, 100.0)
    assert cells.edges_s[0] == edge_s(30)
    assert cells.edges_s[-2] < 100.0 <= cells.edges_s[-1]
    assert cells.edges_s[1] / cells.edges_s[0] == pytest.approx(1.27, abs=0.01)


def test_nothing_is_no_cell() -> None:
    assert cells_of({}, None).edges_s == ()


@pytest.mark.parametrize(
    ("length_s", "step_s"), [(60, 1), (900, 10), (3600, 30), (86_400, 600), (604_800, 7200), (30 * 86_400, 21_600)]
)
def test_columns_are_the_narrowest_of_which_there_are_not_too_many(length_s: float, step_s: int) -> None:
    assert column_step(length_s) == step_s
    assert length_s / step_s <= MAX_COLUMNS or step_s == COLUMN_STEPS_S[-1]


def test_the_bound_of_a_first_token_is_told_with_what_a_prompt_adds() -> None:
    assert bound_of("ttft", Slo()) == (1.0, "SLO 1 s + 0.5 ms per uncached prompt token")
    assert bound_of("gap", Slo()) == (1.0, "SLO 1 s")
    assert bound_of("e2e", Slo())[0] is None
