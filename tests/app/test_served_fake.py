"""The fake plane as the console's bench serves it: every question of every page finds an answer there."""

from __future__ import annotations

import httpx
import pytest
from starlette.testclient import TestClient

from app.source import Hub
from bench._fake_plane import Server
from control.client import PhaselineClient
from tests.app.test_pages import PAGES, opened

URL = "http://plane"


class Noting(httpx.BaseTransport):
    """Straight into the fake plane's app; notes what it refuses."""

    def __init__(self) -> None:
        self._client = TestClient(Server(48, 8).app(), base_url=URL, raise_server_exceptions=False)
        self.refused: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._client.request(request.method, str(request.url), content=request.content)
        if answer.is_error:
            self.refused.append(f"{answer.status_code} {request.url}")
        return httpx.Response(answer.status_code, content=answer.content)


@pytest.mark.parametrize("path", PAGES)
def test_no_page_asks_what_the_served_fake_does_not_answer(path: str) -> None:
    plane = Noting()
    hub = Hub(base_url=URL, connect=lambda token: PhaselineClient(URL, token, transport=plane))
    assert not opened(hub, path).exception
    assert not plane.refused
