"""The door: tokens and one-time links become a cookie that refers to a visit; nothing else gets in."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from app import login
from app.source import Hub
from app.visits import MAX_VISITS, VISIT_S, Visits, cookie_name
from control.types.api import Principal
from tests.app.builders import NOW, plane_and_hub

WHO = Principal(name="ann", role="viewer")
COOKIE = "phaseline_8501"


def console(hub: Hub) -> TestClient:
    async def door(request: Request) -> Response:
        return await login.login(hub, request)

    async def page(_: Request) -> Response:
        return PlainTextResponse("a page")

    routes = [Route("/login", door, methods=["GET", "POST"]), Route("/", page), Route("/explore", page)]
    links = Middleware(login.LoginLinks, hub=hub, paths=frozenset({"/", "/explore", "/login"}))
    app = Starlette(routes=routes, middleware=[links])
    return TestClient(app, base_url="http://127.0.0.1:8501", follow_redirects=False)


def test_a_good_token_gets_a_cookie_that_scripts_cannot_read_and_the_page_it_wanted() -> None:
    _, hub, _ = plane_and_hub()
    answer = console(hub).post("/login", data={"token": "viewer-token", "next": "/explore?by=role"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/explore?by=role")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "viewer-token" not in cookie
    visit = hub.visits.find(answer.cookies[COOKIE], hub.now())
    assert visit is not None
    assert (visit.token, visit.principal.name) == ("viewer-token", "viewer")


@pytest.mark.parametrize(
    ("token", "status", "says"),
    [("nonsense", 403, "does not know this token"), ("", 400, "Type or paste"), ("\u2603", 403, "does not know")],
)
def test_a_bad_token_is_refused_in_one_line(token: str, status: int, says: str) -> None:
    _, hub, _ = plane_and_hub()
    answer = console(hub).post("/login", data={"token": token})
    assert answer.status_code == status
    assert says in answer.text
    assert "set-cookie" not in answer.headers


def test_a_silent_plane_is_named_as_the_reason() -> None:
    _, hub, _ = plane_and_hub("silent")
    answer = console(hub).post("/login", data={"token": "viewer-token"})
    assert answer.status_code == 503
    assert "does not answer" in answer.text


def test_a_login_link_opens_its_page_and_the_code_leaves_the_address() -> None:
    _, hub, _ = plane_and_hub()
    answer = console(hub).get("/explore?code=good-code&by=role")
    assert (answer.status_code, answer.headers["location"]) == (303, "/explore?by=role")
    assert COOKIE in answer.cookies
    assert console(hub).get("/login?code=good-code").headers["location"] == "/"


def test_a_used_link_is_refused_unless_its_browser_is_in_already() -> None:
    _, hub, _ = plane_and_hub()
    client = console(hub)
    refused = client.get("/?code=old-code")
    assert refused.status_code == 403
    assert "That login link was not accepted" in refused.text
    client.get("/?code=good-code")
    assert client.get("/?code=old-code").status_code == 303


def test_a_page_without_a_code_is_left_alone() -> None:
    _, hub, _ = plane_and_hub()
    assert console(hub).get("/explore?by=role").text == "a page"


def test_leaving_ends_the_visit_and_takes_the_cookie_away() -> None:
    _, hub, _ = plane_and_hub()
    client = console(hub)
    reference = client.get("/?code=good-code").cookies[COOKIE]
    answer = client.get("/login?left=1")
    assert hub.visits.find(reference, hub.now()) is None
    assert "Max-Age=0" in answer.headers["set-cookie"]


def test_a_form_from_another_site_is_refused() -> None:
    _, hub, _ = plane_and_hub()
    headers = {"Origin": "http://evil.example"}
    answer = console(hub).post("/login", data={"token": "viewer-token"}, headers=headers)
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


@pytest.mark.parametrize("elsewhere", ["https://evil.example/", "//evil.example", "/\\evil.example", "evil", "/login"])
def test_nobody_is_sent_elsewhere_after_a_login(elsewhere: str) -> None:
    _, hub, _ = plane_and_hub()
    answer = console(hub).post("/login", data={"token": "viewer-token", "next": elsewhere})
    assert answer.headers["location"] == "/"


def test_what_the_address_says_is_never_markup() -> None:
    _, hub, _ = plane_and_hub()
    assert "<script>" not in console(hub).get("/login", params={"next": '/"><script>alert(1)</script>'}).text


# --- visits ---------------------------------------------------------------------


def test_a_visit_ends_when_its_session_ends_and_at_the_latest_after_half_a_day() -> None:
    visits = Visits()
    short, long = visits.open("a", WHO, NOW, NOW + 60), visits.open("b", WHO, NOW, float("inf"))
    assert visits.find(short, NOW + 59) is not None
    assert visits.find(short, NOW + 60) is None
    assert visits.find(long, NOW + VISIT_S - 1) is not None
    assert visits.find(long, NOW + VISIT_S) is None


def test_visits_are_bounded_and_the_oldest_gives_way() -> None:
    visits = Visits()
    opened = [visits.open("token", WHO, NOW) for _ in range(MAX_VISITS + 1)]
    assert visits.find(opened[0], NOW) is None
    assert visits.find(opened[-1], NOW) is not None


def test_two_consoles_on_one_host_have_cookies_of_their_own() -> None:
    assert cookie_name("127.0.0.1:8501") == "phaseline_8501"
    assert cookie_name("[::1]:8601") == "phaseline_8601"
    assert cookie_name("console.example") == "phaseline"


def test_a_visit_that_only_looks_goes_on_while_it_does_and_no_longer_than_its_session() -> None:
    visits = Visits()
    viewer = visits.open("a", WHO, NOW, float("inf"))
    bounded = visits.open("b", WHO, NOW, NOW + VISIT_S + 60)
    operator = visits.open("c", Principal(name="ann", role="operator"), NOW, float("inf"))
    later = NOW + VISIT_S - 10
    assert [visits.prolong(each, later) for each in (viewer, bounded, operator)] == [VISIT_S, 70, None]
    assert visits.find(viewer, later + VISIT_S - 1) is not None
    assert visits.find(bounded, NOW + VISIT_S + 60) is None
    assert visits.find(operator, NOW + VISIT_S) is None
    assert visits.prolong(viewer, later + VISIT_S) is None
