"""The few HTTP shapes that a gateway needs, on raw ASGI: whole answers, and what headers say.

Decided here: bounds and meaning of request headers. Not here: what is in a body.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from typing import Any, Final, TypeVar

import msgspec

from control.gateway.errors import GatewayError, bad_value
from control.gateway.urgency import parse_deadline, parse_priority
from control.types.requests import SAMPLE_TRAFFIC_KEY

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Final = b"application/json"
SSE: Final = b"text/event-stream; charset=utf-8"
ANONYMOUS: Final = "anonymous"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_T = TypeVar("_T")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

_process_id = secrets.token_hex(6)
_numbers = count(1)


class Disconnected(Exception):
    """The client went away before it had sent its body."""


class RequestHeaders(msgspec.Struct, frozen=True):
    """What the headers of a request say."""

    request_id: str
    wire_id: str  # unique, whatever the client called its request
    api_key_id: str
    traceparent: str
    parent_span_id: str  # of the client's span; "" when it sent none
    deadline_s: float | None
    priority: int | None
    content_length: int | None


def parse_headers(headers: Iterable[Header], samples: Callable[[], bool] = lambda: False) -> RequestHeaders:
    """`samples`: whether to trace a request whose client does not say. Raises GatewayError (400) naming the header."""
    found = {name: value for name, value in headers if name in _KNOWN}
    own_id = f"{_process_id}-{next(_numbers):x}"
    request_id = own_id
    if b"x-request-id" in found:
        request_id = found[b"x-request-id"].decode("latin-1")
        if not _REQUEST_ID.fullmatch(request_id):
            raise bad_value("X-Request-Id", "1..128 characters of A-Z a-z 0-9 . _ : -", request_id)
    return RequestHeaders(
        request_id,
        own_id if request_id is own_id else f"{request_id}~{own_id}",
        _api_key_id(found.get(b"authorization")),
        *_traceparent(found.get(b"traceparent"), samples),
        _urgency(parse_deadline, "X-Phaseline-Deadline-S", found.get(b"x-phaseline-deadline-s")),
        _urgency(parse_priority, "X-Phaseline-Priority", found.get(b"x-phaseline-priority")),
        _content_length(found.get(b"content-length")),
    )


_KNOWN: Final = frozenset(
    {
        b"x-request-id",
        b"authorization",
        b"traceparent",
        b"x-phaseline-deadline-s",
        b"x-phaseline-priority",
        b"content-length",
    }
)


def _api_key_id(value: bytes | None) -> str:
    """Twelve digits of the key's hash: enough to tell clients apart, and no way back to the key."""
    if value is None or value[:7].lower() != b"bearer " or not value[7:].strip():
        return ANONYMOUS
    key = value[7:].strip()
    if key == SAMPLE_TRAFFIC_KEY.encode():
        return SAMPLE_TRAFFIC_KEY
    return hashlib.sha256(key).hexdigest()[:12]


def _traceparent(value: bytes | None, samples: Callable[[], bool]) -> tuple[str, str]:
    """The client's trace with a span of our own, or a new trace (https://www.w3.org/TR/trace-context/); and the
    client's span."""
    match = _TRACEPARENT.fullmatch(value.decode("latin-1").strip()) if value is not None else None
    fresh = secrets.token_hex(24)
    if match is None:
        return f"00-{fresh[:32]}-{fresh[32:]}-{int(samples()):02x}", ""
    return f"00-{match[1]}-{fresh[32:]}-{match[3]}", match[2]


def _urgency(parse: Callable[[str, Any], _T], name: str, value: bytes | None) -> _T | None:
    """A header's text as the value that the same field has in a body: a number where it is one."""
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return parse(name, number(text))
    return parse(name, text)


def _content_length(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None


async def send_answer(
    send: Send, status: int, body: bytes, headers: Iterable[Header] = (), content_type: bytes = JSON
) -> None:
    """One whole response."""
    length = str(len(body)).encode()
    all_headers = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: GatewayError, headers: Iterable[Header] = ()) -> None:
    await send_answer(send, error.status, error.body(), [*headers, *error.response_headers()])


def header_safe(text: str) -> str:
    """Printable ASCII without quotes or backslashes, so that it can stand between quotes in a header."""
    return "".join([char if " " <= char <= "~" and char not in '"\\' else "?" for char in text])
