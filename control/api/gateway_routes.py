"""The gateways' WebSocket: authenticated here, spoken in `control.gateway_hub`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from control.api.context import context_of, service
from control.errors import ControlError
from control.gateway_hub import SocketClosed

router = APIRouter(prefix="/api/v1")
UNAUTHENTICATED = 4401


class LinkSocket:
    """A starlette WebSocket as `control.gateway_hub.Socket`."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive_bytes(self) -> bytes:
        try:
            return await self._socket.receive_bytes()
        except (WebSocketDisconnect, RuntimeError, KeyError) as error:  # KeyError: a text frame
            raise SocketClosed from error

    async def send_bytes(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (WebSocketDisconnect, RuntimeError, OSError) as error:
            raise SocketClosed from error

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        if self._socket.application_state != WebSocketState.DISCONNECTED:
            await self._socket.close(code, reason)


@router.websocket("/gateways/connect")
async def connect(socket: WebSocket, fleet_id: str | None = None) -> None:
    """One gateway, for as long as it is connected. Needs the service token."""
    try:
        service(socket)
        plane = context_of(socket).plane(fleet_id)
    except ControlError as error:
        await socket.close(UNAUTHENTICATED, error.detail[:100])
        return
    await socket.accept()
    await plane.gateways.hub.serve(LinkSocket(socket))
