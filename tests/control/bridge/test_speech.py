"""What other people's engines are asked, and what their answers mean, without any of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from control.bridge.speech import (
    KEEP_KV,
    SPEECHES,
    Asked,
    Chunk,
    SpeechError,
    event_of,
    problem_of,
    rendezvous,
    starts_behind_first,
)
from engine.types import FinishReason, SamplingParams

GREEDY = SamplingParams(seed=2**63 + 5, stop_token_ids=(2,))
WARM = SamplingParams(temperature=0.7, top_k=20, seed=3)
VLLM, OPENAI, SGLANG = SPEECHES["vllm"], SPEECHES["openai"], SPEECHES["sglang"]


def asked(sampling: SamplingParams = GREEDY, handoff: dict[str, Any] | None = None) -> Asked:
    return Asked(prompt=[5, 6, 7], max_tokens=9, sampling=sampling, handoff=handoff)


def chunk(kind: str, event: dict[str, Any], before: int = 0) -> Chunk:
    return SPEECHES[kind].chunk(event, before, lambda text: [ord(each) for each in text])


def test_vllm_is_told_all_that_its_own_defaults_could_change():
    body = VLLM.body("m", asked(), True)
    assert body["prompt"] == [5, 6, 7]
    assert (body["repetition_penalty"], body["top_k"], body["min_p"], body["return_token_ids"]) == (1.0, 0, 0.0, True)
    assert (body["seed"], body["stop_token_ids"]) == (5, [2])
    assert "kv_transfer_params" not in body
    assert VLLM.body("m", asked(handoff=dict(KEEP_KV)), False)["kv_transfer_params"]["do_remote_decode"] is True


def test_a_plain_server_is_told_only_what_openai_knows():
    assert set(OPENAI.body("m", asked(WARM), True)) == {
        "model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream",
    }  # fmt: skip


def test_sglang_takes_ids_and_a_room():
    body = SGLANG.body("m", asked(handoff=rendezvous("10.0.0.1", 8998, 77)), True)
    assert body["input_ids"] == [5, 6, 7]
    assert (body["bootstrap_host"], body["bootstrap_port"], body["bootstrap_room"]) == ("10.0.0.1", 8998, 77)
    assert body["sampling_params"]["top_k"] == -1


def test_a_vllm_event_is_tokens_an_end_and_the_words_of_a_handoff():
    event = {"choices": [{"text": "a", "token_ids": [9], "finish_reason": "length"}], "kv_transfer_params": {"x": 1}}
    assert chunk("vllm", event) == Chunk((9,), FinishReason.LENGTH, {"x": 1})
    assert chunk("vllm", {"choices": []}) == Chunk()
    assert chunk("vllm", {"choices": [{"text": "", "finish_reason": "stop"}]}) == Chunk((), FinishReason.STOP)


def test_text_becomes_tokens_again_where_there_are_no_ids():
    assert chunk("openai", {"choices": [{"text": "ab"}]}) == Chunk((97, 98))


def test_sglang_says_all_tokens_each_time():
    event = {"output_ids": [1, 2, 3], "meta_info": {"finish_reason": {"type": "stop"}}}
    assert chunk("sglang", event, before=2) == Chunk((3,), FinishReason.STOP)


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("vllm", {"choices": [{"text": "a"}]}),
        ("vllm", {"choices": [{"text": "a", "token_ids": ["9"]}]}),
        ("vllm", {"choices": "none"}),
        ("sglang", {"text": "a"}),
        ("openai", {"choices": [{"text": 5}]}),
    ],
)
def test_what_is_no_answer_of_its_kind_is_refused(kind: str, event: dict[str, Any]):
    with pytest.raises(SpeechError):
        chunk(kind, event)


def test_lines_of_a_stream():
    assert event_of(b": comment\n") is None
    assert event_of(b"data: [DONE]\n") is None
    assert event_of(b'data: {"choices": []}\n') == {"choices": []}
    with pytest.raises(SpeechError, match="not JSON"):
        event_of(b"data: {oh\n")
    with pytest.raises(SpeechError, match="out of memory"):
        event_of(b"data: " + json.dumps({"error": {"message": "out of\nmemory"}}).encode())


def test_a_problem_is_one_short_line():
    assert problem_of({"error": {"message": "a\n  b"}}) == "a b"
    assert problem_of("x" * 1000) == "x" * 300


def test_only_a_greedy_answer_in_token_ids_can_be_continued_exactly():
    assert VLLM.why_inexact(GREEDY) == ""
    assert "sampled" in VLLM.why_inexact(WARM)
    assert "not token ids" in OPENAI.why_inexact(GREEDY)


WORDS = {"remote_block_ids": [[4, 9, 2]], "remote_num_tokens": 40, "dcp_size": 1, "transfer_mode": "pull"}


@pytest.mark.parametrize(
    ("change", "num_prompt", "sampling", "holds"),
    [
        ({}, 40, GREEDY, True),
        ({}, 40, WARM, False),
        ({"remote_num_tokens": 48}, 48, GREEDY, False),  # three blocks of 16, all full
        ({"remote_num_tokens": 39}, 40, GREEDY, False),
        ({"remote_block_ids": [[4, 9, 2], [1]]}, 40, GREEDY, False),
        ({"dcp_size": 2}, 40, GREEDY, False),
        ({"transfer_mode": "push"}, 40, GREEDY, False),
        ({"remote_num_tokens": None}, 40, GREEDY, False),  # an older vLLM does not say it
    ],
)
def test_a_decode_server_starts_behind_the_first_token_where_its_block_comes_too(
    change: dict[str, Any], num_prompt: int, sampling: SamplingParams, holds: bool
):
    assert starts_behind_first({**WORDS, **change}, sampling, num_prompt, 16) is holds
