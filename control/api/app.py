"""The control API as one ASGI app. Put together here; each noun's routes are in their own module."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response

from control.api import (
    alert_routes,
    attached_routes,
    command_routes,
    event_routes,
    export_routes,
    fleet_routes,
    gateway_routes,
    history_routes,
    metrics_route,
    problems,
    request_routes,
    roofline_routes,
    session_routes,
)
from control.api.context import ApiContext, Context
from control.api.docs_page import docs_page
from control.api.limits import BodyLimits
from control.api.problems import problem_of, problem_response
from control.errors import FleetError

DESCRIPTION = (
    "Phaseline's control API. Everything below /api/v1 but login needs `Authorization: Bearer <token>`. "
    "Errors are application/problem+json and name field, value and bound."
)


def create_app(context: ApiContext) -> FastAPI:
    """The app; FastAPI's own pages are off, because they load their assets from a CDN."""
    app = FastAPI(
        title="Phaseline control API",
        version=context.version,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    app.add_middleware(BodyLimits)
    problems.install(app)
    for module in (
        alert_routes,
        session_routes,
        fleet_routes,
        attached_routes,
        command_routes,
        history_routes,
        export_routes,
        request_routes,
        event_routes,
        gateway_routes,
        metrics_route,
        roofline_routes,
    ):
        app.include_router(module.router)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    app.get("/healthz", tags=["health"])(healthz)
    app.get("/readyz", tags=["health"], response_model=dict[str, str])(readyz)
    return app


def healthz(context: Context) -> dict[str, object]:
    """The process answers: "ok", or "waiting" with what it waits for."""
    status = {"status": "ok"} if context.planes else {"status": "waiting", "problem": context.waiting()}
    return {**status, "version": context.version, "started_unix_s": context.started_unix_s}


def readyz(context: Context) -> Response:
    """503 until every fleet has been observed once. Raises NotActive."""
    assert context.fleet_ids
    waiting = sorted(fleet_id for fleet_id, plane in context.planes.items() if not plane.observed)
    if waiting:
        return problem_response(problem_of(FleetError(f"not observed yet: {', '.join(waiting)}")))
    return Response(b'{"status":"ready"}', media_type="application/json")
