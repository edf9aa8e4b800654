"""The console's process: `streamlit run app/main.py` (or `python app/main.py`) serves the pages of `app/console.py`.

Decided here: what is warmed up before the first visitor and what the process answers beside the pages (`/healthz`,
`/login`, `/live`). Pages, login and readings are elsewhere.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:  # `streamlit run` puts only this file's own folder on the path
    sys.path.insert(0, ROOT)

from app import fleets, login, stream, theme_once  # noqa: E402
from app.console import PAGES  # noqa: E402  # loads every page before anybody waits for it
from app.place import shared_fleets  # noqa: E402

FLEETS = shared_fleets()
HUB = FLEETS.own  # knows who is logged in
PATHS = frozenset({"/", login.PATH, *(f"/{page.path}" for page in PAGES)})


@asynccontextmanager
async def warm(_: Any) -> AsyncIterator[dict[str, Any]]:
    """Load every page once and keep what is loaded out of the garbage collector's way: a refresh costs a tenth."""
    theme_once.install()
    HUB.start()
    FLEETS.own_streams.start()
    gc.collect()
    gc.freeze()
    yield {}
    FLEETS.stop()


async def healthz(_: Request) -> JSONResponse:
    """This process answers. The plane's own state is on the plane's /healthz."""
    return JSONResponse({"status": "ok"})


async def live(request: Request) -> Response:
    if HUB.visits.find(login.reference(request), HUB.now()) is None:
        return await FLEETS.own_streams.answer(request)  # which refuses, and asks no plane for a stranger
    asked = request.query_params.get(fleets.PARAM, "")
    return await (await run_in_threadpool(FLEETS.streams, asked)).answer(request)


async def door(request: Request) -> Response:
    return await login.login(HUB, request)


def explain(error: Exception) -> bool:
    """What a person sees when a page of ours is at fault: one line; the traceback is in the console's log."""
    logging.getLogger("phaseline.console").error("a page could not be drawn", exc_info=error)
    st.error(
        f"This page could not be drawn ({type(error).__name__}). The console's log says more; reload to try again."
    )
    return True


app = st.App(
    str(Path(__file__).resolve().parent / "console.py"),
    lifespan=warm,
    routes=[
        Route("/healthz", healthz),
        Route(stream.PATH, live),
        Route(login.PATH, door, methods=["GET", "POST"]),
    ],
    middleware=[Middleware(login.LoginLinks, hub=HUB, paths=PATHS)],
    on_script_error=explain,
)
