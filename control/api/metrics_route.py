"""`GET /metrics`: all attached fleets for Prometheus, to a viewer's token; the scraper chooses the format."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from control.api.context import Context, Reader
from control.exposition.families import rendered

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(principal: Reader, context: Context, request: Request) -> Response:
    """Raises NotActive: a plane that stands by has nothing to tell."""
    now_unix_s = context.now()
    pages = [
        page
        for fleet_id in context.fleet_ids
        if (page := context.planes[fleet_id].monitor.page(now_unix_s)) is not None
    ]
    body, content_type = await asyncio.to_thread(rendered, pages, request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
