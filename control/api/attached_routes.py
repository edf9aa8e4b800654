"""Fleets that somebody else runs: what would be seen of one, attaching and detaching, what may be done to them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from control.api.context import ApiContext, Context, Operator, Reader, answer
from control.api.unknown_fields import refuse_unknown_fields
from control.attached_planes import AttachedPlanes
from control.errors import NotActive
from control.fleets.attached.choices import choices
from control.fleets.attached.types import AttachChoices, AttachedInfo, Attachment, Survey
from control.types.fleet import Capability

router = APIRouter(prefix="/api/v1", tags=["attached fleets"])


def _attached(context: ApiContext) -> AttachedPlanes:
    found = context.attached()
    if found is None:
        raise NotActive(f"no plane is active here: {context.waiting()}")
    return found


@router.get("/attached", response_model=list[AttachedInfo])
async def attached(principal: Reader, context: Context) -> Response:
    """All attached fleets, with what keeps one from being seen."""
    return answer(list[AttachedInfo], _attached(context).infos())


@router.get("/attached/choices", response_model=AttachChoices)
async def attach_choices(principal: Reader) -> Response:
    """What can be said to attach a fleet: kinds, controllers with their options, known models and devices."""
    return answer(AttachChoices, choices())


@router.post("/attached/survey", response_model=Survey)
async def survey(body: Attachment, request: Request, principal: Operator, context: Context) -> Response:
    """One look at every target, as the plane can reach it; changes nothing. Operators only: it makes the plane ask."""
    await refuse_unknown_fields(request, Attachment)
    return answer(Survey, await _attached(context).survey(body))


@router.post("/attached", response_model=AttachedInfo, status_code=201)
async def attach(body: Attachment, request: Request, principal: Operator, context: Context) -> Response:
    """Look at this fleet from now on. The same words again change nothing."""
    await refuse_unknown_fields(request, Attachment)
    return answer(AttachedInfo, await _attached(context).attach(body, principal.name), 201)


@router.put("/attached/{name}/allowed/{capability}", response_model=AttachedInfo)
async def allow(name: str, capability: Capability, principal: Operator, context: Context) -> Response:
    """Let this be done to the fleet from now on. Until then it is observed only."""
    return answer(AttachedInfo, await _attached(context).allow(name, capability, principal.name))


@router.delete("/attached/{name}/allowed/{capability}", response_model=AttachedInfo)
async def forbid(name: str, capability: Capability, principal: Operator, context: Context) -> Response:
    """Do this no more."""
    return answer(AttachedInfo, await _attached(context).forbid(name, capability, principal.name))


@router.delete("/attached/{name}", status_code=204)
async def detach(name: str, principal: Operator, context: Context) -> Response:
    """Stop looking. The fleet's history stays, and its engines do not notice."""
    await _attached(context).detach(name, principal.name)
    return Response(status_code=204)
