"""Alerts to a real HTTP receiver that fails first: signed, in order, each under one id, and no tick waits for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control.alerts.webhook import MAX_TRIES, MAX_WAITING, Delivery, Webhook, key_of, signed_headers, wait_s
from control.types.alerts import Alert
from tests.control.builders import NOW
from tests.control.gateway.gateway_builders import serving, until
from tests.control.rig import Rig

ROOT = Path(__file__).resolve().parents[2]
SECRET = "whsec_" + base64.b64encode(b"a key of this test").decode()
ALERT = Alert(
    alert_id="a1", fleet_id="test", name="worker_dead", subject="w1", severity="ticket", state="firing",
    text="w1 is dead", since_unix_s=NOW, seen_unix_s=NOW, fired_unix_s=NOW,
)  # fmt: skip
ENDED = replace(ALERT, state="resolved", resolved_unix_s=NOW + 60)


#: The check that the documentation gives to receivers, as it stands there.
DOCUMENTED = (ROOT / "docs" / "monitoring.md").read_text().partition("```python\n")[2].partition("```")[0]
_names: dict[str, Any] = {}
exec(DOCUMENTED, _names)
is_genuine: Callable[[Any, bytes, bytes], bool] = _names["is_genuine"]


@dataclass
class Receiver:
    """Answers with these statuses, then with 204; one that hangs answers when `goes_on` is set."""

    statuses: list[int] = field(default_factory=list)
    hangs: bool = False
    seen: list[tuple[str, str]] = field(default_factory=list)
    forged: int = 0
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: Request) -> Response:
        body = await request.body()
        self.forged += not is_genuine(request.headers, body, key_of(SECRET))
        self.seen.append((request.headers["webhook-id"], json.loads(body)["type"]))
        if self.hangs:
            await self.goes_on.wait()
        return Response(status_code=self.statuses.pop(0) if self.statuses else 204)


@contextlib.asynccontextmanager
async def received(receiver: Receiver) -> AsyncIterator[str]:
    async with serving(Starlette(routes=[Route("/hook", receiver.take, methods=["POST"])])) as url:
        try:
            yield f"{url}/hook"
        finally:
            receiver.goes_on.set()


async def test_a_receiver_that_fails_first_gets_each_state_in_order_under_one_id() -> None:
    receiver, ends = Receiver(statuses=[500, 429, 302]), list[tuple[str, str]]()
    async with received(receiver) as url:
        webhook = Webhook(
            url, key_of(SECRET), lambda each, why: ends.append((each.message_id, why)), first_wait_s=0.005
        )
        webhook.offer(ALERT)
        webhook.offer(ENDED)
        await until(lambda: len(ends) == 2)
        await webhook.close()
    assert receiver.seen == [("a1-firing", "alert.firing")] * 4 + [("a1-resolved", "alert.resolved")]
    assert ends == [("a1-firing", ""), ("a1-resolved", "")]
    assert (receiver.forged, webhook.outcomes) == (0, {"failed": 3, "delivered": 2})


def test_a_changed_body_or_another_key_is_no_genuine_message() -> None:
    body, key = Delivery(ALERT).body, key_of(SECRET)
    headers = signed_headers("a1-firing", body, key, time.time())
    assert is_genuine(headers, body, key)
    assert not is_genuine(headers, body + b" ", key)
    assert not is_genuine({**headers, "webhook-timestamp": "1"}, body, key)
    assert not is_genuine(headers, body, b"another key")
    assert not is_genuine(signed_headers("a1-firing", body, key, time.time() - 301), body, key)


async def test_a_dead_receiver_is_given_up_and_what_waits_is_bounded() -> None:
    ends: list[tuple[str, str]] = []
    webhook = Webhook(
        "http://127.0.0.1:9/", key_of(SECRET), lambda each, why: ends.append((each.message_id, why)), first_wait_s=0.0
    )
    webhook.offer(ALERT)
    await until(lambda: len(ends) == 1)
    assert ends == [("a1-firing", f"given up after {MAX_TRIES} tries: no answer (ConnectError)")]
    assert [wait_s(1), wait_s(3), wait_s(12), wait_s(MAX_TRIES)] == [1.0, 4.0, 300.0, None]
    for number in range(MAX_WAITING + 10):
        webhook.offer(replace(ALERT, alert_id=str(number)))
    assert (webhook.num_waiting, webhook.outcomes["dropped"]) == (MAX_WAITING, 10)
    await webhook.close()


async def test_a_receiver_that_hangs_holds_up_no_tick_and_the_next_plane_tells_what_is_left(tmp_path: Path) -> None:
    receiver = Receiver(hangs=True)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    async with received(receiver) as url:
        settings = {"alert_webhook_url": url, "alert_webhook_secret": f"file:{tmp_path}/secret"}
        rig = await Rig(tmp_path).start(**settings)
        rig.fleet.workers["w1"].alive = False
        for _ in range(3):
            rig.now += 10.0
            await rig.ticks()
        await until(lambda: len(receiver.seen) == 1)
        await rig.ticks(5)  # no tick knows of the receiver
        (alert,) = rig.plane.monitor.alerts
        assert (alert.state, alert.told) == ("firing", ())
        await rig.plane.close()
        receiver.hangs = False
        receiver.goes_on.set()
        again = await Rig(tmp_path, fleet=rig.fleet, history=rig.history, now=rig.now).start(**settings)
        await until(lambda: again.plane.monitor.alerts[0].told == ("firing",))
        await again.ticks()
        assert receiver.seen == [(f"{alert.alert_id}-firing", "alert.firing")] * 2
        await again.plane.close()
        third = await Rig(tmp_path, fleet=rig.fleet, history=rig.history, now=again.now).start(**settings)
        assert (third.plane.monitor.alerts[0].told, len(receiver.seen)) == (("firing",), 2)
        await third.plane.close()
    assert SECRET not in str(rig.plane.settings)
