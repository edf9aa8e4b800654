"""Who asks and what runs: login, whoami, version and effective configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from control.api.context import Context, Reader, answer
from control.settings import Settings
from control.types.api import Principal, ServerInfo, Session

router = APIRouter(prefix="/api/v1", tags=["session"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    code: Annotated[str, Field(min_length=1, max_length=200)]


@router.post("/login", response_model=Session)
def login(body: Login, context: Context) -> Response:
    """Exchange a one-time code for a session token."""
    token, principal, expires = context.auth.login(body.code, context.now())
    return answer(Session, Session(token=token, principal=principal, expires_unix_s=expires))


@router.post("/login/codes", response_model=dict[str, str])
def create_login_code(principal: Reader, context: Context) -> Response:
    """A one-time code (ten minutes) for the caller's own name."""
    return answer(dict[str, str], {"code": context.auth.create_login_code(principal.name, context.now())})


@router.get("/whoami", response_model=Principal)
def whoami(principal: Reader) -> Response:
    """The principal that the token stands for."""
    return answer(Principal, principal)


@router.get("/info", response_model=ServerInfo)
def info(principal: Reader, context: Context) -> Response:
    """Version and effective configuration, secrets masked."""
    return answer(
        ServerInfo,
        ServerInfo(
            version=context.version,
            started_unix_s=context.started_unix_s,
            profile=context.settings.profile,
            fleets=tuple(context.fleet_ids),
            settings=masked(context.settings),
            principal=principal,
        ),
    )


def masked(settings: Settings) -> dict[str, object]:
    """Every setting as JSON, with what stands in for those that are not set; a password inside a URL becomes ***."""
    values = settings.model_dump(mode="json")
    values |= {
        "shm_dir": str(settings.effective_shm_dir),
        "routing": asdict(settings.initial_policy),
        "slo": asdict(settings.effective_slo),
        "alert_webhook_url": _host_of(settings.alert_webhook_url),
    }
    for name, value in values.items():
        if isinstance(value, str) and "://" in value and "@" in value:
            scheme, _, rest = value.partition("://")
            login, _, place = rest.rpartition("@")
            user, colon, _ = login.partition(":")
            values[name] = f"{scheme}://{user}{':***' if colon else ''}@{place}"
    return values


def _host_of(url: str) -> str:
    """Whom it is sent to; what follows may be a secret."""
    scheme, found, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}/***" if found else ""
