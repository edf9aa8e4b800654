"""One open session of the console without a browser: Streamlit's WebSocket protocol, and the event stream beside it.

It does what the front end does: answers each auto-refresh order with a rerun of that fragment at its interval, listens
to the parts that the mounted components listen to, and asks for a rerun where one of them would. It reads all that it
gets and draws nothing, so fifty of them measure the console and not fifty browsers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections import Counter
from typing import Any

import httpx
import pyarrow as pa
import websockets
from streamlit.components.v2.bidi_component.main import _make_trigger_id
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

AT = re.compile(r'data-at=\\?"([0-9.]+)')
SPREAD_S = 0.1  # viewers do not ask at one instant, as in app/front/again.js
SETTLE_S = 0.1  # parts that come together are asked for together, as in app/front/stream.js
PARTS: dict[str, tuple[str, ...]] = {"phaseline.wall": ("wall", "wall_lines")}


class Session:
    """Counts refreshes and the delay from the plane's tick to this client, from `watch()` on."""

    def __init__(self, console_url: str, cookie: str = "", query: str = "") -> None:
        self.console_url, self.query = console_url, query
        self.cookie = cookie
        self.watch()
        self._at = 0.0
        self._charts_at: dict[str, float] = {}  # by place of a chart, the tick that it shows
        self._page = ""
        self._parts: set[str] = set()
        self._listening: asyncio.Task[None] | None = None
        self._fragments: dict[str, asyncio.Task[None]] = {}
        self._values: dict[str, Any] = {}  # the newest of each part
        self._agains: dict[str, Again] = {}
        self.asking: set[asyncio.Task[None]] = set()
        self.spread_s = random.uniform(0.0, SPREAD_S)

    def watch(self) -> None:
        """Begin to count."""
        self.delays_s: list[float] = []
        self.chart_delays_s: list[float] = []
        self._num_moves: Counter[str] = Counter()  # by place of a chart
        self.num_messages = self.num_bytes = self.num_reruns = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with websockets.connect(
            self.console_url.replace("http", "ws", 1) + "/_stcore/stream",
            subprotocols=["streamlit"],  # type: ignore[list-item]
            additional_headers={"Cookie": self.cookie} if self.cookie else None,
            max_size=None,
        ) as socket:
            await self.rerun(socket)
            try:
                async for data in socket:
                    if isinstance(data, bytes):
                        self._heard(socket, data)
            finally:
                tasks = [*self._fragments.values(), *self.asking, *([self._listening] if self._listening else [])]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    # --- the protocol ------------------------------------------------------------

    async def rerun(self, socket: websockets.ClientConnection, fragment_id: str = "", trigger: str = "") -> None:
        message = BackMsg()
        if trigger:
            said = json.dumps([{"event": "again", "value": True}])
            message.rerun_script.widget_states.widgets.add(id=trigger, json_trigger_value=said)
        message.rerun_script.query_string = self.query
        message.rerun_script.page_script_hash = self._page
        message.rerun_script.fragment_id = fragment_id
        message.rerun_script.is_auto_rerun = bool(fragment_id) and not trigger
        self.num_reruns += 1
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
            place = str(message.metadata.delta_path)
            self._element(socket, message.delta.new_element, message.delta.fragment_id, place)

    def _element(self, socket: websockets.ClientConnection, element: Any, fragment_id: str, place: str) -> None:
        kind = element.WhichOneof("type")
        if kind == "html":
            self._look(element.html.body)
        elif kind == "vega_lite_chart":
            self._chart(element.vega_lite_chart, place)
        elif kind == "bidi_component":
            component = element.bidi_component
            data = json.loads(component.json or component.mixed.json or "{}")
            if component.component_name == "phaseline.again":
                self._drawn(socket, component.id, data, fragment_id)
            self._listen_to({*PARTS.get(component.component_name, ()), *filter(None, [data.get("part")])})

    def _keep(self, socket: websockets.ClientConnection, fragment_id: str, interval_s: float) -> None:
        if fragment_id not in self._fragments:
            self._fragments[fragment_id] = asyncio.create_task(self._refresh(socket, fragment_id, interval_s))

    async def _refresh(self, socket: websockets.ClientConnection, fragment_id: str, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await self.rerun(socket, fragment_id)

    # --- the event stream ------------------------------------------------------------

    def _drawn(
        self, socket: websockets.ClientConnection, component_id: str, data: dict[str, Any], fragment_id: str
    ) -> None:
        """A fragment that wants to run again when its part changes, as app/front/again.js does it."""
        if component_id not in self._agains:
            self._agains[component_id] = Again(self, socket, component_id, fragment_id)
        again = self._agains[component_id]
        again.drawn, again.part, again.is_asked = data["drawn"], data["part"], False
        again.look(self._values.get(again.part))

    def _listen_to(self, wanted: set[str]) -> None:
        if not wanted <= self._parts:
            self._parts |= wanted
            if self._listening is not None:
                self._listening.cancel()
            self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        await asyncio.sleep(SETTLE_S)
        params = {"parts": ",".join(sorted(self._parts)), "tz": "Europe/Berlin"}
        headers = {"Cookie": self.cookie}
        async with (
            httpx.AsyncClient(timeout=30.0, trust_env=False) as client,
            client.stream("GET", f"{self.console_url}/live", params=params, headers=headers) as answer,
        ):
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                self.num_bytes += len(line)
                if line.startswith("data: "):
                    self.num_messages += 1
                    self._said(json.loads(line[6:])["parts"])

    def _said(self, parts: dict[str, Any]) -> None:
        self._values.update(parts)
        for again in self._agains.values():
            again.look(self._values.get(again.part))
        for name, value in parts.items():
            if name == "wall":
                self._saw(float(value["at"]))
            elif isinstance(value, str):
                self._look(value)
        if parts.get("wall_lines"):  # its seconds are whole: the words of the same message know the tick
            self._saw_chart("wall", self._at)

    # --- what it sees ------------------------------------------------------------

    def _look(self, body: str) -> None:
        found = AT.search(body)
        if found:
            self._saw(float(found.group(1)))

    def _saw(self, at: float) -> None:
        if at > self._at:
            self._at = at
            self.delays_s.append(time.time() - at)

    def _chart(self, chart: Any, place: str) -> None:
        """Its time axis ends at the tick that it shows; the naive chart says none, and came after its tick."""
        named = {each.name: each.data.data for each in chart.datasets}
        with contextlib.suppress(pa.ArrowInvalid):
            pinned = (
                pa.ipc.open_stream(named["span"]).read_all()["t"][-1].as_py() / 1000 if "span" in named else self._at
            )
            self._saw_chart(place, pinned)

    def _saw_chart(self, place: str, at: float) -> None:
        if at > self._charts_at.get(place, 0.0):
            self._charts_at[place] = at
            self._num_moves[place] += 1
            self.chart_delays_s.append(time.time() - at)

    def num_live_charts(self, watched_s: float) -> int:
        """Those that moved at least every 10 s; the day's strip is drawn once a minute."""
        return sum(num >= watched_s / 10 for num in self._num_moves.values())


class Again:
    """One `app/front/again.js`: at most one rerun under way, this viewer's own time after the change."""

    def __init__(self, session: Session, socket: websockets.ClientConnection, component_id: str, fragment: str) -> None:
        self.session, self.socket, self.fragment = session, socket, fragment
        self.trigger = _make_trigger_id(component_id, "events")
        self.drawn: Any = None
        self.part = ""
        self.is_asked = False

    def look(self, newest: Any) -> None:
        if newest is not None and newest != self.drawn and not self.is_asked:
            self.is_asked = True
            task = asyncio.get_running_loop().create_task(self._ask())
            self.session.asking.add(task)
            task.add_done_callback(self.session.asking.discard)

    async def _ask(self) -> None:
        await asyncio.sleep(self.session.spread_s)
        await self.session.rerun(self.socket, self.fragment, self.trigger)


def cookie_of(console_url: str, code: str) -> str:
    """Follow a login link: its redirect sets the cookie."""
    answer = httpx.get(f"{console_url}/", params={"code": code}, trust_env=False)
    return "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
