"""One open session of the console without a browser: Streamlit's own WebSocket protocol, refreshing as a tab would.

It answers each auto-refresh order with a rerun of that fragment at its interval, as the front end does, and notes
when a new health line arrives. It draws nothing, so ten of them measure the console and not ten browsers.
"""

from __future__ import annotations

import asyncio
import re
import time

import httpx
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

AT = re.compile(r'data-at="([0-9.]+)"')


class Session:
    """Counts refreshes and the delay from the plane's tick to this socket, from `watch()` on."""

    def __init__(self, console_url: str, code: str) -> None:
        self.url = console_url.replace("http", "ws", 1) + "/_stcore/stream"
        answer = httpx.get(f"{console_url}/", params={"code": code}, trust_env=False)  # a redirect that sets the cookie
        self.cookie = "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
        self.delays_s: list[float] = []
        self.num_messages = 0
        self.num_bytes = 0
        self._last_at = ""
        self._page = ""
        self._fragments: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with websockets.connect(
            self.url,
            subprotocols=["streamlit"],  # type: ignore[list-item]
            additional_headers={"Cookie": self.cookie},
            max_size=None,
        ) as socket:
            await self._rerun(socket)
            try:
                async for data in socket:
                    if isinstance(data, bytes):
                        self._heard(socket, data)
            finally:
                for task in self._fragments.values():
                    task.cancel()

    def watch(self) -> None:
        self.delays_s, self.num_messages, self.num_bytes = [], 0, 0

    async def _rerun(self, socket: websockets.ClientConnection, query: str = "", fragment_id: str = "") -> None:
        message = BackMsg()
        message.rerun_script.query_string = query
        message.rerun_script.page_script_hash = self._page
        message.rerun_script.fragment_id = fragment_id
        message.rerun_script.is_auto_rerun = bool(fragment_id)
        await socket.send(message.SerializeToString())

    def _heard(self, socket: websockets.ClientConnection, data: bytes) -> None:
        message = ForwardMsg.FromString(data)
        self.num_messages += 1
        self.num_bytes += len(data)
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._page = message.new_session.page_script_hash or self._page
        elif kind == "auto_rerun":
            self._keep(socket, message.auto_rerun.fragment_id, message.auto_rerun.interval)
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            self._look(message.delta.new_element.html.body)

    def _look(self, body: str) -> None:
        found = AT.search(body)
        if found and found.group(1) != self._last_at:
            self._last_at = found.group(1)
            self.delays_s.append(time.time() - float(self._last_at))

    def _keep(self, socket: websockets.ClientConnection, fragment_id: str, interval_s: float) -> None:
        if fragment_id not in self._fragments:
            self._fragments[fragment_id] = asyncio.create_task(self._refresh(socket, fragment_id, interval_s))

    async def _refresh(self, socket: websockets.ClientConnection, fragment_id: str, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await self._rerun(socket, fragment_id=fragment_id)
