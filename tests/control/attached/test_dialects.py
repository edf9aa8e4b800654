"""What the pages of real engines say in our words, through the spellings of other versions and of Ray."""

from __future__ import annotations

import math

import pytest

from control.fleets.attached.derive import derive, has_restarted
from control.fleets.attached.dialects import SGLANG, VLLM, read_page
from control.fleets.attached.engine_page import Counters
from control.types.workers import Phase, Role
from engine.work import attention_pairs
from tests.control.attached.pages_of import TINY, page_of, text_of


def test_a_prefill_engine_of_vllm():
    page = page_of("prefill-2")
    assert page.model_id == "tiny"
    assert page.counters == Counters(
        prefill_tokens=21600,
        cached_tokens=0,
        received_tokens=0,
        decode_tokens=31,  # the first token of each of 31 prompts
        num_prompts=31,
        prompt_tokens=21600,
        length_tokens=21600,
        steps=31,
        exported_flops=37588508672,
        exported_bytes=334421573120,
    )
    assert page.gauges.num_running == page.gauges.num_waiting == 0
    assert page.lengths[-1] == (float("inf"), 31)
    assert {"queue", "prefill", "ttft", "e2e"} <= page.latencies.keys()
    assert all(each.state == "found" for each in page.findings)


def test_kv_that_was_received_is_no_prefill_work():
    counters = page_of("decode-2").counters
    assert (counters.prefill_tokens, counters.received_tokens, counters.decode_tokens) == (300, 21600, 680)


def test_a_flag_that_is_off_is_told_with_what_turns_it_on_and_is_not_zero():
    page = page_of("decode-2")
    assert page.counters.exported_flops is page.counters.exported_bytes is None
    off = {each.series: each.remedy for each in page.findings if each.state == "off"}
    assert off.keys() == {f"vllm:estimated_{each}_per_gpu_total" for each in ("flops", "read_bytes", "write_bytes")}
    assert set(off.values()) == {"start the engine with --enable-mfu-metrics"}


def test_a_series_that_is_not_exported_is_unknown():
    lines = [line for line in text_of("decode-2").splitlines() if not line.startswith("vllm:kv_cache_usage_perc")]
    page = read_page("\n".join(lines) + "\n", VLLM)
    assert page.gauges.kv_usage is None
    (missing,) = [each for each in page.findings if each.state == "absent"]
    assert (missing.quantity, missing.series) == (
        "kv_usage",
        "vllm:kv_cache_usage_perc or vllm:gpu_cache_usage_perc",
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("vllm:", "ray_vllm_"),
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        ("vllm:generation_tokens_total", "vllm:generation_tokens"),
        ("vllm:prompt_tokens_by_source_total", "vllm:prompt_tokens_by_source_total_total"),
    ],
)
def test_other_spellings_say_the_same(ours: str, theirs: str):
    renamed = read_page(text_of("prefill-1").replace(ours, theirs), VLLM)
    same = page_of("prefill-1")
    assert (renamed.counters, renamed.gauges, renamed.latencies) == (same.counters, same.gauges, same.latencies)


def test_the_ranks_of_one_engine_are_added_up():
    text = text_of("prefill-1")
    both = read_page(text + text.replace('engine="0"', 'engine="1"'), VLLM)
    assert both.counters.prefill_tokens == 2 * 14600
    assert both.gauges.kv_usage == page_of("prefill-1").gauges.kv_usage  # a share stays a share
    assert both.lengths[-1][1] == 42


def test_sglang_tells_its_phases_apart():
    page = read_page(
        'sglang:realtime_tokens_total{mode="prefill_compute",model_name="m"} 700\n'
        'sglang:generation_tokens_total{model_name="m"} 40\n'
        'sglang:forward_execution_seconds_total{category="EXTEND"} 1.5\n'
        'sglang:forward_execution_seconds_total{category="DECODE"} 0\n'
        'sglang:token_usage{model_name="m"} 0.25\n',
        SGLANG,
    )
    assert (page.counters.prefill_tokens, page.counters.decode_tokens, page.counters.prefill_busy_s) == (700, 40, 1.5)
    assert page.counters.decode_busy_s is None  # it has served, so the timer is off
    assert page.gauges.kv_usage == 0.25
    assert page.has_anything


def test_sglang_says_how_long_its_prompts_were():
    """Ten prompts of 700 tokens are ten prompts, not one of 7,000; the first token of each is prefill's."""
    before, now = (
        read_page(
            f'sglang:realtime_tokens_total{{mode="prefill_compute"}} {700 * num}\n'
            f"sglang:generation_tokens_total {16 * num}\nsglang:num_requests_total {num}\n"
            f'sglang:uncached_prompt_tokens_histogram_bucket{{le="500"}} 0\n'
            f'sglang:uncached_prompt_tokens_histogram_bucket{{le="1000"}} {num}\n'
            f'sglang:uncached_prompt_tokens_histogram_bucket{{le="+Inf"}} {num}\n'
            f"sglang:uncached_prompt_tokens_histogram_sum {700 * num}\n",
            SGLANG,
        )
        for num in (3, 13)
    )
    work = derive(before, now, Role.MIXED, TINY)
    exact = TINY.prefill_flops(7000, 10 * attention_pairs(700, 700), 10)
    assert work[Phase.PREFILL].flops == pytest.approx(exact, rel=0.02)
    assert work[Phase.DECODE].tokens == 150


def test_a_page_of_another_system_has_nothing():
    page = read_page("node_cpu_seconds_total 3\n", VLLM)
    assert not page.has_anything
    assert page.why_nothing("http://e", "vllm") == "http://e has no series of vllm"


def test_a_page_of_which_nothing_can_be_says_what_was_refused():
    page = read_page("vllm:generation_tokens_total -5\nvllm:num_requests_running NaN\n", VLLM)
    assert not page.has_anything
    told = page.why_nothing("http://e", "vllm")
    assert "vllm:generation_tokens_total is -5" in told
    assert "vllm:num_requests_running is nan" in told


@pytest.mark.parametrize(
    ("series", "value", "why"),
    [
        ("vllm:kv_cache_usage_perc", "1e300", "is 1e+300: beyond 1e+24"),
        ("vllm:kv_cache_usage_perc", "40", "is 40: not within 0..1"),
        ("vllm:num_requests_running", "-8", "is -8: not within 0..1e+07"),
        ("vllm:num_requests_running", "1e18", "is 1e+18: not within 0..1e+07"),
        ("vllm:num_requests_running", "NaN", "is nan: unknown"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_named(series: str, value: str, why: str):
    page = read_page(f'{series}{{engine="0"}} {value}\nvllm:generation_tokens_total 5\n', VLLM)
    assert (page.gauges.kv_usage, page.gauges.num_running) == (None, None)
    assert [each.series for each in page.findings if each.state == "refused"] == [f"{series} {why}"]
    assert page.counters.decode_tokens == 5


def test_a_rank_that_says_no_number_makes_its_series_unknown_and_no_new_life_of_the_engine():
    lines = 'vllm:generation_tokens_total{{engine="0"}} 100\nvllm:generation_tokens_total{{engine="1"}} {}\n'
    before, now = (read_page(lines.format(value), VLLM) for value in ("100", "NaN"))
    assert (before.counters.decode_tokens, now.counters.decode_tokens) == (200, None)
    assert not has_restarted(before, now)


@pytest.mark.parametrize("bound", ["abc", "-1", "1e300", "NaN", ""])
def test_a_bucket_without_a_bound_that_can_be_is_left_out(bound: str):
    name = "vllm:time_to_first_token_seconds_bucket"
    page = read_page(f'{name}{{le="1"}} 2\n{name}{{le="{bound}"}} 3\n{name}{{le="+Inf"}} 4\n', VLLM)
    assert page.latencies["ttft"] == ((1.0, 2.0), (math.inf, 4.0))
