"""What is: fleets, the snapshot, desired state, and what another routing policy would have decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from control.api.context import Context, Reader, answer
from control.types.bottleneck import Bottleneck
from control.types.commands import Desired
from control.types.fleet import FleetSnapshot
from control.types.routing import WhatIfRouting

router = APIRouter(prefix="/api/v1", tags=["fleet"])


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """Routing settings to try; keys that are absent keep their value."""

    policy: dict[str, float | int]
    window_s: Annotated[float, Field(gt=0, le=7 * 86_400.0, allow_inf_nan=False)] = 3600.0
    fleet_id: str | None = None


@router.get("/fleets", response_model=list[str])
def fleets(principal: Reader, context: Context) -> Response:
    """Ids of the attached fleets."""
    return answer(list[str], context.fleet_ids)


@router.get("/fleets/{fleet_id}/snapshot", response_model=FleetSnapshot)
async def snapshot(fleet_id: str, principal: Reader, context: Context) -> Response:
    """All that a screen needs, as of the last tick. `-` is the only fleet."""
    return Response(context.plane(fleet_id).snapshot_json(), media_type="application/json")


@router.get("/bottleneck", response_model=Bottleneck)
async def bottleneck(principal: Reader, context: Context, fleet_id: str | None = None) -> Response:
    """What limits now: the resource of which one more unit would let most more requests be good, with its evidence."""
    return answer(Bottleneck, context.plane(fleet_id).bottleneck)


@router.get("/fleets/{fleet_id}/desired", response_model=Desired)
async def desired(fleet_id: str, principal: Reader, context: Context) -> Response:
    """What we want, with its version. `-` is the only fleet."""
    return answer(Desired, context.plane(fleet_id).desired)


@router.post("/routing/what-if", response_model=WhatIfRouting)
async def what_if(body: WhatIf, principal: Reader, context: Context) -> Response:
    """Requests per rule over the last `window_s`: as they were routed, and as another policy would have."""
    return answer(WhatIfRouting, await context.plane(body.fleet_id).what_if(body.policy, body.window_s))
