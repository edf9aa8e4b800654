"""uvicorn's HTTP protocol with a bound on open connections: one more is told so and closed, the others are served.

uvicorn's own `limit_concurrency` answers 503 to everybody while there are too many, and so serves nobody in a flood.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BODY: Final = b'{"error":{"message":"the gateway has all the connections that it may, its bound max_connections",'
_ERROR: Final = _BODY + b'"type":"server_error","param":null,"code":"too_many_connections"}}'
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_ERROR), _ERROR)
)


def bounded_protocol(max_connections: int) -> type[asyncio.Protocol]:
    """The protocol class for one gateway."""

    class BoundedProtocol(HttpToolsProtocol):
        is_refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.is_refused = len(self.connections) >= max_connections
            if not self.is_refused:
                super().connection_made(transport)
                return
            transport.write(_REFUSAL)
            transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if not self.is_refused:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self.is_refused:
                super().data_received(data)

        def eof_received(self) -> None:
            if not self.is_refused:
                super().eof_received()

    return BoundedProtocol
