"""Every error of the API as one RFC 9457 problem body that names the field, the value and the bound.

`type` is `urn:phaseline:<class of control.errors>`, from which `control.client` rebuilds the error.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from control.errors import ControlError
from control.types.api import Problem

_log = logging.getLogger("phaseline.api")
BOUNDS = ("ge", "gt", "le", "lt", "max_length", "min_length", "pattern", "expected")
WORDS = {
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "max_length": "at most",
    "min_length": "at least",
    "pattern": "pattern",
}
MAX_VALUE_CHARS = 200


def install(app: FastAPI) -> None:
    app.add_exception_handler(ControlError, _control_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    body = {name: value for name, value in asdict(problem).items() if value is not None}
    return Response(json.dumps(body, default=str), problem.status, headers, media_type="application/problem+json")


def problem_of(error: ControlError) -> Problem:
    return Problem(
        type=f"urn:phaseline:{type(error).__name__}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        field=error.field,
        value=presentable(error.value),
        bound=error.bound,
        retry_helps=error.retry_helps,
    )


async def _control_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ControlError)
    problem = problem_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    if problem.retry_helps:
        headers["Retry-After"] = "1"
    return problem_response(problem, headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with the input; later ones show once it is right."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    context = first.get("ctx", {})
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    while where and where[-1] in ("int", "float"):  # which member of a union was tried
        where.pop()
    name = ".".join(where) or "body"
    message = str(first["msg"])
    if first["type"] == "json_invalid":
        name, message = "body", f"not valid JSON: {context.get('error', message)}"
    bounds = [f"{WORDS.get(key, '')} {context[key]}".strip() for key in BOUNDS if key in context]
    return problem_response(
        Problem(
            type="urn:phaseline:CommandRefused",
            title="Unprocessable Content",
            status=422,
            detail=f"{name}: {message[:1].lower()}{message[1:]}",
            field=name,
            value=presentable(first.get("input")) if first["type"] not in ("missing", "json_invalid") else None,
            bound=", ".join(bounds) or None,
        )
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "NotFound" if error.status_code == 404 else "ControlError"
    detail = f"no such resource: {request.url.path}" if error.status_code == 404 else str(error.detail)
    phrase = HTTPStatus(error.status_code).phrase
    problem = Problem(type=f"urn:phaseline:{kind}", title=phrase, status=error.status_code, detail=detail)
    return problem_response(problem, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_response(
        Problem(
            type="urn:phaseline:ControlError",
            title="Internal Server Error",
            status=500,
            detail=f"{request.method} {request.url.path} failed inside the plane: {type(error).__name__}; see its log",
        )
    )


def presentable(value: Any) -> Any:
    """`value` as JSON can carry it, and short."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"
