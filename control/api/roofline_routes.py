"""Each worker under its device's roofline: what `control.roofline` makes of the last minute or of a range."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from control.api.context import Context, Reader, answer
from control.types.roofline import Roofline

router = APIRouter(prefix="/api/v1", tags=["history"])
Time = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)]


@router.get("/roofline", response_model=Roofline)
async def roofline(
    principal: Reader,
    context: Context,
    since_unix_s: Time = None,
    until_unix_s: Time = None,
    fleet_id: str | None = None,
) -> Response:
    """FLOP per byte against FLOP/s per worker and phase: last minute, or with `since_unix_s` bucket by bucket."""
    plane, now = context.plane(fleet_id), context.now()
    if since_unix_s is None:
        return answer(Roofline, plane.workload.roofline(now))
    until = now if until_unix_s is None else until_unix_s
    found = await plane.workload.roofline_of(plane.recorder, plane.history, since_unix_s, until)
    return answer(Roofline, found)
