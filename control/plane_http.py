"""HTTP to whichever plane is the active one, below `control.client`: an address, a deadline, a type for the answer.

Answers come back as values of the type that was asked for, problem bodies as `control.errors`, and no answer at all as
PlaneUnreachable. Decided here: at which address is asked, and what is asked again while another plane takes over: what
the caller calls repeatable, and what certainly did nothing. Not decided here: paths, and which of them are repeatable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from control import errors
from control.errors import ControlError, FleetError, NotActive, NotFound, PlaneUnreachable, StaleFence
from control.types.api import Problem

T = TypeVar("T")
API = "/api/v1"
RETRY_S = 0.1
_adapters: dict[Any, TypeAdapter[Any]] = {}  # built once per type
ERRORS: Mapping[str, type[ControlError]] = {
    kind.__name__: kind
    for kind in (
        errors.SettingsError,
        errors.CommandRefused,
        errors.StaleVersion,
        errors.NotFound,
        errors.NotAllowed,
        errors.HistoryError,
        errors.DatabaseAway,
        errors.StaleFence,
        errors.NotActive,
        errors.FleetError,
    )
}


class PlaneHttp:
    """One connection pool to the planes at `urls`, of which one is active. Thread-safe.

    `patience_s`: a takeover is waited out for so long.
    """

    def __init__(
        self,
        urls: Sequence[str],
        token: str,
        timeout_s: float,
        patience_s: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._urls = tuple(urls)
        self._turn = 0  # of the addresses: the one that answered last
        self._patience_s = patience_s
        self._http = httpx.Client(headers=headers, timeout=timeout_s, transport=transport, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def get(self, kind: type[T], path: str, /, **params: Any) -> T:
        """A parameter that is None is left out."""
        query = {k: _query(v) for k, v in params.items() if v is not None}
        return self.send(kind, "GET", path, True, params=query)

    def post(self, kind: type[T], path: str, body: Any, *, is_repeatable: bool = False) -> T:
        headers = {"Content-Type": "application/json"}
        return self.send(kind, "POST", path, is_repeatable, content=json.dumps(body), headers=headers)

    def send(self, kind: type[T], method: str, path: str, is_repeatable: bool, **options: Any) -> T:
        response = self.answer(method, path, is_repeatable, **options)
        try:
            answer: T = adapter(kind).validate_json(response.content)
            return answer
        except ValidationError as error:
            raise FleetError(f"the plane's answer to {path} is not understood: {error.errors()[0]['msg']}") from error

    def answer(self, method: str, path: str, is_repeatable: bool, **options: Any) -> httpx.Response:
        """The active plane's answer. Raises the error that it stands for, or PlaneUnreachable."""
        until_s = time.monotonic() + self._patience_s
        while True:
            error: ControlError
            try:
                response = self._http.request(method, f"{self._url}{path}", **options)
                if not response.is_error:
                    return response
                error = problem_error(response)
                may_repeat = isinstance(error, StaleFence | NotActive)  # that plane has done nothing
            except httpx.TransportError as broken:
                error = self._unreachable(broken)
                may_repeat = is_repeatable or isinstance(broken, httpx.ConnectError)
            if not may_repeat or time.monotonic() > until_s:
                raise error
            self._turn += 1
            time.sleep(RETRY_S)

    def events(self, path: str, params: Mapping[str, str], timeout_s: float) -> Iterator[dict[str, Any]]:
        """Server-sent events, until the plane closes the stream."""
        try:
            with self._http.stream("GET", f"{self._url}{path}", params=params, timeout=timeout_s) as response:
                if response.is_error:
                    response.read()
                    raise problem_error(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line[6:])
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    @property
    def _url(self) -> str:
        return self._urls[self._turn % len(self._urls)].rstrip("/")

    def _unreachable(self, error: httpx.TransportError) -> PlaneUnreachable:
        return PlaneUnreachable(f"the plane at {self._url} does not answer: {error or type(error).__name__}")


def problem_error(response: httpx.Response) -> ControlError:
    """The error that a problem body stands for: its class by `type`, else by status."""
    try:
        problem = adapter(Problem).validate_json(response.content)
    except ValidationError:
        found = NotFound if response.status_code == 404 else FleetError
        return found(f"the plane answered {response.status_code} {response.reason_phrase}")
    kind = ERRORS.get(problem.type.rpartition(":")[2], ControlError)
    error = kind(problem.detail, field=problem.field, value=problem.value, bound=problem.bound)
    error.status = problem.status
    error.retry_helps = problem.retry_helps
    return error


def adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _query(value: Any) -> str | list[str]:
    if isinstance(value, list):
        return [str(each) for each in value]
    return str(value).lower() if isinstance(value, bool) else str(value)
