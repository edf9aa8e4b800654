"""Requests that have ended: their records (metadata only: prompts are never stored), a heatmap of their latencies, and
what is different about some of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from control.api.context import Context, OptionalTime, Reader, Time, answer
from control.errors import NotFound
from control.history.store import ExplainQuery, RequestFilter, RequestQuery
from control.types.latencies import Explanation, Heatmap
from control.types.requests import LatencyKind, RequestRecord

router = APIRouter(prefix="/api/v1", tags=["requests"])
OptionalSeconds = Annotated[float | None, Query(ge=0, le=1e6, allow_inf_nan=False)]


def _filters(
    metric: LatencyKind = "e2e",
    rule: str | None = None,
    worker_id: str | None = None,
    api_key_id: str | None = None,
    good: bool | None = None,
    failed: bool | None = None,
    moved: bool | None = None,
    batch: bool | None = None,
) -> dict[str, Any]:
    """What a request must be. `metric`: which latency is meant; `failed`: refused, or ended with an error; `moved`:
    went on at another worker; `batch`: of that class."""
    return {
        "metric": metric,
        "rule": rule,
        "worker_id": worker_id,
        "api_key_id": api_key_id,
        "good": good,
        "failed": failed,
        "moved": moved,
        "batch": batch,
    }


Filters = Annotated[dict[str, Any], Depends(_filters)]


@router.get("/requests", response_model=list[RequestRecord])
async def requests(
    principal: Reader,
    context: Context,
    filters: Filters,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    since_unix_s: OptionalTime = None,
    until_unix_s: OptionalTime = None,
    above_s: OptionalSeconds = None,
    up_to_s: OptionalSeconds = None,
    order: Literal["recent", "slowest"] = "recent",
    fleet_id: str | None = None,
) -> Response:
    """Records that are kept, newest first, or slowest by `metric`; `above_s`, `up_to_s` bound that latency."""
    plane = context.plane(fleet_id)
    query = RequestQuery(
        fleet_id=plane.fleet.fleet_id,
        limit=limit,
        since_unix_s=since_unix_s,
        until_unix_s=until_unix_s,
        above_s=above_s,
        up_to_s=up_to_s,
        order=order,
        **filters,
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


@router.get("/latency-heatmap", response_model=Heatmap)
async def heatmap(
    principal: Reader,
    context: Context,
    filters: Filters,
    since_unix_s: Time,
    until_unix_s: OptionalTime = None,
    fleet_id: str | None = None,
) -> Response:
    """Requests by arrival and latency: all of them are counted, of a rule too; with any other filter, estimated from
    the records that are kept."""
    plane = context.plane(fleet_id)
    until = context.now() if until_unix_s is None else until_unix_s
    query = RequestFilter(fleet_id=plane.fleet.fleet_id, since_unix_s=since_unix_s, until_unix_s=until, **filters)
    found = await plane.recorder.read(plane.history.heatmap, query, plane.settings.effective_slo)
    return answer(Heatmap, found)


@router.get("/latency-differences", response_model=Explanation)
async def differences(
    principal: Reader,
    context: Context,
    filters: Filters,
    since_unix_s: Time,
    until_unix_s: OptionalTime = None,
    from_unix_s: OptionalTime = None,
    to_unix_s: OptionalTime = None,
    above_s: OptionalSeconds = None,
    up_to_s: OptionalSeconds = None,
    fleet_id: str | None = None,
) -> Response:
    """What is different about the requests that arrived in [from, to) with a latency in (above, up to], against all
    others of [since, until); without these, about those that were not good, or the slowest."""
    plane = context.plane(fleet_id)
    among = RequestFilter(
        fleet_id=plane.fleet.fleet_id,
        since_unix_s=since_unix_s,
        until_unix_s=context.now() if until_unix_s is None else until_unix_s,
        **filters,
    )
    query = ExplainQuery(among=among, from_unix_s=from_unix_s, to_unix_s=to_unix_s, above_s=above_s, up_to_s=up_to_s)
    return answer(Explanation, await plane.recorder.read(plane.history.explanation, query))
