"""How each kind of engine is asked for tokens: bodies out, answers in. Pure: no HTTP, no clock.

Decided here: what a split request looks like to vLLM (`kv_transfer_params`), to SGLang (bootstrap host, port, room) and
that a plain OpenAI server has none; what of an answer are tokens; where a decode server begins; and what makes a
continuation exact. Not decided here: when anything is asked (`control.bridge.worker`). Read from vLLM 0.32.0 and SGLang
0.5.23.

Exact means: prompt + tokens sent, given to another engine, leads to what the first one would have said. That needs
token ids both ways, and sampling that does not depend on how often this engine was asked before: greedy only, as the
random numbers of a seeded answer are drawn in order, from its own beginning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.types import FinishReason, SamplingParams

Encode = Callable[[str], list[int]]

#: What vLLM's NIXL connector wants of the server that computes a prompt for another one.
KEEP_KV: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class SpeechError(Exception):
    """The engine's answer is not what its kind of engine says."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an answer. `handoff`: what the decode server must be told to fetch the KV of the prompt."""

    tokens: tuple[int, ...] = ()
    finish: FinishReason | None = None
    handoff: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One call: these tokens, then at most so many new ones. `handoff`: fields of a split request, as they are sent."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingParams
    handoff: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One kind of engine. `is_rendezvous`: both halves of a split request must be asked at the same time."""

    kind: str
    path: str
    body: Callable[[str, Asked, bool], dict[str, Any]]
    chunk: Callable[[Mapping[str, Any], int, Encode], Chunk]  # one event, how many tokens came before it
    splits: bool = False
    is_rendezvous: bool = False
    has_token_ids: bool = True

    def why_inexact(self, sampling: SamplingParams) -> str:
        """Why prompt + tokens sent would not lead to the same answer; "" when it does."""
        if not self.has_token_ids:
            return (
                f"a server of kind {self.kind} gives text, not token ids: what it has sent cannot be given back exactly"
            )
        if sampling.temperature > 0.0:
            return (
                f"the answer is sampled, and {self.kind} draws its random numbers in order from the start of a "
                "request, so another engine would go on differently"
            )
        return ""


def starts_behind_first(words: Mapping[str, Any], sampling: SamplingParams, num_prompt: int, block_tokens: int) -> bool:
    """Whether vLLM's decode server may be asked for prompt + first token, with the KV of the prompt alone.

    It takes KV by the block and computes the last token that it is given itself in any case: where the first token lies
    in a block that the prefill server names, this saves the step that would only say it again. A sampled answer must
    say it again, as the random numbers of a seed are drawn in order from a request's start. Where the prompt fills its
    last block, the question would end vLLM 0.32's engine (seen): so it is not asked.
    """
    groups = words.get("remote_block_ids")
    is_plain = (words.get("transfer_mode"), words.get("dcp_size"), words.get("remote_num_tokens")) == (
        "pull", 1, num_prompt,
    )  # fmt: skip
    if sampling.temperature > 0.0 or not is_plain or not isinstance(groups, list) or len(groups) != 1:
        return False
    return len(groups[0]) * block_tokens > num_prompt


def event_of(line: bytes) -> Mapping[str, Any] | None:
    """One line of a stream; None for what carries nothing. Raises SpeechError on an error that the engine tells."""
    if not line.startswith(b"data:"):
        return None
    text = line[5:].strip()
    if not text or text == b"[DONE]":
        return None
    try:
        event = json.loads(text)
    except ValueError as error:
        raise SpeechError(f"not JSON: {text[:80]!r}") from error
    if not isinstance(event, dict):
        raise SpeechError(f"not an object: {text[:80]!r}")
    if "error" in event:
        raise SpeechError(problem_of(event))
    return event


def problem_of(body: Any) -> str:
    """What an error answer says, in one short line."""
    said = body.get("error", body) if isinstance(body, dict) else body
    text = said.get("message", said) if isinstance(said, dict) else said
    return " ".join(str(text).split())[:300]


# --- completions, as OpenAI has them ---------------------------------------------------------------------------------


def _plain_body(model: str, asked: Asked, stream: bool) -> dict[str, Any]:
    sampling = asked.sampling
    return {
        "model": model,
        "prompt": list(asked.prompt),
        "max_tokens": asked.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % 2**63,
        "stream": stream,
    }


def _vllm_body(model: str, asked: Asked, stream: bool) -> dict[str, Any]:
    """All that a server's own defaults could change is said: they come with the model's folder."""
    sampling = asked.sampling
    body = {
        **_plain_body(model, asked, stream),
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": list(sampling.stop_token_ids),
        "return_token_ids": True,
    }
    if asked.handoff is not None:
        body["kv_transfer_params"] = dict(asked.handoff)
    return body


def _choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = event.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise SpeechError("an event has no list of choices")
    return choices[0] if choices else {}


def _finish(said: Any) -> FinishReason | None:
    """`length`, or any other word for an end that the model chose."""
    if said is None:
        return None
    if said in ("length", "max_tokens"):
        return FinishReason.LENGTH
    return FinishReason.STOP if said in ("stop", "eos", "stop_sequence") else FinishReason.ERROR


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise SpeechError("no token ids in an event; this engine does not know `return_token_ids`")
    return tuple(value)


def _vllm_chunk(event: Mapping[str, Any], _before: int, _encode: Encode) -> Chunk:
    choice = _choice(event)
    tokens = _ids(choice.get("token_ids") or []) if choice else ()
    if choice.get("text") and not tokens:
        raise SpeechError("text without token ids; this engine does not know `return_token_ids`")
    handoff = event.get("kv_transfer_params")
    return Chunk(tokens, _finish(choice.get("finish_reason")), handoff if isinstance(handoff, dict) else None)


def _plain_chunk(event: Mapping[str, Any], _before: int, encode: Encode) -> Chunk:
    """Text becomes tokens again: the same text, though perhaps cut otherwise than the engine had it."""
    choice = _choice(event)
    text = choice.get("text") or ""
    if not isinstance(text, str):
        raise SpeechError("a choice's text is not a string")
    return Chunk(tuple(encode(text)) if text else (), _finish(choice.get("finish_reason")))


# --- SGLang's own call -----------------------------------------------------------------------------------------------


def _sglang_body(_model: str, asked: Asked, stream: bool) -> dict[str, Any]:
    sampling = asked.sampling
    return {
        "input_ids": list(asked.prompt),
        "stream": stream,
        "sampling_params": {
            "max_new_tokens": asked.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "sampling_seed": sampling.seed % 2**31,
            "stop_token_ids": list(sampling.stop_token_ids),
            "ignore_eos": sampling.ignore_eos,
        },
        **(asked.handoff or {}),
    }


def _sglang_chunk(event: Mapping[str, Any], before: int, _encode: Encode) -> Chunk:
    """Each event has all tokens so far."""
    ids, meta = _ids(event.get("output_ids")), event.get("meta_info")
    reason = meta.get("finish_reason") if isinstance(meta, dict) else None
    return Chunk(ids[before:], _finish(reason.get("type") if isinstance(reason, dict) else reason))


def rendezvous(host: str, port: int, room: int) -> dict[str, Any]:
    """What both halves of a split SGLang request carry: where the prefill server waits, and a number of their own."""
    return {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": room}


SPEECHES: Final[Mapping[str, Speech]] = {
    each.kind: each
    for each in (
        Speech(kind="vllm", path="/v1/completions", body=_vllm_body, chunk=_vllm_chunk, splits=True),
        Speech(kind="openai", path="/v1/completions", body=_plain_body, chunk=_plain_chunk, has_token_ids=False),
        Speech(
            kind="sglang", path="/generate", body=_sglang_body, chunk=_sglang_chunk, splits=True, is_rendezvous=True
        ),
    )
}
