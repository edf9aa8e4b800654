"""The traffic plan is the same every time, and the report counts what was sent."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from control.errors import SettingsError
from control.traffic.client import Outcome
from control.traffic.plan import Lengths, Profile, capped, faster, load_profile, plan_profile, plan_trace, until
from control.traffic.report import is_good, quantiles, summarise
from control.types.requests import Slo

FLAT = Profile(
    name="flat", help="", rate_rps=5.0, prompt=Lengths(median=50, p99=100), output=Lengths(median=10, p99=20, high=24)
)


def test_one_seed_gives_one_plan() -> None:
    assert list(until(plan_profile(FLAT, seed=3), 20)) == list(until(plan_profile(FLAT, seed=3), 20))
    assert list(until(plan_profile(FLAT, seed=4), 20)) != list(until(plan_profile(FLAT, seed=3), 20))


def test_arrivals_come_at_the_rate_of_the_profile() -> None:
    planned = list(until(plan_profile(FLAT, seed=1), 400))
    assert 1800 < len(planned) < 2200
    assert [each.at_s for each in planned] == sorted(each.at_s for each in planned)
    assert max(each.max_tokens for each in planned) <= 24


def test_the_curve_is_linear_between_its_points() -> None:
    ramp = Profile(
        name="ramp",
        help="",
        rate_rps=10.0,
        prompt=FLAT.prompt,
        output=FLAT.output,
        cycle_s=100.0,
        curve=((0, 0), (1, 1)),
    )
    assert ramp.rate_at(50.0) == pytest.approx(5.0)
    assert ramp.rate_at(125.0) == pytest.approx(2.5)


@pytest.mark.parametrize("name", ["gentle", "article", "day"])
def test_each_shipped_profile_loads(name: str) -> None:
    assert load_profile(name).rate_rps > 0


def test_an_unknown_profile_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="gentle"):
        load_profile("nosuch")


def test_a_csv_trace_is_replayed_faster_with_lengths_capped(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.6805900,91,16\n"
    )
    first, second = plan_trace(trace, seed=1, speed=2.0, max_prompt=100, max_output=20, limit=None)
    assert (first.at_s, first.prompt_tokens, first.max_tokens) == (0.0, 100, 20)
    assert (second.at_s, second.prompt_tokens, second.max_tokens) == (2.0, 91, 16)


def test_a_profile_too_is_sent_faster_with_lengths_capped() -> None:
    plan = list(itertools.islice(plan_profile(load_profile("day"), seed=1), 50))
    short = list(capped(faster(iter(plan), 2.0), max_prompt=100, max_output=10))
    assert [each.at_s for each in short] == [each.at_s / 2.0 for each in plan]
    assert max(each.prompt_tokens for each in short) == 100
    assert max(len(each.prompt.split()) for each in short) == 80
    assert max(each.max_tokens for each in short) == 10


def test_equal_hash_ids_of_a_jsonl_trace_give_equal_text(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    row = '{"timestamp": %d, "input_length": 1000, "output_length": 5, "hash_ids": [%s]}\n'
    trace.write_text(row % (0, "7, 8") + row % (1000, "7, 9"))
    first, second = plan_trace(trace, seed=1, speed=1.0, max_prompt=None, max_output=None, limit=None)
    assert first.prompt != second.prompt
    assert second.prompt.startswith(first.prompt[: len(first.prompt) // 3])


def test_a_broken_trace_row_is_named_by_its_line(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,many,44\n")
    with pytest.raises(SettingsError, match="line 2"):
        list(plan_trace(trace, seed=1, speed=1.0, max_prompt=None, max_output=None, limit=None))


SLO = Slo(ttft_base_s=1.0, ttft_per_token_s=0.001, tpot_s=0.1, max_gap_s=0.5)


@pytest.mark.parametrize(
    ("ttft_s", "e2e_s", "gap_s", "cached", "good"),
    [
        (1.9, 2.0, 0.1, 0, True),
        (2.1, 2.2, 0.1, 0, False),
        (1.9, 2.0, 0.1, 500, False),
        (1.0, 2.2, 0.1, 0, False),
        (1.0, 1.1, 0.6, 0, False),
    ],
)
def test_good_is_ttft_by_uncached_length_tpot_and_the_largest_gap(
    ttft_s: float, e2e_s: float, gap_s: float, cached: int, good: bool
) -> None:
    outcome = Outcome(
        index=0,
        status=200,
        prompt_tokens=1000,
        cached_tokens=cached,
        output_tokens=11,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        gaps_s=[gap_s],
    )
    assert is_good(outcome, SLO) is good


def test_rejections_and_errors_are_offered_but_not_good() -> None:
    fine = Outcome(index=0, status=200, output_tokens=1, ttft_s=0.1, e2e_s=0.1, route="rule=remote; prefill=w0")
    report = summarise([fine, Outcome(index=1, status=429, error="busy"), Outcome(index=2, error="reset")], SLO, 10.0)
    assert (report.offered, report.good, report.rejected, report.failed) == (3, 1, 1, 1)
    assert report.by_rule == {"remote": 1}


def test_quantiles_of_nothing_are_unknown() -> None:
    assert quantiles([]).p99 is None
    assert quantiles([1.0, None, 3.0]).max == 3.0
