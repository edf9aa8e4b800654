"""One look at every target before anything is attached: what is there, what is missing, and what turns it on.

Changes nothing anywhere. What cannot be used is a line of the report, never a failure of the whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import httpx

from control.fleets.attached.attachment import Plan
from control.fleets.attached.dialects import DIALECTS, page_url, read_page
from control.fleets.attached.exposition import PageError
from control.fleets.attached.scraper import fetch_page
from control.fleets.attached.targets import Target
from control.fleets.attached.types import EngineSurvey, Survey

#: Looks at the same time.
MAX_AT_ONCE: Final = 32
MAX_VERSION_BYTES: Final = 4096
#: Where engines say their version, and under which key.
VERSION_AT: Final = {"vllm": ("/version", "version"), "sglang": ("/get_server_info", "version")}


async def survey(plan: Plan) -> Survey:
    """Look once at every target."""
    gate = asyncio.Semaphore(MAX_AT_ONCE)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False) as client:
        found = await asyncio.gather(*(_look(plan, target, client, gate) for target in plan.source.targets()))
    attachment = plan.attachment
    return Survey(name=attachment.name, kind=attachment.kind, engines=tuple(found), notes=notes_of(plan, found))


def notes_of(plan: Plan, engines: Sequence[EngineSurvey]) -> tuple[str, ...]:
    """What an operator should know before saying yes."""
    notes = []
    if plan.work is None:
        notes.append(
            "no model shape: FLOPs and bytes are the engine's own estimate, and unknown on mixed workers; "
            "name one with --model"
        )
    if plan.device.peak_flops is None:
        notes.append("no device: utilization has no peak to be divided by; name one with --device or --peak-tflops")
    models = sorted({each.model for each in engines if each.model})
    if len(models) > 1:
        notes.append(f"the engines serve different models: {', '.join(models)}")
    roles = {each.role for each in engines if not each.problem}
    for missing in sorted({"prefill", "decode"} - roles) if "mixed" not in roles else ():
        notes.append(f"no {missing} engine answers: that phase has no line of its own")
    return tuple(notes)


async def _look(plan: Plan, target: Target, client: httpx.AsyncClient, gate: asyncio.Semaphore) -> EngineSurvey:
    async with gate:
        kind = plan.attachment.kind
        try:
            text = await fetch_page(client, page_url(target.url, DIALECTS[kind]), plan.token_file)
            page = await asyncio.to_thread(read_page, text, DIALECTS[kind])
        except PageError as error:
            return EngineSurvey(
                worker_id=target.worker_id, url=target.url, role=target.role.value, problem=error.detail
            )
        return EngineSurvey(
            worker_id=target.worker_id,
            url=target.url,
            role=target.role.value,
            version=await _version(client, target.url, kind),
            model=page.model_id,
            num_found=sum(1 for each in page.findings if each.state == "found"),
            missing=tuple(each for each in page.findings if each.state != "found"),
            problem="" if page.has_anything else f"{target.url} has no series of {kind}",
        )


async def _version(client: httpx.AsyncClient, url: str, kind: str) -> str:
    """As the engine says it; "" when it does not. A courtesy: its absence is no problem."""
    parts = urlsplit(url)
    if kind not in VERSION_AT:
        return ""
    path, key = VERSION_AT[kind]
    try:
        text = await fetch_page(client, f"{parts.scheme}://{parts.netloc}{path}")
        said = json.loads(text) if len(text) <= MAX_VERSION_BYTES else {}
    except (PageError, ValueError):
        return ""
    return str(said.get(key, ""))[:40] if isinstance(said, dict) else ""
