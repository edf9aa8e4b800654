"""One call to what steers somebody else's fleet: bounded in time and size, its token from a file, errors in words.

Decided here: what an answer may cost, and that whatever comes back is an answer or a FleetError, never anything else.
Not decided here: which failed call is made again (`retries`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx

from control.errors import FleetError
from control.fleets.attached.clients import own_client
from control.fleets.attached.steering.retries import is_worth_another, pause_s

#: Of a call with all that is made again.
CALL_LIMIT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024


class Refused(FleetError):
    """It answered, and will not; `code` is its HTTP status, `said` its answer."""

    def __init__(self, detail: str, code: int, said: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.said = said


class Caller:
    """Of one base address. `token`: where it is, a file or env:NAME; it is read at each call and kept nowhere."""

    def __init__(
        self,
        base_url: str,
        token: str = "",
        *,
        limit_s: float = CALL_LIMIT_S,
        share: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._token = token
        self._limit_s = limit_s
        self._share = share
        self._sleep = sleep
        self._client = own_client()

    async def json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The object that it answers with; {} when the answer is empty. Raises Refused, FleetError."""
        text = await self.text(method, path, body)
        said = _parsed(text, f"{self.base_url}{path}") if text.strip() else {}
        if not isinstance(said, dict):
            raise FleetError(f"{self.base_url}{path} answers with no object: {text[:80]!r}")
        return said

    async def array(self, path: str) -> list[dict[str, Any]]:
        """The objects of the list that it answers with. Raises Refused, FleetError."""
        text = await self.text("GET", path)
        said = _parsed(text, f"{self.base_url}{path}")
        if not isinstance(said, list):
            raise FleetError(f"{self.base_url}{path} answers with no list: {text[:80]!r}")
        return [each for each in said if isinstance(each, dict)]

    async def text(self, method: str, path: str, body: Any = None) -> str:
        """Raises Refused, FleetError; within the limit, whatever is at the other end."""
        url, deadline_s, num_calls = f"{self.base_url}{path}", time.monotonic() + self._limit_s, 0
        headers = await asyncio.to_thread(self._headers)
        while True:
            num_calls += 1
            failure: int | Exception
            told: FleetError
            try:
                status, text = await self._once(method, url, body, headers, deadline_s)
                if 200 <= status < 300:
                    return text
                failure, told = status, _refused(method, url, status, text)
            except TimeoutError as error:
                raise FleetError(f"{url} has not answered within {self._limit_s:g} s") from error
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                failure, told = error, FleetError(f"{url} cannot be reached: {error or type(error).__name__}")
            pause = pause_s(num_calls, self._share())
            if not is_worth_another(method, failure, num_calls) or time.monotonic() + pause >= deadline_s:
                raise told
            await self._sleep(pause)

    async def _once(
        self, method: str, url: str, body: Any, headers: dict[str, str], deadline_s: float
    ) -> tuple[int, str]:
        """Status and text."""
        parts: list[bytes] = []
        size, left_s = 0, max(0.0, deadline_s - time.monotonic())
        async with (
            asyncio.timeout(left_s),
            self._client.stream(method, url, json=body, headers=headers, timeout=None) as answer,
        ):
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise FleetError(f"{url} answers compressed, unasked")
            async for part in answer.aiter_bytes():
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise FleetError(f"{url} answers with more than {MAX_ANSWER_BYTES} bytes")
                parts.append(part)
        return answer.status_code, b"".join(parts).decode("utf-8", "replace")

    async def close(self) -> None:
        await self._client.aclose()

    def _headers(self) -> dict[str, str]:
        """Read anew: a token that is replaced counts from the next call on. Its words are in no error."""
        if not self._token:
            return {}
        name = self._token.removeprefix("env:")
        try:
            token = (os.environ[name] if name != self._token else Path(name).read_text()).strip()
        except KeyError as error:
            raise FleetError(f"the token for {self.base_url} is to be in {name}, which is not set") from error
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise FleetError(f"the token for {self.base_url} cannot be read from {name}: {why}") from error
        if not token or not token.isascii() or not token.isprintable():
            raise FleetError(f"{name} holds no token for {self.base_url}: one line of plain characters")
        return {"Authorization": f"Bearer {token}"}


def _parsed(text: str, url: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FleetError(f"{url} does not answer in JSON: {text[:80]!r}") from error


def _refused(method: str, url: str, status: int, text: str) -> Refused:
    said = "a redirect, which is not followed" if 300 <= status < 400 else " ".join(text.split())[:200]
    return Refused(f"{method} {url} answers {status}: {said}", status, text)


def table(value: Any, *path: str) -> dict[str, Any]:
    """The object at `path` in somebody's answer; {} where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def rows(value: Any, *path: str) -> list[dict[str, Any]]:
    """The objects of the list at `path`; [] where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
