"""Alerts: what pends and fires, from memory, so that it is answered without a history too; and what has ended."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from control.api.context import Context, OptionalTime, Reader, answer
from control.types.alerts import Alert

router = APIRouter(prefix="/api/v1", tags=["alerts"])


@router.get("/alerts", response_model=list[Alert])
async def alerts(
    principal: Reader,
    context: Context,
    since_unix_s: OptionalTime = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    fleet_id: str | None = None,
) -> Response:
    """Pending and firing alerts, pages first. With `since_unix_s` also those that ended since then, newest first."""
    plane = context.plane(fleet_id)
    found = list(plane.monitor.alerts)
    if since_unix_s is not None:
        found += await plane.recorder.read(plane.history.ended_alerts, plane.fleet.fleet_id, since_unix_s, limit)
    return answer(list[Alert], found[:limit])
