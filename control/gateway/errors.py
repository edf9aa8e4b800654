"""Every error a gateway answers with, as OpenAI's error envelope. `retry_after_s` is set where a retry may help.

Decided here: status, type and code of each kind. Not here: when one is raised.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from control.types.bottleneck import Resource

#: Longest part of a refused value that an error repeats.
MAX_SHOWN_CHARS: Final = 80


class GatewayError(Exception):
    """One request's end with an error. `str(error)` is one line for a person and names field, value and bound."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        lacks: Resource | None = None,
    ) -> None:
        """`lacks`: what there was too little of, for the record."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.headers = headers
        self.lacks = lacks

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after_s is None:
            return list(self.headers)
        whole_s = max(1, math.ceil(self.retry_after_s))
        return [
            *self.headers,
            (b"retry-after", str(whole_s).encode()),
            (b"x-phaseline-retry-after-s", f"{self.retry_after_s:.3f}".encode()),
        ]


def bad_request(message: str, *, param: str | None = None, code: str | None = "invalid_value") -> GatewayError:
    return GatewayError(400, message, param=param, code=code)


def bad_value(param: str, bound: str, value: Any) -> GatewayError:
    """A parameter out of its bound."""
    return bad_request(f"{param} must be {bound}, got {shown(value)}", param=param)


def context_exceeded(message: str) -> GatewayError:
    return GatewayError(400, message, param="max_tokens", code="context_length_exceeded")


def too_large(limit_bytes: int, size: str) -> GatewayError:
    message = f"the body has {size} bytes, over the bound of {limit_bytes} bytes"
    return GatewayError(413, message, code="request_too_large")


def unknown_model(name: str, known: str) -> GatewayError:
    message = f"model {shown(name)} does not exist; this gateway serves {shown(known)}"
    return GatewayError(404, message, param="model", code="model_not_found")


def unknown_path(path: str) -> GatewayError:
    return GatewayError(404, f"no such path: {shown(path)}", code="unknown_url")


def wrong_method(method: str, allowed: str) -> GatewayError:
    message = f"method {shown(method)} is not allowed here; use {allowed}"
    return GatewayError(405, message, code="method_not_allowed", headers=((b"allow", allowed.encode()),))


def overloaded(reason: str, retry_after_s: float, lacks: Resource | None = None) -> GatewayError:
    return GatewayError(
        429,
        reason,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=max(retry_after_s, 1.0),
        lacks=lacks,
    )


def not_ready(reason: str) -> GatewayError:
    return GatewayError(503, reason, kind="server_error", code="not_ready", retry_after_s=1.0)


def timed_out(message: str, code: str) -> GatewayError:
    return GatewayError(504, message, kind="timeout_error", code=code)


def stopping(limit_s: float) -> GatewayError:
    """A gateway that was told to stop has waited for as long as it may."""
    message = f"the gateway stops, and this request was not finished within drain_limit_s ({limit_s:g} s)"
    return GatewayError(503, message, kind="server_error", code="gateway_stopping", retry_after_s=1.0)


def slow_client(stall_s: float) -> GatewayError:
    """For the record: who reads nothing can be told nothing."""
    message = f"the client read nothing for {stall_s:g} s, the bound client_stall_s"
    return GatewayError(499, message, kind="timeout_error", code="slow_client")


def internal(message: str, code: str = "internal_error") -> GatewayError:
    return GatewayError(500, message, kind="server_error", code=code)


def shown(value: Any) -> str:
    """A value as an error repeats it: short, on one line, printable."""
    try:
        text = ascii(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text)} characters)"


def for_good(code: str, detail: str, *, has_begun: bool) -> GatewayError | None:
    """What a worker's refusal means when no other worker would think otherwise; None when another one may take it."""
    if code == "too_long" and not has_begun:
        return context_exceeded(detail)
    if code == "invalid":
        return bad_request(detail)
    if code == "inexact":
        return GatewayError(502, detail, kind="server_error", code="not_continued")
    if code == "deadline":
        return timed_out(detail or "the request's deadline has passed", "deadline")
    return None
