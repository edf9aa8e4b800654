"""Events: with a time to begin at, those that are recorded (workers' lives, requests that moved); else the live stream
of tick summaries and command changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse

from control.api.context import Context, OptionalTime, Reader, answer
from control.events import Events
from control.history.store import EventQuery
from control.types.events import EventKind, FleetEvent

router = APIRouter(prefix="/api/v1", tags=["events"])
KEEPALIVE_S = 10.0


@router.get(
    "/events",
    response_model=list[FleetEvent],
    responses={200: {"content": {"text/event-stream": {}}, "description": "The recorded events, or the live stream"}},
)
async def events(
    principal: Reader,
    context: Context,
    since_unix_s: OptionalTime = None,
    until_unix_s: OptionalTime = None,
    kind: Annotated[list[EventKind] | None, Query()] = None,
    worker_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    fleet_id: str | None = None,
) -> Response:
    """With `since_unix_s`: recorded events in [since, until), newest first; `kind` may be given several times.
    Without it: server-sent events from now on, `tick` with a summary of the snapshot, `command` with id and state."""
    plane = context.plane(fleet_id)
    if since_unix_s is None:
        return StreamingResponse(
            sse(plane.events), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
    query = EventQuery(
        fleet_id=plane.fleet.fleet_id,
        since_unix_s=since_unix_s,
        until_unix_s=until_unix_s,
        kinds=tuple(kind or ()),
        worker_id=worker_id,
        limit=limit,
    )
    return answer(list[FleetEvent], await plane.recorder.read(plane.history.events, query))


async def sse(events: Events) -> AsyncIterator[str]:
    """Events as text; a comment when nothing happened for a while, so that a dead reader is noticed."""
    listener = events.listen()
    pending = asyncio.ensure_future(anext(listener))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=KEEPALIVE_S)
            if not done:
                yield ": still here\n\n"
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            yield f"event: {event['event']}\ndata: {json.dumps(event)}\n\n"
            pending = asyncio.ensure_future(anext(listener))
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await listener.aclose()  # type: ignore[attr-defined]
