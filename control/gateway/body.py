"""Bodies of requests, bounded three ways: the size of one, the bytes of all that are held, the time one may take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from control.gateway.errors import GatewayError, overloaded, too_large
from control.gateway.http import Disconnected, Receive

#: A client that sends its body more slowly than this is not waited for.
BODY_TIMEOUT_S: Final = 30.0


class Bodies:
    """Those that are being read or parsed by one gateway. A request that became a job is bounded as such."""

    def __init__(self, limit_bytes: int, total_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._total_bytes = total_bytes

    @contextlib.asynccontextmanager
    async def read(self, receive: Receive, content_length: int | None) -> AsyncIterator[bytes]:
        """The whole body, which counts as held within this context.

        Raises GatewayError as soon as a bound is broken (413 one, 429 all, 408 time), Disconnected when it never ends.
        """
        if content_length is not None and content_length > self._limit_bytes:
            raise too_large(self._limit_bytes, str(content_length))
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                await self._collect(receive, parts)
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError as error:
            message = f"the body did not come within {BODY_TIMEOUT_S:g} s"
            raise GatewayError(408, message, kind="timeout_error", code="body_timeout") from error
        finally:
            self.held_bytes -= sum(map(len, parts))

    async def _collect(self, receive: Receive, parts: list[bytes]) -> None:
        size = 0
        while (message := await receive())["type"] == "http.request":
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > self._limit_bytes:
                more = message.get("more_body")
                raise too_large(self._limit_bytes, f"at least {size}" if more else str(size))
            parts.append(part)
            self.held_bytes += len(part)
            if self.held_bytes > self._total_bytes:
                raise overloaded(f"the gateway holds {self._total_bytes} bytes of bodies, the most it may", 1.0)
            if not message.get("more_body"):
                return
        raise Disconnected
