"""What operators do: preview, submit, and read back commands."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from control.api.context import Context, Operator, OptionalTime, Reader, answer
from control.api.unknown_fields import refuse_unknown_fields
from control.types.commands import Action, Command, CommandRequest, Preview

router = APIRouter(prefix="/api/v1", tags=["commands"])
CommandId = Annotated[int, Path(ge=0, le=2**53)]


@router.post("/commands/preview", response_model=Preview)
async def preview(body: CommandRequest, request: Request, principal: Reader, context: Context) -> Response:
    """What a command would do: steps, pools before and after, warnings, why it would be refused."""
    await refuse_unknown_fields(request, CommandRequest, action=Action)
    return answer(Preview, await context.plane(body.fleet_id).preview(body))


@router.post("/commands", response_model=Command, status_code=202)
async def submit(body: CommandRequest, request: Request, principal: Operator, context: Context) -> Response:
    """Record a command; the next tick carries it out. The same idempotency key gives the same command back."""
    await refuse_unknown_fields(request, CommandRequest, action=Action)
    return answer(Command, await context.plane(body.fleet_id).submit(body, principal), 202)


@router.get("/commands", response_model=list[Command])
async def commands(
    principal: Reader,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before_id: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    since_unix_s: OptionalTime = None,
    until_unix_s: OptionalTime = None,
    fleet_id: str | None = None,
) -> Response:
    """Commands, newest first, recorded in [since, until)."""
    plane = context.plane(fleet_id)
    return answer(list[Command], await plane.commands(limit, before_id, since_unix_s, until_unix_s))


@router.get("/commands/{command_id}", response_model=Command)
async def command(command_id: CommandId, principal: Reader, context: Context, fleet_id: str | None = None) -> Response:
    """One command with its journal."""
    return answer(Command, await context.plane(fleet_id).command(command_id))
