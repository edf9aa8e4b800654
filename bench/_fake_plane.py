"""A plane that costs nothing, as a process: the console's questions over HTTP, answered by `tests.app.fake_plane`.

`python -m bench._fake_plane PORT [WORKERS] [PREFILL]`. It ticks at each whole second and says so on its event stream,
so a tick's time is the time that the console shows. The answers of one tick are made once, whoever asks.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from control.types.requests import RequestFilters
from tests.app.fake_client import FakeClient
from tests.app.fake_plane import FakePlane

API = "/api/v1"
Ask = Callable[[FakeClient, Request], Any]


def series(client: FakeClient, request: Request) -> Any:
    given = request.query_params
    step = given.get("step_s")
    return client.series(given["metric"], **times(request), step_s=int(step) if step else None, by=given["by"])


def many_series(client: FakeClient, request: Request) -> Any:
    given = request.query_params
    return client.many_series(given.getlist("metric"), **times(request), step_s=int(given["step_s"]), by=given["by"])


def fleet_events(client: FakeClient, request: Request) -> Any:
    given = request.query_params
    kinds: Any = given.getlist("kind")
    return client.fleet_events(
        **times(request), kinds=kinds, worker_id=given.get("worker_id"), limit=int(given["limit"])
    )


def requests(client: FakeClient, request: Request) -> Any:
    given = request.query_params
    return client.requests(int(given["limit"]), order=given["order"], **times(request), **filters(request))


def times(request: Request) -> dict[str, Any]:
    """Every question's bounds: what is named in seconds, but for the width of a bucket."""
    given = request.query_params.items()
    return {name: float(value) for name, value in given if name.endswith("_s") and name != "step_s"}


def filters(request: Request) -> dict[str, Any]:
    """Which requests: flags and names."""
    given = request.query_params.items()
    flags = {"true": True, "false": False}
    return {name: flags.get(value, value) for name, value in given if name in RequestFilters.__annotations__}


GET: dict[str, Ask] = {
    "/whoami": lambda client, _: client.whoami(),
    "/fleets": lambda client, _: client.fleets(),
    "/attached": lambda client, _: client.attached(),
    "/attached/choices": lambda client, _: client.attach_choices(),
    "/metrics": lambda client, _: client.metrics(),
    "/commands": lambda client, _: client.commands(),
    "/commands/{command_id:int}": lambda client, request: client.command(request.path_params["command_id"]),
    "/requests": requests,
    "/requests/{request_id}": lambda client, request: client.request(request.path_params["request_id"]),
    "/latency-heatmap": lambda client, request: client.heatmap(**times(request), **filters(request)),
    "/latency-differences": lambda client, request: client.explanation(**times(request), **filters(request)),
    "/roles": lambda client, request: client.roles(**times(request)),
    "/roofline": lambda client, request: client.roofline(**times(request)),
    "/alerts": lambda client, request: client.alerts(**times(request), limit=int(request.query_params["limit"])),
    "/fleets/{fleet}/snapshot": lambda client, _: client.snapshot(),
    "/series": series,
    "/series/many": many_series,
}


class Server:
    """One FakePlane; `token` decides who asks, as at the real one."""

    def __init__(self, num_workers: int, num_prefill: int) -> None:
        self.plane = FakePlane(lambda: float(math.floor(time.time())), num_workers=num_workers, prefill=num_prefill)
        for worker_id, ago_s in (("w1", 480.0), ("w5", 200.0)):
            self.plane.die(worker_id, ago_s)
        self._answers: dict[tuple[float, str], bytes] = {}

    def app(self) -> Starlette:
        routes = [Route(API + path, self._get(ask)) for path, ask in GET.items()]
        login = Route(f"{API}/login", self._login, methods=["POST"])
        return Starlette(routes=[*routes, login, Route(f"{API}/events", self._events), Route("/readyz", self._ready)])

    def _get(self, ask: Ask) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            key = (self.plane.now(), str(request.url))
            if key not in self._answers:
                self._answers = {known: body for known, body in self._answers.items() if known[0] == key[0]}
                self._answers[key] = encoded(ask(FakeClient(self.plane, "operator-token"), request))
            return Response(self._answers[key], media_type="application/json")

        return endpoint

    async def _login(self, _: Request) -> Response:
        return Response(encoded(FakeClient(self.plane, "").login("good-code")), media_type="application/json")

    async def _ready(self, _: Request) -> Response:
        return Response("ok")

    async def _events(self, request: Request) -> Response:
        if "since_unix_s" in request.query_params:
            return await self._get(fleet_events)(request)  # type: ignore[no-any-return]
        return StreamingResponse(ticks(), media_type="text/event-stream")


async def ticks() -> AsyncIterator[str]:
    """A word at each whole second."""
    while True:
        await asyncio.sleep(1.0 - time.time() % 1.0)
        yield 'data: {"event": "tick"}\n\n'


def encoded(value: Any) -> bytes:
    return TypeAdapter(type(value)).dump_json(value)


def main() -> None:
    port, num_workers, num_prefill = [*(int(each) for each in sys.argv[1:]), 48, 8][:3]
    server = Server(num_workers, num_prefill)
    uvicorn.run(server.app(), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
