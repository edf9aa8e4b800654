"""Everything a client can get wrong gets one clear error in OpenAI's envelope, and no worker hears of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from gateway_builders import House, chat_body, house
from hypothesis import given, settings
from hypothesis import strategies as st

from control.gateway.errors import GatewayError
from control.gateway.http import parse_headers
from control.gateway.null_worker import NullConfig
from control.gateway.schema import PARAMETERS, parameters_markdown, parse_ask
from engine.text import ModelText
from engine.wire import Submit

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
DEEP = b"[" * 40_000 + b"]" * 40_000


ON_ONE_LOOP = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(text: ModelText) -> AsyncIterator[House]:
    async with house(text, [NullConfig(max_context=128)]) as running:
        yield running


def envelope(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, after a check of its shape."""
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    assert "Traceback" not in body["error"]["message"]
    return dict(body["error"])


BAD_VALUES = [
    ({"temperature": -0.1}, "temperature", "0..2"),
    ({"temperature": 2.01}, "temperature", "0..2"),
    ({"temperature": "hot"}, "temperature", "0..2"),
    ({"temperature": True}, "temperature", "0..2"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_p": 1.5}, "top_p", "up to 1"),
    ({"top_k": -1}, "top_k", "0..1000000"),
    ({"max_tokens": 0}, "max_tokens", "1.."),
    ({"max_tokens": -5}, "max_tokens", "1.."),
    ({"max_tokens": 1.5}, "max_tokens", "whole number"),
    ({"max_tokens": 10**30}, "max_tokens", "1.."),
    ({"max_tokens": "8"}, "max_tokens", "whole number"),
    ({"max_completion_tokens": 9, "max_tokens": 8}, "max_completion_tokens", "differ"),
    ({"seed": 2**64}, "seed", "whole number"),
    ({"seed": 1.0}, "seed", "whole number"),
    ({"n": 2}, "n", "only 1 is accepted"),
    ({"stop": ["a"] * 5}, "stop", "up to 4"),
    ({"stop": [""]}, "stop", "1..256 characters"),
    ({"stop": [3]}, "stop", "1..256 characters"),
    ({"stop": {"a": 1}}, "stop", "list of up to 4"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options", "unknown parameter"),
    ({"stream": True, "stream_options": 3}, "stream_options", "an object"),
    ({"ignore_eos": 1}, "ignore_eos", "true or false"),
    ({"priority": 101}, "priority", "-100..100"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"tool_choice": "required"}, "tool_choice", "not supported"),
    ({"logprobs": True}, "logprobs", "not supported"),
    ({"top_logprobs": 3}, "top_logprobs", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
    ({"frequency_penalty": -1}, "frequency_penalty", "not supported"),
    ({"temprature": 1}, "temprature", "unknown parameter"),
    ({"prompt": "chat takes messages"}, "prompt", "unknown parameter"),
    ({"messages": ...}, "messages", "required"),
    ({"messages": None}, "messages", "required"),
    ({"messages": []}, "messages", "not empty"),
    ({"messages": "hi"}, "messages", "a list"),
    ({"messages": [3]}, "messages[0]", "an object"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "one of system"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "one of system"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "a string"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a string"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "a text part"),
    ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0]", "unknown parameter"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls", "not supported"),
    ({"model": ...}, "model", "required"),
    ({"model": 5}, "model", "a string"),
    ({"model": ""}, "model", "not empty"),
]


@pytest.mark.parametrize(("change", "param", "says"), BAD_VALUES, ids=[str(case[0])[:60] for case in BAD_VALUES])
def test_a_bad_value_is_refused_by_name_with_its_bound(change: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_ask("chat", json.dumps(chat_body(**change)).encode())
    error = caught.value
    assert error.status == 400
    assert error.param == param
    assert param in error.message
    assert says in error.message


BAD_PROMPTS: list[tuple[Any, str]] = [
    ("", "not empty"),
    ([], "not empty"),
    ([""], "not empty"),
    ([[]], "not empty"),
    (["a", "b"], "holds 2 prompts"),
    ([[1], [2]], "holds 2 prompts"),
    ([1, "a"], "prompt[1] must be a token id"),
    ([-1], "prompt[0] must be a token id"),
    ([1.5], "a token id"),
    ({"text": "a"}, "a string or a list"),
    (7, "a string or a list"),
    (None, "prompt is required"),
]


@pytest.mark.parametrize(("prompt", "says"), BAD_PROMPTS, ids=[str(case[0]) for case in BAD_PROMPTS])
def test_a_bad_prompt_is_refused_and_says_why(prompt: Any, says: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_ask("completions", json.dumps({"model": "m", "prompt": prompt}).encode())
    assert caught.value.status == 400
    assert says in caught.value.message


BAD_BODIES = [
    (b"", "not a valid JSON"),
    (b"{", "not a valid JSON"),
    (b"[]", "must be an object"),
    (b"null", "must be an object"),
    (b'{"model": NaN}', "model must be a finite number"),
    (b'{"model": Infinity}', "not a valid JSON"),
    (b'{"temperature": 1e999}', "temperature must be a finite number"),
    (b'{"model": "a\xff"}', "invalid UTF-8"),
    (b'{"model": "\\ud800"}', "not a valid JSON"),
    (b'{"a":' + DEEP + b"}", "nested too deeply"),
    (b"\xef\xbb\xbf{}", "not a valid JSON"),
    (b"model=null", "not a valid JSON"),
]


@pytest.mark.parametrize(("body", "says"), BAD_BODIES, ids=[str(case[0][:20]) for case in BAD_BODIES])
@ON_ONE_LOOP
async def test_a_body_that_is_not_json_gets_an_envelope_over_http(place: House, body: bytes, says: str) -> None:
    num_seen = len(place.seen(0, Submit))
    for path in (CHAT, COMPLETIONS):
        response = await place.client.post(path, content=body)
        assert response.status_code == 400
        error = envelope(response)
        assert error["code"] == "invalid_json"
        assert says in error["message"]
    assert len(place.seen(0, Submit)) == num_seen


@ON_ONE_LOOP
async def test_a_body_over_the_limit_is_refused_with_and_without_a_length(place: House) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000

    for content in (b" " * 200_000, parts()):
        response = await place.client.post(CHAT, content=content)
        assert response.status_code == 413
        assert "100000 bytes" in envelope(response)["message"]


WRONG_CALLS = [
    ("GET", CHAT, 405, "method_not_allowed"),
    ("DELETE", COMPLETIONS, 405, "method_not_allowed"),
    ("POST", "/v1/models", 405, "method_not_allowed"),
    ("POST", "/healthz", 405, "method_not_allowed"),
    ("GET", "/", 404, "unknown_url"),
    ("POST", "/v1/embeddings", 404, "unknown_url"),
    ("GET", "/v1/models/other", 404, "model_not_found"),
    ("GET", "/v1/models/%2e%2e", 404, "model_not_found"),
]


@pytest.mark.parametrize(("method", "path", "status", "code"), WRONG_CALLS)
@ON_ONE_LOOP
async def test_wrong_paths_and_methods_get_an_envelope(
    place: House, method: str, path: str, status: int, code: str
) -> None:
    response = await place.client.request(method, path)
    assert response.status_code == status
    assert envelope(response)["code"] == code
    assert ("allow" in response.headers) is (status == 405)


@ON_ONE_LOOP
async def test_an_unknown_model_is_404_and_names_the_one_that_is_served(place: House) -> None:
    response = await place.chat(model="gpt-5")
    assert response.status_code == 404
    error = envelope(response)
    assert error["code"] == "model_not_found"
    assert "'gpt-5'" in error["message"]
    assert "'null'" in error["message"]


@ON_ONE_LOOP
async def test_prompt_and_answer_over_the_context_are_refused_with_all_numbers(place: House) -> None:
    response = await place.client.post(COMPLETIONS, json={"model": "null", "prompt": [5] * 100, "max_tokens": 29})
    assert response.status_code == 400
    error = envelope(response)
    assert error["code"] == "context_length_exceeded"
    assert "prompt 100 + max_tokens 29 = 129 tokens, over the context of 128 tokens" in error["message"]


@ON_ONE_LOOP
async def test_a_prompt_that_fills_the_context_is_refused(place: House) -> None:
    response = await place.client.post(COMPLETIONS, json={"model": "null", "prompt": [5] * 128})
    assert response.status_code == 400
    assert "128 tokens" in envelope(response)["message"]


@ON_ONE_LOOP
async def test_a_default_answer_is_clipped_to_the_room_that_is_left(place: House) -> None:
    response = await place.client.post(COMPLETIONS, json={"model": "null", "prompt": [5] * 120})
    assert response.json()["usage"]["completion_tokens"] == 8


@ON_ONE_LOOP
async def test_a_token_id_outside_the_vocabulary_is_named(place: House) -> None:
    response = await place.client.post(COMPLETIONS, json={"model": "null", "prompt": [5, 50_000]})
    assert response.status_code == 400
    assert "prompt[1] must be a token id in 0..296, got 50000" in envelope(response)["message"]


BAD_HEADERS = [
    ({"X-Request-Id": "a b"}, "X-Request-Id"),
    ({"X-Request-Id": "x" * 129}, "X-Request-Id"),
    ({"X-Phaseline-Deadline-S": "soon"}, "X-Phaseline-Deadline-S"),
    ({"X-Phaseline-Deadline-S": "-1"}, "X-Phaseline-Deadline-S"),
    ({"X-Phaseline-Deadline-S": "nan"}, "X-Phaseline-Deadline-S"),
    ({"X-Phaseline-Priority": "101"}, "X-Phaseline-Priority"),
    ({"X-Phaseline-Priority": "high"}, "X-Phaseline-Priority"),
]


@pytest.mark.parametrize(("headers", "name"), BAD_HEADERS)
@ON_ONE_LOOP
async def test_a_bad_header_is_named(place: House, headers: dict[str, str], name: str) -> None:
    response = await place.client.post(CHAT, json=chat_body(), headers=headers)
    assert response.status_code == 400
    assert name in envelope(response)["message"]


def test_a_broken_trace_is_replaced_and_a_good_one_goes_on() -> None:
    good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    kept = parse_headers([(b"traceparent", good)]).traceparent
    assert kept.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert kept.endswith("-01")
    assert kept.encode() != good
    fresh = parse_headers([(b"traceparent", b"00-zzz")]).traceparent
    assert len(fresh) == len(good)
    assert "zzz" not in fresh


def test_a_key_is_known_by_its_hash_and_its_absence_by_a_name() -> None:
    key_id = parse_headers([(b"authorization", b"Bearer sk-secret")]).api_key_id
    assert len(key_id) == 12
    assert "secret" not in key_id
    assert parse_headers([]).api_key_id == "anonymous"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(name=st.sampled_from(sorted(PARAMETERS)), value=JSON_VALUES, endpoint=st.sampled_from(["chat", "completions"]))
@settings(max_examples=400, deadline=None)
def test_any_value_of_any_parameter_is_taken_or_refused_with_400(name: str, value: Any, endpoint: Any) -> None:
    body = {"model": "null", "prompt": "x"} if endpoint == "completions" else chat_body()
    body[name] = value
    refused: GatewayError | None = None
    try:
        parse_ask(endpoint, json.dumps(body).encode())
    except GatewayError as error:
        refused = error
    if refused is not None:
        assert refused.status == 400
        assert refused.param
        assert "\n" not in refused.message


@pytest.mark.parametrize("depth", [100, 500, 800, 900, 930, 950, 970, 990, 1000])
@pytest.mark.parametrize("name", ["stop", "tools", "messages", "metadata", "what"])
@ON_ONE_LOOP
async def test_any_depth_of_nesting_is_taken_or_refused_with_400(place: House, name: str, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    body = json.dumps(chat_body()).encode()[:-1] + b', "%s": %s}' % (name.encode(), nested)
    response = await place.client.post(CHAT, content=body)
    assert response.status_code == 400 or (name == "metadata" and response.status_code == 200)
    if response.status_code == 400:
        envelope(response)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_refused_with_400(body: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_ask("chat", body)
    assert caught.value.status == 400


def test_parameters_that_are_refused_pass_with_their_neutral_values() -> None:
    neutral = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logprobs": False,
        "logit_bias": {},
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "seed": None,
    }
    assert parse_ask("chat", json.dumps(chat_body(**neutral)).encode()).seed is None


def test_the_printed_tables_hold_every_parameter() -> None:
    printed = parameters_markdown()
    assert all(f"| `{name}` |" in printed for name in PARAMETERS)
