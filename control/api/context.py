"""What the routes share: the planes by fleet, who may ask, and the settings. Found in `app.state.context`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query
from pydantic import TypeAdapter
from starlette.requests import HTTPConnection
from starlette.responses import Response

from control.attached_planes import AttachedPlanes
from control.auth import Auth, unauthenticated
from control.errors import NotActive, NotAllowed, NotFound
from control.plane import Plane
from control.settings import Settings
from control.types.api import Principal

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """One API over all attached fleets."""

    planes: Mapping[str, Plane]  # none: this process is not active, and `waiting` says why
    auth: Auth
    settings: Settings
    version: str
    started_unix_s: float
    now: Callable[[], float] = time.time
    waiting: Callable[[], str] = lambda: ""
    attached: Callable[[], AttachedPlanes | None] = lambda: None

    @property
    def fleet_ids(self) -> list[str]:
        """Of the attached fleets. Raises NotActive."""
        if not self.planes:
            raise NotActive(f"no plane is active here: {self.waiting()}")
        return sorted(self.planes)

    def plane(self, fleet_id: str | None) -> Plane:
        """The plane of one fleet; None and "-" mean our own, or the only one. Raises NotFound, NotActive."""
        known = ", ".join(self.fleet_ids)
        if fleet_id in (None, "-"):
            own = next(iter(self.planes)) if len(self.planes) == 1 else self.settings.fleet_id
            if own not in self.planes:
                raise NotActive("this plane is taking its own fleet over")
            return self.planes[own]
        if fleet_id is None or fleet_id not in self.planes:
            raise NotFound(f"no fleet is named {fleet_id}", field="fleet_id", value=fleet_id, bound=known)
        return self.planes[fleet_id]


def context_of(connection: HTTPConnection) -> ApiContext:
    context: ApiContext = connection.app.state.context
    return context


def principal_of(connection: HTTPConnection) -> Principal:
    """Who asks, by bearer token. Raises NotAllowed (401)."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise unauthenticated("a bearer token is needed: Authorization: Bearer <token>")
    context = context_of(connection)
    return context.auth.principal(token.strip(), context.now())


def reader(connection: HTTPConnection) -> Principal:
    """A viewer or an operator. Raises NotAllowed."""
    return _with_role(principal_of(connection), "viewer", "operator")


def operator(connection: HTTPConnection) -> Principal:
    return _with_role(principal_of(connection), "operator")


def service(connection: HTTPConnection) -> Principal:
    return _with_role(principal_of(connection), "service")


def _with_role(principal: Principal, *roles: str) -> Principal:
    if principal.role not in roles:
        raise NotAllowed(
            f"{principal.name} is a {principal.role}; this needs {' or '.join(roles)}",
            field="role",
            value=principal.role,
            bound=" or ".join(roles),
        )
    return principal


def _here(look: Callable[[HTTPConnection], T]) -> Callable[[HTTPConnection], Awaitable[T]]:
    """A dependency that waits for nothing, on the event loop: FastAPI would run it in a thread, one for each request
    under way, and each thread has a heap of its own."""

    async def dependency(connection: HTTPConnection) -> T:
        return look(connection)

    return dependency


Context = Annotated[ApiContext, Depends(_here(context_of))]
Reader = Annotated[Principal, Depends(_here(reader))]
Operator = Annotated[Principal, Depends(_here(operator))]

Time = Annotated[float, Query(ge=0, le=1e11, allow_inf_nan=False)]
OptionalTime = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)]

_adapters: dict[Any, TypeAdapter[Any]] = {}


def answer(kind: Any, value: Any, status: int = 200) -> Response:
    """`value` as JSON, written by pydantic's serializer in one go."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return Response(_adapters[kind].dump_json(value), status, media_type="application/json")
