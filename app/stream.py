"""One event stream per open tab: what a page shows, pushed once a reading, instead of asked for by a rerun.

`GET /live?parts=wall,wall_lines&tz=Europe/Berlin` (`once=1`: one message, as JSON). Decided here: who may listen (the
visit of the page's own cookie, asked anew at every message), that each part is built once per reading for everybody,
and that a slow reader gets the newest and never a queue. What a part says is `app.parts`'.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from app import format
from app.login import keep, reference
from app.source import RECHECK_S, Hub

PATH = "/live"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
QUIET_S = 5.0  # a word at least so often: who went away is noticed, and a proxy keeps the line open
LIFE_S = 1800.0  # then the browser connects anew, and its cookie is looked at again
MAX_STREAMS = 500
MAX_ZONES = 24
LOG = logging.getLogger("phaseline.console")


@dataclass(frozen=True, slots=True)
class Part:
    """A part at one reading, as JSON: all of it and, where that is less, what is new since the reading before."""

    whole: str
    news: str | None = None


Build = Callable[[Hub, tzinfo], Part]


@dataclass(slots=True)
class Streams:
    """The open streams of this process. All but `told` runs on the event loop."""

    hub: Hub
    parts: Mapping[str, Build]
    num_open: int = 0
    turn: int = 0  # counts readings
    _next: asyncio.Event = field(default_factory=asyncio.Event)
    _built: dict[tuple[str, str], asyncio.Task[Part | None]] = field(default_factory=dict)  # of this turn
    _loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """From the event loop: be told of each reading."""
        self._loop = asyncio.get_running_loop()
        self.hub.listeners.append(self.told)

    def share_loop(self, other: Streams) -> None:
        """The streams of another hub live on the same event loop. Any thread may call it."""
        other._loop = self._loop
        other.hub.listeners.append(other.told)

    def told(self) -> None:
        """There is a new reading, or the plane was silent once more. Any thread may call it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._turn_over)

    def _turn_over(self) -> None:
        self.turn += 1
        self._built = {}
        ended, self._next = self._next, asyncio.Event()
        ended.set()

    # --- the route ------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        """401 without an open visit, 400 for a part that does not exist, 503 with too many listeners; or the stream."""
        visit = self.hub.visits.find(reference(request), self.hub.now())
        if visit is None:
            return JSONResponse({"error": "log in first"}, 401, HEADERS)
        names = tuple(sorted(set(filter(None, request.query_params.get("parts", "").split(",")))))
        if not names or any(name not in self.parts for name in names):
            known = ", ".join(self.parts)
            return JSONResponse({"error": f"parts: some of {known}; not {','.join(names) or 'none'}"}, 400, HEADERS)
        zone = request.query_params.get("tz", "")
        if request.query_params.get("once"):
            return Response(await self._message(names, zone, {}), 200, HEADERS, "application/json")
        if self.num_open >= MAX_STREAMS:
            return JSONResponse({"error": f"{MAX_STREAMS} screens are listening already"}, 503, HEADERS)
        self.hub.admit(visit.token)
        response = StreamingResponse(
            self.events(reference(request), names, zone), headers=HEADERS, media_type="text/event-stream"
        )
        left_s = self.hub.visits.prolong(reference(request), self.hub.now())
        if left_s is not None:  # at least every LIFE_S
            keep(request, response, reference(request), left_s)
        return response

    async def events(self, visit: str, names: tuple[str, ...], zone: str) -> AsyncIterator[str]:
        """Messages until the visit or the stream's time is over. Whoever reads slowly misses turns, not the newest."""
        ends_s, asked_s = time.monotonic() + LIFE_S, -RECHECK_S
        sent: dict[str, tuple[int, str]] = {}
        self.num_open += 1
        try:
            yield "retry: 1000\n\n"
            while (now_s := time.monotonic()) < ends_s:
                turn, over = self.turn, self._next
                is_due, asked_s = (True, now_s) if now_s - asked_s >= RECHECK_S else (False, asked_s)
                if not (await run_in_threadpool(self.hub.honours, visit) if is_due else self._is_open(visit)):
                    yield "event: ended\ndata: {}\n\n"
                    return
                yield f"id: {turn}\ndata: {await self._message(names, zone, sent)}\n\n"
                await self._wait(over)
        finally:
            self.num_open -= 1

    def _is_open(self, visit: str) -> bool:
        return self.hub.visits.find(visit, self.hub.now()) is not None

    async def _wait(self, over: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), QUIET_S)

    # --- what is said ------------------------------------------------------------

    async def _message(self, names: tuple[str, ...], zone: str, sent: dict[str, tuple[int, str]]) -> str:
        """The parts that differ from what `sent` says this reader has, and notes them there."""
        turn, fresh = self.turn, []
        for name in names:
            part = await self._part(name, zone)
            before = sent.get(name)
            if part is None or (before is not None and before[1] == part.whole):
                continue
            follows = before is not None and before[0] == turn - 1 and part.news is not None
            fresh.append(f'"{name}":{part.news if follows else part.whole}')
            sent[name] = (turn, part.whole)
        return f'{{"turn":{turn},"parts":{{{",".join(fresh)}}}}}'

    async def _part(self, name: str, zone: str) -> Part | None:
        """Built once per turn and zone, beside the event loop."""
        known = zone if len(self._built) < MAX_ZONES * len(self.parts) else ""
        key = (name, known)
        if key not in self._built:
            self._built[key] = asyncio.create_task(self._build(name, format.zone(known)))
        return await asyncio.shield(self._built[key])

    async def _build(self, name: str, tz: tzinfo) -> Part | None:
        try:
            return await run_in_threadpool(self.parts[name], self.hub, tz)
        except Exception:  # one part at fault must not silence the others
            LOG.exception("the part %s could not be built", name)
            return None
