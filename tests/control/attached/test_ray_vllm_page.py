"""A recorded page of Ray's metrics agent with vLLM's own Ray wrappers: names, labels and totals as Ray spells them."""

from __future__ import annotations

from control.fleets.attached.dialects import VLLM, read_page
from control.fleets.attached.engine_page import Counters, EnginePage
from tests.control.attached.pages_of import PAGES


def text_of(num: int) -> str:
    return (PAGES / f"ray-2.60.0-vllm-0.32.0-{num}.txt").read_text()


def page_of(num: int) -> EnginePage:
    return read_page(text_of(num), VLLM)


def test_vllms_own_wrappers_are_read_under_rays_names() -> None:
    counters = page_of(2).counters
    assert page_of(2).model_id == "tiny"
    assert (counters.prefill_tokens, counters.decode_tokens, counters.num_prompts) == (7900, 220, 13)
    assert (counters.steps, counters.exported_flops) == (220, 8107000000)
    assert page_of(2).lengths[-1] == (float("inf"), 13)
    assert page_of(2).gauges.kv_usage == 0.25
    assert {"queue", "prefill", "ttft", "itl", "tpot", "e2e"} <= page_of(2).latencies.keys()


def test_a_counter_that_ray_has_not_seen_is_no_line_and_is_nothing() -> None:
    assert 'source="external_kv_transfer"' not in text_of(2)
    assert (page_of(2).counters.received_tokens, page_of(2).counters.cached_tokens) == (0, 0)


def test_rays_agent_started_then_and_not_the_engine() -> None:
    assert "process_start_time_seconds" in text_of(2)
    assert page_of(2).started_unix_s is None


def test_sums_of_rays_histograms_are_of_the_middles_of_their_buckets() -> None:
    """300 tokens lie in 200..500, so that Ray says 350; 700 in 500..1000, so 750. Counters are exact."""
    counters = page_of(2).counters
    assert counters.prompt_tokens == counters.length_tokens == 3 * 350 + 10 * 750
    assert counters == Counters(
        prefill_tokens=3 * 300 + 10 * 700,
        cached_tokens=0,
        received_tokens=0,
        decode_tokens=3 * 20 + 10 * 16,
        num_prompts=13,
        prompt_tokens=8550,
        length_tokens=8550,
        steps=220,
        exported_flops=8107000000,
        exported_bytes=66220000,
    )
