"""Objects that are followed as they change, in place of a list at every look.

Decided here: when a list has to be read again (a version that is too old, a connection that broke, more objects than
are looked at), and how long a server that lets nobody watch is left alone. Whoever looks lists then, as without this.
A watch is a thread that reads lines; what they mean is kept on the event loop alone, and one watch lasts WATCH_S, so
that a connection that died unseen is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from control.errors import FleetError
from control.fleets.attached.steering.calls import Refused, table
from control.fleets.attached.steering.kube.api import MAX_ITEMS, Ask, KubeApi
from control.fleets.attached.steering.kube.objects import Access, Resource, name_of
from control.fleets.attached.steering.kube.pods import SeenPod

WATCH_S: Final = 30
#: After its end was due.
GRACE_S: Final = 10.0
FIRST_PAUSE_S: Final = 2.0
LONGEST_PAUSE_S: Final = 64.0
#: A watch that does not last so long is none.
SHORTEST_S: Final = 1.0
#: Lines that were read and not yet kept.
MAX_WAITING: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Which objects, and what is kept of each."""

    resource: Resource
    namespace: str
    selector: str
    keep: Callable[[dict[str, Any]], SeenPod]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line. `pod` None: only the version has gone on."""

    version: str
    name: str = ""
    pod: SeenPod | None = None
    is_gone: bool = False


class PodWatch:
    """`begin` with each list that was read; `known` while it is up to date without one."""

    def __init__(self, api: KubeApi, watched: Watched, now: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._watched = watched
        self._now = now
        self._pods: dict[str, SeenPod] | None = None
        self._changed = asyncio.Event()
        self._is_wanted = False
        self._pause_s = FIRST_PAUSE_S
        self._not_before_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def known(self) -> tuple[SeenPod, ...] | None:
        """By name; None: they have to be listed."""
        pods = self._pods
        return None if pods is None else tuple(pods[name] for name in sorted(pods))

    async def changed(self) -> None:
        """Until a look would see something new. From the first call on it is watched."""
        self._is_wanted = True
        await self._changed.wait()
        self._changed.clear()

    def begin(self, pods: Iterable[SeenPod], version: str) -> None:
        """From a list on; nothing happens while nobody waits for a change, or after a failure a short while ago."""
        is_busy = self._task is not None and not self._task.done()
        if self._is_wanted and version and not is_busy and self._now() >= self._not_before_s:
            self._pods = {each.name: each for each in pods}
            self._task = asyncio.create_task(self._follow(version), name="watch of pods")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, version: str) -> None:
        """Until it cannot go on; the next look lists, and begins anew."""
        try:
            while True:
                begun_s = self._now()
                async with aclosing(changes(self._api, self._watched, version)) as news:
                    async for each in news:
                        version = each.version or version
                        self._keep(each)
                if self._now() - begun_s < SHORTEST_S:
                    raise FleetError("Kubernetes ends a watch as soon as it has begun")
                self._pause_s = FIRST_PAUSE_S
        except FleetError:
            self._not_before_s = self._now() + self._pause_s
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        finally:
            self._pods = None
            self._changed.set()

    def _keep(self, change: Change) -> None:
        assert self._pods is not None
        before = self._pods.get(change.name)
        if change.is_gone:
            self._pods.pop(change.name, None)
        elif change.pod is not None:
            self._pods[change.name] = change.pod
            if len(self._pods) > MAX_ITEMS:
                raise FleetError(f"more than {MAX_ITEMS} pods are watched")
        if self._pods.get(change.name) != before:
            self._changed.set()


async def changes(api: KubeApi, watched: Watched, version: str) -> AsyncGenerator[Change]:
    """What happens after `version`, until the server ends it after WATCH_S. Raises FleetError, Refused.

    Left early, it hangs up.
    """
    api.check_quiet()
    resource = watched.resource
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_S), "allowWatchBookmarks": "true"}
    query |= {"labelSelector": watched.selector} if watched.selector else {}
    ask = Ask(method="GET", path=resource.path(watched.namespace), query=query)
    loop, line = asyncio.get_running_loop(), _Line()
    news: asyncio.Queue[Change | FleetError | None] = asyncio.Queue()
    room = threading.Semaphore(MAX_WAITING)

    def tell(what: Change | FleetError | None) -> None:
        """From the thread; it waits while the loop has enough to do."""
        room.acquire(timeout=WATCH_S)
        loop.call_soon_threadsafe(news.put_nowait, what)

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            try:
                for each in api.lines(Access("watch", resource), ask, line.hold, WATCH_S + GRACE_S):
                    tell(change_of(each, watched.keep))
                tell(None)
            except FleetError as error:
                tell(error)

    threading.Thread(target=read, name="kubernetes-watch", daemon=True).start()
    try:
        while (what := await news.get()) is not None:
            if isinstance(what, FleetError):
                raise what
            room.release()
            yield what
    finally:
        line.cut()


def change_of(line: bytes, keep: Callable[[dict[str, Any]], SeenPod]) -> Change:
    """Raises Refused with the code that an ERROR has, FleetError for what is no change."""
    try:
        event = json.loads(line)
    except ValueError as error:
        raise FleetError(f"a watch of Kubernetes says {line[:80]!r}") from error
    kind, item = (event.get("type"), table(event, "object")) if isinstance(event, dict) else (None, {})
    version = str(table(item, "metadata").get("resourceVersion") or "")
    if kind == "BOOKMARK":
        return Change(version=version)
    if kind in ("ADDED", "MODIFIED", "DELETED"):
        return Change(version=version, name=name_of(item), pod=keep(item), is_gone=kind == "DELETED")
    code = item.get("code")
    words = str(item.get("message", ""))[:200]
    raise Refused(f"Kubernetes ends a watch: {words}", code if isinstance(code, int) else 0)


class _Line:
    """An open answer, and that nobody wants it any more."""

    def __init__(self) -> None:
        self._answer: Any = None
        self._is_cut = False

    def hold(self, answer: Any) -> None:
        """In the thread that reads it. Raises FleetError where it was cut before it came."""
        self._answer = answer
        if self._is_cut:
            raise FleetError("it is not wanted any more")

    def cut(self) -> None:
        """Whoever reads it sees its end."""
        self._is_cut = True
        if self._answer is not None:
            with contextlib.suppress(ValueError, RuntimeError, OSError):  # it has ended already
                self._answer.shutdown()
