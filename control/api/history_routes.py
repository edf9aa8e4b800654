"""What was: metrics, series, role intervals."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from control.api.context import Context, OptionalTime, Reader, Time, answer
from control.export import MAX_METRICS
from control.history.store import SeriesQuery
from control.metrics import METRICS
from control.types.series import MetricInfo, SeriesResult
from control.types.workers import RoleInterval

router = APIRouter(prefix="/api/v1", tags=["history"])


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
    name: Annotated[list[str] | None, Query(max_length=1_000)] = None,
) -> Response:
    """One metric over [since, until) in steps. A bucket of which nothing is known is null, not 0.

    `name`, repeated: only these roles, workers or rules. A `partial` bucket: not all of it is known, or over.
    """
    plane = context.plane(fleet_id)
    query = SeriesQuery(
        fleet_id=plane.fleet.fleet_id,
        metric=metric,
        since_unix_s=since_unix_s,
        until_unix_s=context.now() if until_unix_s is None else until_unix_s,
        step_s=step_s,
        by=by,
        names=tuple(name or ()),
    )
    return answer(SeriesResult, await plane.recorder.read(plane.history.series, query))


@router.get("/series/many", response_model=list[SeriesResult])
async def many_series(
    principal: Reader,
    context: Context,
    metric: Annotated[list[str], Query(min_length=1, max_length=MAX_METRICS)],
    since_unix_s: Time,
    until_unix_s: OptionalTime = None,
    step_s: Annotated[int | None, Query(ge=1, le=86_400)] = None,
    by: str = "fleet",
    fleet_id: str | None = None,
) -> Response:
    """Several metrics over one range, in one grouping and one step: what a page refreshes, in one question."""
    plane = context.plane(fleet_id)
    until = context.now() if until_unix_s is None else until_unix_s
    queries = [
        SeriesQuery(
            fleet_id=plane.fleet.fleet_id,
            metric=each,
            since_unix_s=since_unix_s,
            until_unix_s=until,
            step_s=step_s,
            by=by,
        )
        for each in metric
    ]
    return answer(list[SeriesResult], await plane.recorder.read(plane.history.many_series, queries))


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
