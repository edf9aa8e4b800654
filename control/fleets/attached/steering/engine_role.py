"""An engine behind a router, asked itself: what it still holds, and to change its own role (SGLang 0.5.23).

Decided here: when an engine is empty, and whether one that did not change its role can go on in the former.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

from control.errors import FleetError
from control.fleets.attached.exposition import parse_page
from control.fleets.attached.steering.calls import Caller, Refused
from control.fleets.attached.steering.router_entry import Entry, word_of
from control.types.workers import Role

#: What an SGLang engine holds, in all stages; vLLM's names for engines of its kind.
HELD: Final = (
    *("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    *("sglang:num_prefill_inflight_queue_reqs", "sglang:num_prefill_bootstrap_queue_reqs"),
    *("sglang:num_decode_prealloc_queue_reqs", "sglang:num_decode_transfer_queue_reqs"),
    *("vllm:num_requests_running", "vllm:num_requests_waiting"),
)


class Broken(FleetError):
    """The engine broke off in the middle of its change, and serves neither role until it is restarted."""


class Addressed(Protocol):
    """Whatever lists it."""

    @property
    def url(self) -> str: ...

    @property
    def worker_id(self) -> str: ...


async def is_empty(entry: Addressed) -> bool:
    """By its own page. Raises FleetError when that does not say."""
    async with _engine(entry) as engine:
        page = parse_page(await engine.text("GET", "/metrics"), HELD)
    held = [sample.value for name in HELD for sample in page.named(name)]
    if not held:
        raise FleetError(f"{entry.worker_id} does not say what it holds: its page has none of {', '.join(HELD[:2])}")
    return not any(held)


async def change_role(entry: Entry, role: Role, graph_gb: float | None = None) -> None:
    """First only asked whether it would. Raises FleetError: it goes on as before; Broken: it does not.

    `graph_gb`: memory for the graphs of decode, which SGLang wants to be told before the first change to it.
    """
    body: dict[str, Any] = {"new_role": word_of(role)}
    if role is Role.DECODE and graph_gb is not None:
        body["decode_cuda_graph_memory_gb"] = graph_gb
    async with _engine(entry) as engine:
        said = await _asked(engine, {**body, "prepare_only": True})
        if not said.get("success"):
            raise FleetError(f"{entry.worker_id} does not change its role: {_why(said)}")
        try:
            said = await _asked(engine, {**body, "prepare_only": False})
        except FleetError as error:
            raise Broken(f"{entry.worker_id} was told to change its role and did not answer: {error.detail}") from error
    if not said.get("success"):
        kind = FleetError if said.get("safe_to_restore") is True else Broken
        raise kind(f"{entry.worker_id} did not change its role: {_why(said)}")


@contextlib.asynccontextmanager
async def _engine(entry: Addressed) -> AsyncIterator[Caller]:
    engine = Caller(entry.url)
    try:
        yield engine
    finally:
        await engine.close()


async def _asked(engine: Caller, body: dict[str, Any]) -> dict[str, Any]:
    """Its answer; a refusal (400) is one too."""
    try:
        return await engine.json("POST", "/pd_role_switch", body)
    except Refused as error:
        try:
            said = json.loads(error.said)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or "success" not in said:
            raise
        return said


def _why(said: dict[str, Any]) -> str:
    return str(said.get("message"))[:200]
