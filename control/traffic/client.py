"""Sends a plan to a gateway, open loop, without retries, and says what came back; what it means is in `report`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from control.traffic.plan import PlannedRequest
from control.types.requests import SAMPLE_TRAFFIC_KEY


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One request as its client saw it. Times are seconds after its *scheduled* arrival."""

    index: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    status: int = 0  # 0: no answer
    error: str = ""
    retry_after_s: float | None = None  # as a refusal says it
    route: str = ""
    ttft_s: float | None = None
    e2e_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    text: str = ""
    finish: str = ""

    @property
    def tpot_s(self) -> float | None:
        if self.ttft_s is None or self.e2e_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """How each request is sent. `api_key` marks the traffic in the request records."""

    base_url: str
    model: str
    api_key: str = SAMPLE_TRAFFIC_KEY
    temperature: float = 0.0
    seed: int = 1
    ignore_eos: bool = True
    keep_text: bool = False
    timeout_s: float = 600.0
    max_open: int = 2000  # refuses to grow without bound; counted as an error when it is reached


async def send_plan(
    plan: Iterator[PlannedRequest], options: SendOptions, on_done: Callable[[Outcome], None], stop: asyncio.Event
) -> None:
    """Send each request at its time until the plan ends or `stop` is set; then wait for what is open."""
    timeout = aiohttp.ClientTimeout(total=options.timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    open_requests: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        start_s = time.monotonic()
        for request in plan:
            if await _sleep_until(start_s + request.at_s, stop):
                break
            if len(open_requests) >= options.max_open:
                on_done(Outcome(index=request.index, error=f"over {options.max_open} requests open at the client"))
                continue
            task = asyncio.create_task(_send(session, request, options, start_s + request.at_s, on_done))
            open_requests.add(task)
            task.add_done_callback(open_requests.discard)
        if open_requests:
            await asyncio.wait(open_requests)


async def _sleep_until(at_s: float, stop: asyncio.Event) -> bool:
    """True when `stop` was set before `at_s`."""
    delay = at_s - time.monotonic()
    if delay <= 0:
        return stop.is_set()
    try:
        await asyncio.wait_for(stop.wait(), delay)
    except TimeoutError:
        return False
    return True


async def _send(
    session: aiohttp.ClientSession,
    request: PlannedRequest,
    options: SendOptions,
    scheduled_s: float,
    on_done: Callable[[Outcome], None],
) -> None:
    outcome = Outcome(index=request.index, prompt_tokens=request.prompt_tokens)
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "ignore_eos": options.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {options.api_key}"}
    url = f"{options.base_url}/v1/chat/completions"
    await exchange(session, url, body, headers, outcome, scheduled_s, keep_text=options.keep_text)
    on_done(outcome)


async def exchange(
    session: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    outcome: Outcome,
    scheduled_s: float,
    *,
    keep_text: bool,
) -> None:
    """One streamed request, once; all that came back, and what went wrong, is in `outcome`. Cancel it to hang up."""
    headers = {"Content-Type": "application/json", **headers}
    try:
        async with session.post(url, data=msgspec.json.encode(body), headers=headers) as response:
            outcome.status = response.status
            outcome.route = response.headers.get("X-Phaseline-Route", "")
            if response.status != 200:
                outcome.error = (await response.text())[:300]
                told = response.headers.get("Retry-After", "")
                outcome.retry_after_s = float(told) if told.isdecimal() else None
            else:
                await _read_stream(response, outcome, scheduled_s, keep_text)
    except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError, OSError) as error:
        outcome.error = f"{type(error).__name__}: {error}"[:300]


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome, scheduled_s: float, keep_text: bool) -> None:
    last_s: float | None = None
    ended = False
    async for data in _events(response):
        if data == b"[DONE]":
            ended = True
            break
        chunk = _decode_chunk(data)
        now_s = time.monotonic() - scheduled_s
        if chunk.error is not None:
            outcome.error = str(chunk.error.get("message", "error in the stream"))[:300]
            return
        if chunk.usage is not None:
            outcome.prompt_tokens, outcome.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            details = chunk.usage.prompt_tokens_details
            outcome.cached_tokens = details.cached_tokens if details else 0
        for choice in chunk.choices:
            outcome.finish = choice.finish_reason or outcome.finish
            content = choice.delta.content if choice.delta else choice.text
            if not content:
                continue
            if outcome.ttft_s is None:
                outcome.ttft_s = now_s
            elif last_s is not None:
                outcome.gaps_s.append(now_s - last_s)
            last_s = now_s
            if keep_text:
                outcome.text += content
    outcome.e2e_s = last_s
    if not ended:
        outcome.error = "the stream ended without [DONE]"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The `data:` payloads of a server-sent event stream."""
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].strip()
