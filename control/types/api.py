"""The control API's own words: who asks, what answers, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking. role: viewer looks, operator acts, service is one of our own processes."""

    name: str
    role: Literal["viewer", "operator", "service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a one-time login code is exchanged for: a bearer token with an end."""

    token: str
    principal: Principal
    expires_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """Version and effective configuration (secrets masked)."""

    version: str
    started_unix_s: float
    profile: str
    fleets: tuple[str, ...]
    settings: dict[str, Any]
    principal: Principal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457 problem body of the control API."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    field: str | None = None
    value: Any = None
    bound: str | None = None
    retry_helps: bool = False
