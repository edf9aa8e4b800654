"""The event stream: tick summaries and command changes, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from control.api.context import Context, Reader
from control.events import Events

router = APIRouter(prefix="/api/v1", tags=["events"])
KEEPALIVE_S = 10.0


@router.get("/events", response_class=StreamingResponse)
async def events(principal: Reader, context: Context, fleet_id: str | None = None) -> StreamingResponse:
    """Server-sent events: `tick` with a summary of the snapshot, `command` with id and state."""
    stream = sse(context.plane(fleet_id).events)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


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
