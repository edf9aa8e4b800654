"""One Kubernetes API server, asked with the official client (37.0 tried). The only module that imports `kubernetes`.

Decided here: how long and how much is waited for, and what each refusal means in words. The client is synchronous, so
each call is on one of our own few threads, never on those that others use: a server that hangs costs its caller 10 s
and a tick nothing. Credentials are in the kubeconfig, or the pod's service account, alone; they are read at the first
call and again when they are refused, and no error holds a word of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from control.errors import FleetError
from control.fleets.attached.steering.calls import Refused, rows, table
from control.fleets.attached.steering.kube.objects import FIELD_MANAGER, REVIEWS, Access, Resource
from control.fleets.attached.steering.retries import MAX_CALLS, PASSING, is_worth_another, pause_s

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

T = TypeVar("T")
CALL_LIMIT_S: Final = 10.0
CONNECT_LIMIT_S: Final = 4.0
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
PAGE_ITEMS: Final = 100
MAX_ITEMS: Final = 2000
MAX_PAGES: Final = 2 * MAX_ITEMS // PAGE_ITEMS
MAX_AT_ONCE: Final = 4
LONGEST_QUIET_S: Final = 60.0
_LOADING: Final = threading.Lock()
#: A server that asks for quiet (429) is not asked again.
AGAIN: Final = PASSING - {429}
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where its address and credentials are. `kubeconfig` None: this process runs in a pod of it."""

    kubeconfig: Path | None
    context: str = ""  # of the kubeconfig; "": its current one

    @property
    def words(self) -> str:
        return "this pod's service account" if self.kubeconfig is None else str(self.kubeconfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, as it goes to a thread."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any = None
    content_type: str = "application/json"


class KubeApi:
    """Of one cluster."""

    def __init__(self, cluster: Cluster, limit_s: float = CALL_LIMIT_S) -> None:
        self.cluster = cluster
        self._limit_s = limit_s
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="kubernetes")
        self._client: ApiClient | None = None
        self._quiet_until_s = 0.0  # monotonic; it has asked for that

    async def read(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """One object. Raises Refused, FleetError."""
        return await self._call(
            Access("get", resource), Ask(method="GET", path=resource.path(namespace, name), query={})
        )

    async def listed(
        self, resource: Resource, namespace: str, keep: Callable[[dict[str, Any]], T], selector: str = ""
    ) -> list[T]:
        """`keep` of each object: what it leaves out is forgotten page by page. Raises Refused, FleetError."""
        return (await self.listing(resource, namespace, keep, selector))[0]

    async def listing(
        self, resource: Resource, namespace: str, keep: Callable[[dict[str, Any]], T], selector: str = ""
    ) -> tuple[list[T], str]:
        """The same, and the version of the whole list. Raises Refused, FleetError."""
        try:
            async with asyncio.timeout(3 * self._limit_s):
                try:
                    return await self._pages(resource, namespace, keep, selector)
                except Refused as error:
                    if error.code != 410:  # the list has changed so much that it cannot be continued
                        raise
                    return await self._pages(resource, namespace, keep, selector)
        except TimeoutError as error:
            raise FleetError(f"Kubernetes has not listed {resource.plural} within {3 * self._limit_s:g} s") from error

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Any, *, sub: str = "", content_type: str = MERGE
    ) -> dict[str, Any]:
        """The object as it is then. Raises Refused, FleetError."""
        path, query = resource.path(namespace, name, sub), {"fieldManager": FIELD_MANAGER}
        ask = Ask(method="PATCH", path=path, query=query, body=body, content_type=content_type)
        return await self._call(Access("patch", resource, sub), ask)

    async def allows(self, access: Access, namespace: str) -> bool:
        """Whether a call of this kind would be let through. Raises Refused, FleetError."""
        ask = Ask(method="POST", path=REVIEWS.path(""), query={}, body=access.review(namespace))
        said = await self._call(Access("create", REVIEWS), ask)
        return table(said, "status").get("allowed") is True

    async def close(self) -> None:
        """Whoever hangs in a thread is left to its time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _pages(
        self, resource: Resource, namespace: str, keep: Callable[[dict[str, Any]], T], selector: str
    ) -> tuple[list[T], str]:
        query = {"limit": str(PAGE_ITEMS)} | ({"labelSelector": selector} if selector else {})
        found: list[T] = []
        for _ in range(MAX_PAGES):
            ask = Ask(method="GET", path=resource.path(namespace), query=query)
            page = await self._call(Access("list", resource), ask)
            found += map(keep, rows(page, "items"))
            if len(found) > MAX_ITEMS:
                break
            about = table(page, "metadata")
            query |= {"continue": str(about.get("continue") or "")}
            if not query["continue"]:
                return found, str(about.get("resourceVersion") or "")
        raise FleetError(f"Kubernetes lists more than {MAX_ITEMS} {resource.plural} of {selector or namespace}")

    def check_quiet(self) -> None:
        """Raises FleetError while it wants not to be asked."""
        quiet_s = self._quiet_until_s - time.monotonic()
        if quiet_s > 0:
            raise FleetError(f"Kubernetes has asked us to wait {quiet_s:.0f} s more (429)")

    async def _call(self, access: Access, ask: Ask) -> dict[str, Any]:
        self.check_quiet()
        loop = asyncio.get_running_loop()
        if self._client is None:  # the client's many modules are not part of any answer
            await loop.run_in_executor(self._threads, _load)
        try:
            async with asyncio.timeout(self._limit_s):
                for num_calls in range(1, MAX_CALLS):
                    try:
                        return await loop.run_in_executor(self._threads, self._talk, access, ask)
                    except Refused as error:
                        if error.code not in AGAIN or not is_worth_another(ask.method, error.code, num_calls):
                            raise
                        await asyncio.sleep(pause_s(num_calls, random.random()))
                return await loop.run_in_executor(self._threads, self._talk, access, ask)
        except TimeoutError as error:
            raise FleetError(f"Kubernetes has not answered {ask.path} within {self._limit_s:g} s") from error

    def lines(self, access: Access, ask: Ask, hold: Callable[[Any], None], limit_s: float) -> Iterator[bytes]:
        """In a thread: an answer that goes on, line by line, for `limit_s` at most. Raises Refused, FleetError.

        `hold` gets the open answer, so that another thread can cut it off.
        """
        until_s, rest = time.monotonic() + limit_s, b""
        with self._told():
            answer = self._answered(ask, limit_s)
            try:
                hold(answer)
                if answer.status >= 300:
                    self._parsed(access, ask, answer.status, _body(answer, until_s))
                while part := answer.read1(64 * 1024):
                    *whole, rest = (rest + part).split(b"\n")
                    yield from whole
                    if len(rest) > MAX_ANSWER_BYTES:
                        raise FleetError(f"Kubernetes answers with a line of more than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > until_s:
                        raise FleetError("Kubernetes has not ended its answer in time")
            finally:
                answer.close()

    def _talk(self, access: Access, ask: Ask) -> dict[str, Any]:
        """In a thread. Raises Refused, FleetError."""
        until_s = time.monotonic() + self._limit_s
        with self._told():
            answer = self._answered(ask, self._limit_s)
            try:
                text = _body(answer, until_s)
            finally:
                answer.close()
        return self._parsed(access, ask, answer.status, text)

    def _answered(self, ask: Ask, limit_s: float) -> Any:
        """An open answer. Credentials that are refused are read once more: they may have been renewed meanwhile."""
        had_some = self._client is not None
        answer = self._sent(ask, limit_s)
        if answer.status == 401:
            self._client = None
            if had_some:
                answer.close()
                answer = self._sent(ask, limit_s)
        if answer.status == 429:
            after_s = _seconds(answer.headers.get("Retry-After"))
            self._quiet_until_s = time.monotonic() + min(after_s, LONGEST_QUIET_S)
        return answer

    def _parsed(self, access: Access, ask: Ask, status: int, text: str) -> dict[str, Any]:
        try:
            said = json.loads(text) if text.strip() else {}
        except ValueError as error:
            if status < 300:
                raise FleetError(f"Kubernetes does not answer {ask.path} in JSON: {text[:80]!r}") from error
            said = {}
        if status >= 300:
            raise Refused(self._refusal(access, ask, status, table({"said": said}, "said")), status)
        return table({"said": said}, "said")

    def _sent(self, ask: Ask, limit_s: float) -> Any:
        """The client's answer, its body not read."""
        client = self._client = self._client or self._opened()
        told = client.param_serialize(
            ask.method,
            ask.path,
            query_params=list(ask.query.items()),
            header_params={"Accept": "application/json", "Content-Type": ask.content_type},
            body=ask.body,
            auth_settings=["BearerToken"],
        )
        return client.call_api(*told, _request_timeout=(CONNECT_LIMIT_S, limit_s)).response

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever breaks on the way is a FleetError."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (HTTPError, ApiException, OSError) as error:
            raise FleetError(
                f"the API server of {self.cluster.words} cannot be reached: {type(error).__name__}"
            ) from error

    def _opened(self) -> ApiClient:
        """With the credentials of now. Raises FleetError: a kubeconfig that is broken is not quoted."""
        import yaml
        from kubernetes.client import ApiClient, Configuration
        from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

        told, where = Configuration(), self.cluster
        told.retries = False
        try:
            if where.kubeconfig is None:
                load_incluster_config(told)
            else:
                load_kube_config(str(where.kubeconfig), where.context or None, told, persist_config=False)
        except ConfigException as error:
            words = "its credential plugin failed" if "exec" in str(error) else str(error)[:200]
            raise FleetError(f"{where.words}: {words}") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise FleetError(f"{where.words} is no kubeconfig that can be read ({type(error).__name__})") from None
        return ApiClient(told)

    def _refusal(self, access: Access, ask: Ask, status: int, said: Mapping[str, Any]) -> str:
        if status == 401:
            return f"Kubernetes refuses the credentials of {self.cluster.words} (401): they may have expired"
        words = " ".join(str(said.get("message", "")).split())[:200] or "without a word"
        if status == 403 and "admission webhook" not in words:
            return f"Kubernetes does not let us {access.verb} {access.what} (403): its Role needs {access.rule}"
        return f"{ask.method} {ask.path} answers {status}: {words}"


def _load() -> None:
    """By one thread at a time: the client loads its modules as they are named, and two threads lock each other out."""
    with _LOADING:
        from kubernetes.client import ApiClient, ApiException, Configuration  # noqa: F401
        from kubernetes.config import load_kube_config  # noqa: F401


def _body(answer: Any, until_s: float) -> str:
    """As much as is allowed, for as long as is allowed, however slowly it comes. Raises FleetError."""
    parts, size = [], 0
    while part := answer.read1(64 * 1024):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise FleetError(f"Kubernetes answers with more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > until_s:
            raise FleetError("Kubernetes has not ended its answer in time")
    return b"".join(parts).decode("utf-8", "replace")


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdigit() else 1.0
