"""One call to what steers somebody else's fleet: bounded in time and size, its token from a file, errors in words."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Final

import httpx

from control.errors import FleetError

CALL_LIMIT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024


class Refused(FleetError):
    """It answered, and will not; `code` is its HTTP status."""

    def __init__(self, detail: str, code: int) -> None:
        super().__init__(detail)
        self.code = code


class Caller:
    """Of one base address. `token`: where it is, a file or env:NAME; it is read at each call and kept nowhere."""

    def __init__(self, base_url: str, token: str = "") -> None:
        self.base_url = base_url.rstrip("/")
        self._token = token
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)

    async def json(self, method: str, path: str, body: Any = None) -> Any:
        """The answer; {} when it is empty. Raises Refused, FleetError."""
        text = await self.text(method, path, body)
        try:
            return json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise FleetError(f"{self.base_url}{path} does not answer in JSON: {text[:80]!r}") from error

    async def text(self, method: str, path: str, body: Any = None) -> str:
        url, parts, size = f"{self.base_url}{path}", [], 0
        try:
            headers = await asyncio.to_thread(self._headers)
            async with (
                asyncio.timeout(CALL_LIMIT_S),
                self._client.stream(method, url, json=body, headers=headers, timeout=CALL_LIMIT_S) as answer,
            ):
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > MAX_ANSWER_BYTES:
                        raise FleetError(f"{url} answers with more than {MAX_ANSWER_BYTES} bytes")
                    parts.append(part)
        except TimeoutError as error:
            raise FleetError(f"{url} has not answered within {CALL_LIMIT_S:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise FleetError(f"{url} cannot be reached: {error or type(error).__name__}") from error
        text = b"".join(parts).decode("utf-8", "replace")
        if answer.is_error:
            said = " ".join(text.split())[:200]
            raise Refused(f"{method} {url} answers {answer.status_code}: {said}", answer.status_code)
        return text

    async def close(self) -> None:
        await self._client.aclose()

    def _headers(self) -> dict[str, str]:
        if not self._token:
            return {}
        name = self._token.removeprefix("env:")
        told = os.environ.get(name, "") if name != self._token else Path(name).read_text()
        return {"Authorization": f"Bearer {told.strip()}"}


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
