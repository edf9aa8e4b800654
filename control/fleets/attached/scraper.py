"""Looks at one engine's metrics page, again and again, and keeps what it said. A bad target costs only itself.

Decided here: how long a look may take, how much it may bring, and what its failure is called. What a page means is
`dialects`; what two of them add up to, `ledger`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from control.fleets.attached.clients import own_client
from control.fleets.attached.dialects import Dialect, page_url, read_page
from control.fleets.attached.engine_page import EnginePage
from control.fleets.attached.exposition import MAX_PAGE_BYTES, PageError
from control.fleets.attached.ledger import Ledger
from control.fleets.attached.targets import Target
from control.types.workers import Role, WorkerState
from engine.readings import MeterReading

LOOK_LIMIT_S: Final = 3.0
#: An engine that did not answer for so many looks is taken for dead.
SILENT_LOOKS: Final = 3
#: Where engines say their version, and under which key.
VERSION_AT: Final = {"vllm": ("/version", "version"), "sglang": ("/get_server_info", "version")}
MAX_VERSION_BYTES: Final = 4096


async def fetch_page(client: httpx.AsyncClient, url: str, token_file: Path | None = None) -> str:
    """The page. Raises PageError with what was wrong, within LOOK_LIMIT_S and MAX_PAGE_BYTES."""
    parts: list[bytes] = []
    size = 0
    try:
        headers = {} if token_file is None else await asyncio.to_thread(_bearer, token_file)
        headers["Accept-Encoding"] = "identity"  # whoever's client it is: a small answer cannot become a large one
        async with asyncio.timeout(LOOK_LIMIT_S), client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200:
                raise PageError(f"{url} answers {answer.status_code}")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise PageError(f"{url} answers compressed, unasked")
            if int(answer.headers.get("content-length") or 0) > MAX_PAGE_BYTES:
                raise PageError(f"{url} has more than {MAX_PAGE_BYTES} bytes", field="page")
            async for part in answer.aiter_bytes():
                size += len(part)
                if size > MAX_PAGE_BYTES:
                    raise PageError(f"{url} has more than {MAX_PAGE_BYTES} bytes", field="page")
                parts.append(part)
    except TimeoutError as error:
        raise PageError(f"{url} has not answered within {LOOK_LIMIT_S:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise PageError(f"{url} cannot be read: {error or type(error).__name__}") from error
    return b"".join(parts).decode("utf-8", "replace")


async def version_of(client: httpx.AsyncClient, url: str, kind: str) -> str:
    """As the engine says it; "" when it does not. A courtesy: its absence is no problem."""
    if kind not in VERSION_AT:
        return ""
    parts, (path, key) = urlsplit(url), VERSION_AT[kind]
    try:
        text = await fetch_page(client, f"{parts.scheme}://{parts.netloc}{path}")
        said = json.loads(text) if len(text) <= MAX_VERSION_BYTES else {}
    except (PageError, ValueError):
        return ""
    return str(said.get(key, ""))[:40] if isinstance(said, dict) else ""


def _bearer(token_file: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_file.read_text().strip()}"}


class Scraper:
    """One engine. `run` until cancelled; `reading` is what is known at any time."""

    def __init__(
        self,
        target: Target,
        ledger: Ledger,
        dialect: Dialect,
        *,
        every_s: float,
        token_file: Path | None = None,
        fill: Callable[[EnginePage], EnginePage] = lambda page: page,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.target = target
        self.problem = "not looked at yet"
        self.version = ""
        self.ledger = ledger
        self._dialect = dialect
        self._client = own_client()
        self._every_s = every_s
        self._token_file = token_file
        self._fill = fill  # with what is known of it from elsewhere
        self._now = now
        self._num_failed = 0
        self._version_epoch: int | None = None  # of the life that was asked for its version
        self._task: asyncio.Task[None] | None = None

    @property
    def page(self) -> EnginePage | None:
        return self.ledger.page

    @property
    def is_alive(self) -> bool:
        return self.page is not None and self._num_failed < SILENT_LOOKS

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"scrape {self.target.worker_id}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    def set_role(self, role: Role) -> None:
        """From the next look on."""
        self.target = replace(self.target, role=role)

    async def look(self) -> None:
        """Once. Never raises: a failure is in `problem`."""
        asked_unix_s = self._now()
        try:
            text = await fetch_page(self._client, page_url(self.target.url, self._dialect), self._token_file)
            page = await asyncio.to_thread(read_page, text, self._dialect)
            if not page.has_anything:
                raise PageError(page.why_nothing(self.target.url, self._dialect.kind))
            if self.target.page_of not in ("", page.worker_id):
                raise PageError(f"{self.target.url} is now the page of {page.worker_id or 'no worker'}")
        except PageError as error:
            self.problem = error.detail
            self._num_failed += 1
            return
        self.ledger.add(self._fill(page), self.target.role, asked_unix_s)
        self.problem, self._num_failed = self.ledger.leap, 0

    def reading(self, now_unix_s: float) -> MeterReading | None:
        state = WorkerState.READY if self.is_alive else WorkerState.FAILED
        return self.ledger.reading(now_unix_s, is_alive=self.is_alive, state=state, reason=self.problem)

    async def _ask_version(self) -> None:
        """Once in each life of the engine."""
        if self.is_alive and self._version_epoch != self.ledger.epoch:
            self._version_epoch = self.ledger.epoch
            self.version = await version_of(self._client, self.target.url, self._dialect.kind)

    async def _run(self) -> None:
        """At even distances, from an instant of its own, so that not all are asked at once."""
        await asyncio.sleep(random.random() * min(1.0, self._every_s))
        while True:
            begun_s = time.monotonic()
            await self.look()
            await self._ask_version()
            await asyncio.sleep(max(0.05, self._every_s - (time.monotonic() - begun_s)))
