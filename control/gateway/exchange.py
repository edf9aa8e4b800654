"""One generation request from its parsed body to its last byte: text and HTTP around a relay.

Decided here: what is streamed when, and how an ending (finish, stop string, client gone, error) reaches the client.
Not here: which workers serve it (`control.gateway.relay`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from control.gateway import errors
from control.gateway.answers import ChunkWriter, Usage, error_chunk, finish_text, whole_answer
from control.gateway.errors import GatewayError
from control.gateway.http import SSE, Header, Receive, Send, header_safe, send_answer, send_error
from control.gateway.outlet import Outlet
from control.gateway.relay import Relay
from control.gateway.schema import Ask
from engine.text import Text, TextStream
from engine.types import FinishReason

_NO_CACHE: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class Exchange:
    """`serve` returns when the client has all it will get. Afterwards `error` and `output_tokens` say how it went."""

    def __init__(self, ask: Ask, relay: Relay, text: Text, created: int, model: str, stall_s: float) -> None:
        self.error: GatewayError | None = None
        self.has_begun = False  # the client has the head of an answer
        self._ask = ask
        self._relay = relay
        self._created = created
        self._model = model
        self._stall_s = stall_s
        self._stream = TextStream(text, relay.job.prompt, ask.stop)

    @property
    def output_tokens(self) -> int:
        return self._stream.num_tokens

    async def serve(self, receive: Receive, send: Send) -> None:
        relay = self._relay
        relay.start()
        watch = asyncio.get_running_loop().create_task(self._watch_client(receive))
        outlet = Outlet(send, self._stall_s)
        try:
            with outlet.watching():
                await (self._serve_stream(outlet) if self._ask.stream else self._serve_whole(outlet))
        except asyncio.CancelledError:
            if not outlet.has_stalled:
                raise
            self.error = errors.slow_client(self._stall_s)
            relay.fail(self.error)
        finally:
            relay.stop(FinishReason.CANCELLED)  # only where it has not ended, as when this task was cancelled
            if not watch.done():
                watch.cancel()

    async def _watch_client(self, receive: Receive) -> None:
        """A client that goes away has its work cancelled."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._relay.stop(FinishReason.CANCELLED)

    # --- whole -----------------------------------------------------------------------------------------------------

    async def _serve_whole(self, send: Send) -> None:
        relay, stream = self._relay, self._stream
        parts: list[str] = []
        while not relay.is_done:
            await relay.wait(until_done=not self._ask.stop)
            parts.append(self._text_of_new_tokens())
        parts.append(self._text_of_new_tokens() + stream.finish())
        if relay.error is not None:
            await self.refuse(send, relay.error)
        elif relay.finish is not FinishReason.CANCELLED:
            body = whole_answer(
                self._ask.endpoint,
                relay.job.request_id,
                self._created,
                self._model,
                "".join(parts),
                self._finish(),
                self._usage(),
            )
            self.has_begun = True
            await send_answer(send, 200, body, self._headers())

    def _text_of_new_tokens(self) -> str:
        """Text that may be sent now. A stop string ends the request."""
        tokens = self._relay.take()
        if not tokens:
            return ""
        text = self._stream.push(tokens)
        if self._stream.stopped:
            self._relay.stop(FinishReason.STOP)
        return text

    # --- streamed --------------------------------------------------------------------------------------------------

    async def _serve_stream(self, send: Send) -> None:
        relay, ask = self._relay, self._ask
        await relay.wait()
        if relay.error is not None and not relay.tokens:
            await self.refuse(send, relay.error)
            return
        if relay.finish is FinishReason.CANCELLED:
            return
        headers = [(b"content-type", SSE), *_NO_CACHE, *self._headers()]
        self.has_begun = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        writer = ChunkWriter(
            ask.endpoint, relay.job.request_id, self._created, self._model, include_usage=ask.include_usage
        )
        opening = writer.opening()
        while True:
            text = self._text_of_new_tokens()
            if relay.is_done:
                break
            if text or opening:
                await send(_part(opening + (writer.text(text) if text else b"")))
                opening = b""
            await relay.wait()
        text += self._text_of_new_tokens() + self._stream.finish()
        await self._end_stream(send, writer, opening + (writer.text(text) if text else b""))

    async def _end_stream(self, send: Send, writer: ChunkWriter, last: bytes) -> None:
        relay = self._relay
        if relay.finish is FinishReason.CANCELLED:
            return
        if relay.error is not None:
            self.error = relay.error
            last += error_chunk(relay.error.body())
        else:
            last += writer.closing(self._finish(), self._usage() if self._ask.include_usage else None)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    # --- both --------------------------------------------------------------------------------------------------------

    async def refuse(self, send: Send, error: GatewayError) -> None:
        """An error instead of an answer."""
        self.error = error
        await send_error(send, error, self._headers())

    def _finish(self) -> str:
        return "stop" if self._stream.stopped else finish_text(self._relay.finish)

    def _usage(self) -> Usage:
        relay = self._relay
        return Usage(len(relay.job.prompt), self._stream.num_tokens, relay.served.cached_tokens)

    def _headers(self) -> list[Header]:
        served = self._relay.served
        job = self._relay.job
        headers = [(b"x-request-id", job.request_id.encode())]
        if job.traceparent:
            headers.append((b"traceparent", job.traceparent.encode()))
        if served.decision is not None:
            route = (
                f"rule={served.decision.rule.value}; prefill={served.prefill_worker}; decode={served.decode_worker}; "
                f'reason="{header_safe(served.decision.reason)}"'
            )
            headers.append((b"x-phaseline-route", route.encode("ascii", "replace")))
        return headers

    async def abort(self, send: Send) -> None:
        """Something of ours broke: free what the workers hold, and tell the client and the record."""
        error = errors.internal("an internal error of the gateway; its log has the request id")
        self._relay.fail(error)
        if self.has_begun:
            self.error = error
            await send({"type": "http.response.body", "body": error_chunk(error.body()), "more_body": False})
        else:
            await self.refuse(send, error)


def _part(body: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": True}
