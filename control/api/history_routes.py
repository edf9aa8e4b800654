"""What was: metrics, series, request records (metadata only: prompts are never stored), role intervals."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from control.api.context import Context, Reader, answer
from control.errors import NotFound
from control.history.store import RequestQuery, SeriesQuery
from control.metrics import METRICS
from control.types import MetricInfo, RequestRecord, RoleInterval, SeriesResult

router = APIRouter(prefix="/api/v1", tags=["history"])
Time = Annotated[float, Query(ge=0, le=1e11, allow_inf_nan=False)]
OptionalTime = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)]


@router.get("/metrics", response_model=list[MetricInfo])
def metrics(principal: Reader) -> Response:
    """Every metric with unit, help, provenance and the groups it can be split by."""
    return answer(list[MetricInfo], list(METRICS.values()))


@router.get("/series", response_model=SeriesResult)
async def series(
    principal: Reader,
    context: Context,
    metric: str,
    since_unix_s: Time,
    until_unix_s: OptionalTime = None,
    step_s: Annotated[int | None, Query(ge=1, le=86_400)] = None,
    by: str = "fleet",
    fleet_id: str | None = None,
) -> Response:
    """One metric over [since, until) in steps. A bucket of which nothing is known is null, not 0."""
    plane = context.plane(fleet_id)
    query = SeriesQuery(
        fleet_id=plane.fleet.fleet_id,
        metric=metric,
        since_unix_s=since_unix_s,
        until_unix_s=context.now() if until_unix_s is None else until_unix_s,
        step_s=step_s,
        by=by,
    )
    return answer(SeriesResult, await plane.recorder.read(plane.history.series, query))


@router.get("/requests", response_model=list[RequestRecord])
async def requests(
    principal: Reader,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    since_unix_s: OptionalTime = None,
    until_unix_s: OptionalTime = None,
    order: Literal["recent", "slowest"] = "recent",
    rule: str | None = None,
    worker_id: str | None = None,
    good: bool | None = None,
    moved: bool | None = None,
    fleet_id: str | None = None,
) -> Response:
    """Request records, newest or slowest first. `moved`: those that went on at another worker, or the others."""
    plane = context.plane(fleet_id)
    query = RequestQuery(
        fleet_id=plane.fleet.fleet_id,
        limit=limit,
        since_unix_s=since_unix_s,
        until_unix_s=until_unix_s,
        order=order,
        rule=rule,
        worker_id=worker_id,
        good=good,
        moved=moved,
    )
    return answer(list[RequestRecord], await plane.recorder.read(plane.history.requests, query))


@router.get("/requests/{request_id}", response_model=RequestRecord)
async def request(request_id: str, principal: Reader, context: Context, fleet_id: str | None = None) -> Response:
    """One request's life."""
    plane = context.plane(fleet_id)
    found = await plane.recorder.read(plane.history.request, request_id)
    if found is None or found.fleet_id != plane.fleet.fleet_id:
        raise NotFound(f"no request {request_id}", field="request_id", value=request_id)
    return answer(RequestRecord, found)


@router.get("/roles", response_model=list[RoleInterval])
async def roles(
    principal: Reader,
    context: Context,
    since_unix_s: Time,
    until_unix_s: OptionalTime = None,
    fleet_id: str | None = None,
) -> Response:
    """Which worker held which role, when."""
    plane = context.plane(fleet_id)
    until = context.now() if until_unix_s is None else until_unix_s
    found = await plane.recorder.read(plane.history.role_intervals, plane.fleet.fleet_id, since_unix_s, until)
    return answer(list[RoleInterval], found)
