"""Recorded pages of SGLang 0.5.23: its phases, its prompts, and what a CPU server does not say."""

from __future__ import annotations

import pytest

from control.fleets.attached.derive import derive
from control.fleets.attached.dialects import SGLANG, read_page
from control.fleets.attached.engine_page import Counters, EnginePage
from control.types.workers import Phase, Role
from tests.control.attached.pages_of import PAGES, TINY


def page_of(num: int) -> EnginePage:
    return read_page((PAGES / f"sglang-0.5.23-{num}.txt").read_text(), SGLANG)


def test_thirteen_prompts_and_one_token_of_a_health_check() -> None:
    page = page_of(2)
    assert page.model_id == "tiny"
    assert page.counters == Counters(
        prefill_tokens=7901,
        cached_tokens=0,
        decode_tokens=220,
        num_prompts=13,
        prompt_tokens=7900,
        length_tokens=7900,
        exported_flops=2584537600,
        exported_bytes=2533336576,
    )
    assert page.gauges.num_running == page.gauges.num_waiting == page.gauges.kv_usage == 0
    assert page.lengths[-1] == (float("inf"), 13)
    assert {"queue", "ttft", "itl", "tpot", "e2e"} <= page.latencies.keys()


def test_ten_prompts_between_two_looks_are_work_of_both_phases() -> None:
    work = derive(page_of(1), page_of(2), Role.MIXED, TINY)
    assert (work[Phase.PREFILL].tokens, work[Phase.DECODE].tokens) == (7000, 150)
    assert work[Phase.PREFILL].bytes is None  # it does not say how many steps it took


def test_a_cached_prompt_that_is_the_first_one_is_counted() -> None:
    """A label that was never counted has no line: it is 0 before, so nothing of its first growth is lost."""
    before, now = page_of(2).counters, page_of(3).counters
    assert (before.cached_tokens, now.cached_tokens) == (0, 699)
    assert now.prefill_tokens == 7902


def test_the_device_timer_is_absent_with_what_turns_it_on() -> None:
    missing = {each.quantity: each.remedy for each in page_of(2).findings if each.state == "absent"}
    assert missing.keys() == {"prefill_busy_s", "decode_busy_s"}
    assert all("SGLANG_ENABLE_METRICS_DEVICE_TIMER=1" in each for each in missing.values())


@pytest.mark.parametrize("num", [1, 2, 3])
def test_nothing_of_a_page_is_refused(num: int) -> None:
    assert all(each.state != "refused" for each in page_of(num).findings)
