"""Open SSE streams as a client without retries sees them: each one's text, largest gap, and what was wrong with it."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

_SAID = "The keeper of the lighthouse counts the ships that pass in the night and writes their names into a book. "


@dataclass(slots=True)
class Heard:
    """One stream, while it is read and afterwards. `problem` is empty when it ended with [DONE], without an error."""

    text: str = ""
    num_chunks: int = 0
    num_tokens: int | None = None  # as the server's usage says, as the next
    num_prompt_tokens: int | None = None
    route: str = ""  # as our gateway says it
    first_unix_s: list[float] = field(default_factory=list)  # when its first two pieces came
    max_gap_s: float = 0.0
    problem: str = "it has not ended"
    last_s: float | None = field(default=None, repr=False)

    @property
    def is_refused(self) -> bool:
        """Never admitted: nothing of it was lost."""
        return self.problem.startswith("HTTP 429")

    def take(self, text: str, now_s: float) -> None:
        if not text:
            return
        if self.last_s is not None:
            self.max_gap_s = max(self.max_gap_s, now_s - self.last_s)
        self.last_s = now_s
        if self.num_chunks < 2:
            self.first_unix_s.append(time.time())
        self.num_chunks += 1
        self.text += text


def prompts(salt: str, count: int, contexts: tuple[int, ...]) -> list[str]:
    """Different prompts; the i-th repeats a sentence `contexts[i]` times, in turn."""
    return [f"{salt}, stream {each}. " + _SAID * contexts[each % len(contexts)] for each in range(count)]


async def listen(
    client: httpx.AsyncClient, model_id: str, prompt: str, max_tokens: int, heard: Heard, **fields: Any
) -> None:
    """Read one stream to its end into `heard`. Raises nothing: what is wrong is its `problem`."""
    body = {"model": model_id, "prompt": prompt, "max_tokens": max_tokens, "seed": 7, "stream": True}
    body |= {"ignore_eos": True, "stream_options": {"include_usage": True}, **fields}
    try:
        request = client.stream("POST", "/v1/completions", json=body)
        async with request as response:
            if response.status_code != 200:
                heard.problem = f"HTTP {response.status_code}: {(await response.aread())[:200]!r}"
                return
            heard.route = response.headers.get("X-Phaseline-Route", "")
            heard.problem = await _read(response, heard)
    except httpx.HTTPError as error:
        heard.problem = f"{type(error).__name__}: {error}"


async def _read(response: httpx.Response, heard: Heard) -> str:
    async for line in response.aiter_lines():
        if line.startswith("event: error"):
            return "an error event"
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return ""
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            return f"error: {chunk['error']}"
        if chunk.get("usage"):
            usage = chunk["usage"]
            heard.num_tokens, heard.num_prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        for choice in chunk.get("choices", ()):
            heard.take(choice.get("text") or "", time.monotonic())
            if choice.get("finish_reason") in ("error", "abort", "cancelled"):
                return f"finish_reason {choice['finish_reason']}"
    return "the stream ended without [DONE]"


class Round:
    """Some streams that are opened together."""

    def __init__(
        self, base_url: str, model_id: str, texts: list[str], max_tokens: int, timeout_s: float, **fields: Any
    ) -> None:
        self.heard = [Heard() for _ in texts]
        limits = httpx.Limits(max_connections=len(texts))
        self._client = httpx.AsyncClient(base_url=base_url, timeout=timeout_s, limits=limits)
        self._tasks = [
            asyncio.create_task(listen(self._client, model_id, text, max_tokens, heard, **fields))
            for text, heard in zip(texts, self.heard, strict=True)
        ]

    async def until_heard(self, num_chunks: int, limit_s: float) -> None:
        """Wait until each stream has given so many chunks, or has ended."""
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            pairs = zip(self.heard, self._tasks, strict=True)
            if all(heard.num_chunks >= num_chunks or task.done() for heard, task in pairs):
                return
            await asyncio.sleep(0.01)

    async def ended(self) -> list[Heard]:
        await asyncio.gather(*self._tasks)
        await self._client.aclose()
        return self.heard
