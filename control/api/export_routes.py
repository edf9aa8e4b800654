"""Series as a file: CSV or Parquet, for notebooks and spreadsheets."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from control.api.context import Context, OptionalTime, Reader, Time
from control.errors import CommandRefused
from control.export import MAX_METRICS, MAX_ROWS, MEDIA_TYPES, Format, encoded, num_rows, table_of
from control.history.store import SeriesQuery
from control.types.series import SeriesResult

router = APIRouter(prefix="/api/v1", tags=["history"])


@router.get(
    "/series/export",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}, "description": "The file"}},
)
async def export(
    principal: Reader,
    context: Context,
    metric: Annotated[list[str], Query()],
    since_unix_s: Time,
    until_unix_s: OptionalTime = None,
    step_s: Annotated[int | None, Query(ge=1, le=86_400)] = None,
    by: str = "fleet",
    format: Format = "csv",
    fleet_id: str | None = None,
) -> Response:
    """One or more metrics over [since, until), a row per metric, group and bucket. Unknown is empty, not 0."""
    if len(metric) > MAX_METRICS:
        raise CommandRefused(
            f"{len(metric)} metrics in one file", field="metric", value=len(metric), bound=f"at most {MAX_METRICS}"
        )
    plane = context.plane(fleet_id)
    until = context.now() if until_unix_s is None else until_unix_s
    results: list[SeriesResult] = []
    for each in metric:
        query = SeriesQuery(
            fleet_id=plane.fleet.fleet_id,
            metric=each,
            since_unix_s=since_unix_s,
            until_unix_s=until,
            step_s=step_s,
            by=by,
        )
        results.append(await plane.recorder.read(plane.history.series, query))
        refuse_too_many(results)
    body = await asyncio.to_thread(lambda: encoded(table_of(results), format))
    name = f"phaseline-{plane.fleet.fleet_id}-{metric[0] if len(metric) == 1 else 'series'}-{since_unix_s:.0f}.{format}"
    return Response(body, 200, {"Content-Disposition": f'attachment; filename="{name}"'}, MEDIA_TYPES[format])


def refuse_too_many(results: list[SeriesResult], most: int = MAX_ROWS) -> None:
    """Asked after each metric: at most one is read in vain. Raises CommandRefused, naming step and bound."""
    rows = num_rows(results)
    if rows > most:
        last = results[-1]
        raise CommandRefused(
            f"{rows:,} rows with {last.metric} at step_s {last.step_s}",
            field="step_s",
            value=last.step_s,
            bound=f"at most {most:,} rows in one file: a larger step, fewer metrics or a shorter range",
        )
