"""Alerts to somebody's HTTP receiver: signed, each in its order, tried again until it is taken or given up.

The format is that of https://www.standardwebhooks.com: `webhook-id` (the same for each try, so that a receiver can
leave out what it has), `webhook-timestamp`, and `webhook-signature`: `v1,` + base64 of HMAC-SHA256 over
`id.timestamp.body`.

Decided here: when it is tried again, and when it is given up. A receiver that is slow or dead delays the next alerts to
it, and nothing else: `offer` waits for nothing, and what waits is bounded.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import httpx
from pydantic import TypeAdapter

from control.types.alerts import Alert

_log = logging.getLogger("phaseline.alerts")
TRY_LIMIT_S: Final = 5.0
FIRST_WAIT_S: Final = 1.0
LAST_WAIT_S: Final = 300.0
#: Waits double from 1 s to 5 min: the last try is about 53 minutes after the first.
MAX_TRIES: Final = 18
MAX_WAITING: Final = 256
_PREFIX: Final = "whsec_"
_alert = TypeAdapter(Alert)
Outcome = Literal["delivered", "failed", "given_up", "dropped"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("delivered", "failed", "given_up", "dropped")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One state of one alert. `message_id` is the same however often it is sent, by whichever plane."""

    alert: Alert

    @property
    def message_id(self) -> str:
        return f"{self.alert.alert_id}-{self.alert.state}"

    @property
    def body(self) -> bytes:
        return b'{"type":"alert.' + self.alert.state.encode() + b'","alert":' + _alert.dump_json(self.alert) + b"}"


def wait_s(num_tries: int) -> float | None:
    """How long to wait after so many tries that failed; None: give up."""
    return None if num_tries >= MAX_TRIES else min(LAST_WAIT_S, FIRST_WAIT_S * 2.0 ** (num_tries - 1))


def key_of(secret: str) -> bytes:
    """The key behind a secret: `whsec_` + base64, or the text itself. Raises ValueError."""
    return (
        base64.b64decode(secret.removeprefix(_PREFIX), validate=True) if secret.startswith(_PREFIX) else secret.encode()
    )


def signed_headers(message_id: str, body: bytes, key: bytes, now_unix_s: float) -> dict[str, str]:
    """What a receiver checks."""
    timestamp = str(int(now_unix_s))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


class Webhook:
    """One receiver. `on_end` is called on the event loop with why it could not be told; "" when it has been taken."""

    def __init__(
        self, url: str, key: bytes, on_end: Callable[[Delivery, str], None], *, first_wait_s: float = FIRST_WAIT_S
    ) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._url = url
        self._key = key
        self._on_end = on_end
        self._pace = first_wait_s / FIRST_WAIT_S
        self._waiting: deque[Delivery] = deque()
        self._has_new = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def offer(self, alert: Alert) -> None:
        """Tell of this state, after all that waits. The oldest gives way when there is no room."""
        if len(self._waiting) >= MAX_WAITING:
            self.outcomes["dropped"] += 1
            self._on_end(self._waiting.popleft(), f"{MAX_WAITING} deliveries wait already")
        self._waiting.append(Delivery(alert))
        self._has_new.set()
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="alert-webhook")

    async def close(self) -> None:
        """What waits is told by the next plane."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=TRY_LIMIT_S, trust_env=False, follow_redirects=False) as client:
            while True:
                while self._waiting:
                    await self._tell(client, self._waiting[0])
                self._has_new.clear()
                await self._has_new.wait()

    async def _tell(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        """Until it is taken, given up, or has given way to newer ones."""
        num_tries = 0
        while self._waiting and self._waiting[0] is delivery:
            problem = await self._try(client, delivery)
            num_tries += 1
            rest_s = wait_s(num_tries) if problem else None
            if problem:
                self.outcomes["failed"] += 1
                _log.warning("alert %s: try %d: %s", delivery.message_id, num_tries, problem)
            if rest_s is None:
                self.outcomes["given_up" if problem else "delivered"] += 1
                self._end(delivery, problem and f"given up after {num_tries} tries: {problem}")
                return
            await asyncio.sleep(rest_s * self._pace)

    def _end(self, delivery: Delivery, problem: str) -> None:
        with contextlib.suppress(ValueError):  # it has given way meanwhile
            self._waiting.remove(delivery)
            self._on_end(delivery, problem)

    async def _try(self, client: httpx.AsyncClient, delivery: Delivery) -> str:
        """One POST; why it failed, without the URL, which may hold a secret."""
        body = delivery.body
        headers = signed_headers(delivery.message_id, body, self._key, time.time())
        try:
            async with asyncio.timeout(TRY_LIMIT_S):
                answer = await client.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            return f"no answer ({type(error).__name__})"
        return "" if answer.is_success else f"it answered {answer.status_code}"
