"""Bodies of answers in OpenAI's shapes: whole ones, and the chunks of a stream. Values in, bytes out."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from control.gateway.schema import Endpoint
from engine.types import FinishReason

_encode = msgspec.json.encode
DONE: Final = b"data: [DONE]\n\n"
_OBJECTS: Final = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "completions": ("cmpl-", "text_completion", "text_completion"),
}


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def finish_text(finish: FinishReason | None) -> str:
    return "length" if finish is FinishReason.LENGTH else "stop"


def whole_answer(
    endpoint: Endpoint, request_id: str, created: int, model: str, text: str, finish: str, usage: Usage
) -> bytes:
    """The body of an answer that is not streamed."""
    prefix, kind, _ = _OBJECTS[endpoint]
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
    if endpoint == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    return _encode(
        {
            "id": prefix + request_id,
            "object": kind,
            "created": created,
            "model": model,
            "choices": [choice],
            "usage": usage.body(),
        }
    )


class ChunkWriter:
    """Chunks of one stream. All that does not change between chunks is encoded once."""

    __slots__ = ("_after", "_before", "_head", "_is_chat", "_no_usage")

    def __init__(self, endpoint: Endpoint, request_id: str, created: int, model: str, *, include_usage: bool) -> None:
        prefix, _, kind = _OBJECTS[endpoint]
        head = {"id": prefix + request_id, "object": kind, "created": created, "model": model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._is_chat = endpoint == "chat"
        self._no_usage = b',"usage":null' if include_usage else b""
        self._before = self._head + (
            b'{"index":0,"delta":{"content":' if self._is_chat else b'{"index":0,"logprobs":null,"text":'
        )
        self._after = (
            (b'},"finish_reason":null}]' if self._is_chat else b',"finish_reason":null}]') + self._no_usage + b"}\n\n"
        )

    def opening(self) -> bytes:
        """What comes before the first text: in a chat, who speaks."""
        if not self._is_chat:
            return b""
        delta = b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]'
        return self._head + delta + self._no_usage + b"}\n\n"

    def text(self, text: str) -> bytes:
        return self._before + _encode(text) + self._after

    def closing(self, finish: str, usage: Usage | None) -> bytes:
        """The reason, the usage when it was asked for, and the end of the stream."""
        start = b'{"index":0,"delta":{},' if self._is_chat else b'{"index":0,"logprobs":null,"text":"",'
        last = self._head + start + b'"finish_reason":' + _encode(finish) + b"}]" + self._no_usage + b"}\n\n"
        if usage is not None:
            last += self._head + b'],"usage":' + _encode(usage.body()) + b"}\n\n"
        return last + DONE


def error_chunk(body: bytes) -> bytes:
    """An error after the stream began; the stream ends with it, without [DONE]."""
    return b"data: " + body + b"\n\n"


def model_body(model_id: str, created: int, max_context: int, *, simulated: bool) -> dict[str, Any]:
    return {
        "id": model_id,
        "object": "model",
        "created": created,
        "owned_by": "phaseline",
        "max_model_len": max_context or None,
        "simulated": simulated,
    }
