"""The console's door: a login page, one-time links, and the cookie that lets a reload stay logged in.

Decided here: how a browser becomes a visit. The cookie is HttpOnly and SameSite=Strict and holds a reference only
(`app.visits`); what the visitor may do is the plane's to say, at every action.
"""

from __future__ import annotations

from contextlib import closing
from html import escape
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import theme
from app.source import Hub
from app.visits import cookie_name
from control.errors import ControlError, NotAllowed
from control.types.api import Session

PATH = "/login"
MAX_FORM_BYTES = 4096
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # "no-referrer" would send the form with "Origin: null"
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; font-src 'self'; img-src data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
}


class LoginLinks:
    """ASGI middleware: a page asked for with `?code=` becomes a visit and the same page without the code."""

    def __init__(self, app: ASGIApp, *, hub: Hub, paths: frozenset[str]) -> None:
        self.app, self.hub, self.paths = app, hub, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in self.paths:
            request = Request(scope)
            if code := request.query_params.get("code"):
                await (await by_code(self.hub, request, code))(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def by_code(hub: Hub, request: Request, code: str) -> Response:
    """Exchange a one-time code. A link followed twice is no harm to who is already in."""
    rest = urlencode([(name, value) for name, value in parse_qsl(request.url.query) if name != "code"])
    place = "/" if request.url.path == PATH else request.url.path
    wanted = local_path(place + (f"?{rest}" if rest else ""))
    try:
        opened = await run_in_threadpool(_exchange, hub, code)
    except ControlError as error:
        if hub.visits.find(reference(request), hub.now()) is not None:
            return RedirectResponse(wanted, 303, HEADERS)
        return login_page(hub, wanted, f"That login link was not accepted: {error}", 403)
    return admitted(hub, request, opened, wanted)


async def login(hub: Hub, request: Request) -> Response:
    """GET: the page. POST: a token, checked by the plane."""
    if request.method == "GET":
        if request.query_params.get("left"):
            hub.visits.close(reference(request))
            return forgotten(request, login_page(hub, "/", "You have logged out.", kind="note"))
        problem = "Your session has ended. Log in again." if request.query_params.get("ended") else ""
        return login_page(hub, local_path(request.query_params.get("next", "/")), problem)
    if not same_origin(request):
        return login_page(hub, "/", "This form was sent from another site; use this one.", 403)
    fields = parse_qs((await bounded_body(request)).decode("utf-8", "replace"))
    given, wanted = fields.get("token", [""])[0].strip(), local_path(fields.get("next", ["/"])[0])
    if not given:
        return login_page(hub, wanted, "Type or paste a token first.", 400)
    try:
        opened = await run_in_threadpool(_prove, hub, given)
    except NotAllowed:
        return login_page(hub, wanted, "The plane does not know this token.", 403)
    except (ControlError, ValueError) as error:
        return login_page(hub, wanted, str(error), 503)
    return admitted(hub, request, opened, wanted)


def _exchange(hub: Hub, code: str) -> Session:
    with closing(hub.connect("")) as plane:
        return plane.login(code)


def _prove(hub: Hub, token: str) -> Session:
    """A token that a person pasted, as a session of our own length."""
    if not token.isascii() or not token.isprintable():
        raise NotAllowed("a token is printable ASCII")
    with closing(hub.connect(token)) as plane:
        return Session(token=token, principal=plane.whoami(), expires_unix_s=float("inf"))


def admitted(hub: Hub, request: Request, opened: Session, wanted: str) -> Response:
    """Open a visit, hand out its reference, go to the page."""
    now = hub.now()
    opened_as = hub.visits.open(opened.token, opened.principal, now, opened.expires_unix_s)
    hub.admit(opened.token)
    response = RedirectResponse(wanted, 303, HEADERS)
    visit = hub.visits.find(opened_as, now)
    keep(request, response, opened_as, visit.ends_unix_s - now if visit is not None else 0.0)
    return response


def keep(request: Request, response: Response, visit: str, left_s: float) -> None:
    """Give the browser its reference for so long. No script can read it, no other site's request carries it."""
    secure = request.url.scheme == "https"
    name = cookie_name(request.headers.get("host", ""))
    response.set_cookie(name, visit, max_age=int(left_s), httponly=True, samesite="strict", secure=secure)


def forgotten(request: Request, response: Response) -> Response:
    response.delete_cookie(cookie_name(request.headers.get("host", "")), httponly=True, samesite="strict")
    return response


def reference(request: Request) -> str:
    return request.cookies.get(cookie_name(request.headers.get("host", "")), "")


def same_origin(request: Request) -> bool:
    """A form sent by another site's page would log its visitor in as somebody else."""
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


async def bounded_body(request: Request) -> bytes:
    """The form, cut off where no token could still be."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return b""
    return body


def local_path(wanted: str) -> str:
    """A place on this console; anything else is its first page."""
    plain = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted and wanted.isprintable()
    return wanted if plain and not wanted.startswith(PATH) else "/"


def login_page(hub: Hub, wanted: str, problem: str = "", status: int = 200, kind: str = "alert") -> HTMLResponse:
    said = f'<p role="{"alert" if kind == "alert" else "status"}" class="{kind}">{escape(problem)}</p>'
    return HTMLResponse(
        PAGE.replace("{{next}}", escape(wanted))
        .replace("{{plane}}", escape(hub.base_url))
        .replace("{{said}}", said if problem else ""),
        status,
        HEADERS,
    )


PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Phaseline: log in</title><style>{theme.LOGIN_STYLE}</style></head>
<body><main>
<h1><span aria-hidden="true">{theme.LOGO}</span>Phaseline console</h1>
<form method="post" action="{PATH}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="next" value="{{{{next}}}}">
<button type="submit">Log in</button>
</form>
{{{{said}}}}
<p class="quiet">An operator's or a viewer's token. It stays on the console's server; this browser gets a cookie that
only refers to it. <code>phaseline login</code> prints a one-time link; the token file of <code>phaseline up</code>
works here too. The plane is at <code>{{{{plane}}}}</code>.</p>
</main></body></html>
"""
