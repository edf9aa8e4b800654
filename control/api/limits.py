"""Bounds on a request before it is read: its body's size and its JSON's depth. A plain ASGI middleware."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control.api.problems import problem_response
from control.types.api import Problem

MAX_BODY_BYTES = 256 * 1024
MAX_JSON_DEPTH = 32
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class BodyLimits:
    """Reads the body whole, up to the bound, and hands it on; 413 and 422 beyond."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        async for chunk in _chunks(receive):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                await problem_response(_too_large(len(body)))(scope, receive, send)
                return
        if (problem := _not_text(bytes(body))) is not None:
            await problem_response(problem)(scope, receive, send)
            return
        if depth_of(bytes(body)) > MAX_JSON_DEPTH:
            await problem_response(_too_deep())(scope, receive, send)
            return
        messages = iter(_replay(bytes(body)))

        async def replayed() -> Message:
            message = next(messages, None)
            return message if message is not None else await receive()

        await self.app(scope, replayed, send)


def depth_of(body: bytes) -> int:
    """Deepest nesting of brackets outside of strings; broken JSON is fine here, the parser refuses it later."""
    depth = deepest = 0
    for byte in _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _replay(body: bytes) -> Iterator[Message]:
    yield {"type": "http.request", "body": body, "more_body": False}


def _too_large(size: int) -> Problem:
    return Problem(
        type="urn:phaseline:CommandRefused",
        title="Content Too Large",
        status=413,
        detail=f"the body is larger than {MAX_BODY_BYTES} bytes",
        field="body",
        value=f"{size} bytes or more",
        bound=f"at most {MAX_BODY_BYTES} bytes",
    )


def _not_text(body: bytes) -> Problem | None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return Problem(
            type="urn:phaseline:CommandRefused",
            title="Unprocessable Content",
            status=422,
            detail=f"body: not valid UTF-8 at byte {error.start}",
            field="body",
            value=repr(body[error.start : error.start + 1]),
            bound="UTF-8",
        )
    return None


def _too_deep() -> Problem:
    return Problem(
        type="urn:phaseline:CommandRefused",
        title="Unprocessable Content",
        status=422,
        detail=f"the body's JSON is nested deeper than {MAX_JSON_DEPTH}",
        field="body",
        bound=f"at most {MAX_JSON_DEPTH} levels",
    )
