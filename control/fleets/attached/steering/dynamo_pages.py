"""Where the system pages of Dynamo's workers (DYN_SYSTEM_PORT) are: Dynamo's frontend does not say it.

Three ways, in this order: the model card that a worker puts into discovery, whose files it serves from that very port
(etcd); the address that was known of it before; the ports that an operator names, on the host where the worker takes
requests: each page says whose it is (in Kubernetes one port for all, on one host a range). Who is not found is looked
for ever more rarely, as a worker without DYN_SYSTEM_PORT has no page.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from control.errors import CommandRefused
from control.fleets.attached.dialects import DYNAMO, read_page
from control.fleets.attached.exposition import PageError
from control.fleets.attached.steering.calls import table

MAX_PORTS: Final = 256
MAX_AT_ONCE: Final = 32
RAREST_LOOK: Final = 16
FORM: Final = "PORT or PORT-PORT, several with commas between"


def ports_of(text: str) -> tuple[int, ...]:
    """`9090`, `8181-8190`, `8181,8190`. Raises CommandRefused."""
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, dash, end = part.partition("-")
        last = end if dash else first
        if not (first.isdecimal() and last.isdecimal()) or not 0 < int(first) <= int(last) < 65536:
            raise CommandRefused(f"pages={text} names no ports", field="pages", value=text, bound=FORM)
        found += range(int(first), int(last) + 1)
        if len(found) > MAX_PORTS:
            raise CommandRefused(f"pages={text} is too many", field="pages", value=len(found), bound=f"{MAX_PORTS}")
    return tuple(found)


def page_of_card(text: str) -> tuple[str, str] | None:
    """(worker, URL of its page) of one model card in discovery; None where it names no file of the worker's own."""
    try:
        card = json.loads(text)
    except ValueError:
        return None
    number = table(card).get("instance_id")
    for path in _paths(table(card, "card_json")):
        if isinstance(number, int) and "/v1/metadata/" in path:
            parts = urlsplit(path)
            return f"{number:x}", f"{parts.scheme}://{parts.netloc}/metrics"
    return None


def host_of(transport: Any) -> str:
    """Of `{"tcp": "HOST:PORT/..."}`; "" of a worker that takes its requests otherwise."""
    tcp = transport.get("tcp") if isinstance(transport, dict) else None
    return urlsplit(f"//{tcp}").hostname or "" if isinstance(tcp, str) else ""


class PageFinder:
    """`fetch` brings the text of a page, or raises PageError."""

    def __init__(self, ports: tuple[int, ...], fetch: Callable[[str], Awaitable[str]]) -> None:
        self._ports = ports
        self._fetch = fetch
        self._known: dict[str, str] = {}
        self._num_missed: dict[str, int] = {}

    def missing(self, workers: Iterable[str]) -> list[str]:
        return [each for each in workers if each not in self._known]

    async def find(self, hosts: Mapping[str, str], told: dict[str, str]) -> dict[str, str]:
        """URLs of the pages of these workers, as far as they are found. `told`: those that discovery has."""
        self._known = {name: url for name, url in (self._known | told).items() if name in hosts}
        self._num_missed = {name: self._num_missed.get(name, 0) + 1 for name in self.missing(hosts)}
        wanted = {hosts[name] for name, num in self._num_missed.items() if _is_turn(num)} - {""}
        gate = asyncio.Semaphore(MAX_AT_ONCE)
        urls = [f"http://{host}:{port}/metrics" for host in sorted(wanted) for port in self._ports][:MAX_PORTS]
        found = await asyncio.gather(*(self._whose(url, gate) for url in urls))
        for url, name in zip(urls, found, strict=True):
            if name in self._num_missed:
                self._known[name] = url
        return dict(self._known)

    async def _whose(self, url: str, gate: asyncio.Semaphore) -> str:
        async with gate:
            try:
                return read_page(await self._fetch(url), DYNAMO).worker_id
            except PageError:
                return ""


def _is_turn(num: int) -> bool:
    return num & (num - 1) == 0 or num % RAREST_LOOK == 0


def _paths(value: Any) -> Iterable[str]:
    """All `path`s of a card, wherever they are in it."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path.startswith("http"):
            yield path
        for each in value.values():
            yield from _paths(each)
