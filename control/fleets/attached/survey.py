"""One look at every target before anything is attached: what is there, what is missing, and what turns it on.

Changes nothing anywhere. What cannot be used is a line of the report, never a failure of the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import httpx

from control.errors import FleetError
from control.fleets.attached.attachment import Plan
from control.fleets.attached.dialects import DIALECTS, page_url, read_page
from control.fleets.attached.engine_page import EnginePage, filled
from control.fleets.attached.exposition import PageError
from control.fleets.attached.gpu_join import gpus_of
from control.fleets.attached.gpu_survey import gpu_notes, survey_gpus
from control.fleets.attached.missing import bare_findings
from control.fleets.attached.scraper import fetch_page, version_of
from control.fleets.attached.steering.controllers import Address, open_steering
from control.fleets.attached.steering.roster import Member, Permitted, Roster, Steering, targets_of
from control.fleets.attached.targets import RosterTargets, Target
from control.fleets.attached.types import EngineSurvey, Survey

#: What finds the engines, where it is not that they were added.
_FOUND_BY: Final = {
    "prometheus": "the query that should find them",
    "kubernetes": "the namespace, and the selector or labels that should find them",
}
#: Looks at the same time.
MAX_AT_ONCE: Final = 32


async def survey(plan: Plan) -> Survey:
    """Look once at every target, and at what measures their GPUs."""
    attachment = plan.attachment
    gate = asyncio.Semaphore(MAX_AT_ONCE)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False) as client:
        found, said_too = await _engines(plan, client, gate)
        exporters, gpus = await survey_gpus(plan.exporters, client, gate)
    said = plan.gpus_said()
    own = {each.worker_id: gpus_of(each.worker_id, said.get(each.worker_id, ()), gpus) for each in found}
    engines = tuple(replace(each, gpus=tuple(gpu.name for gpu in own[each.worker_id])) for each in found)
    return Survey(
        name=attachment.name,
        kind=attachment.kind,
        engines=engines,
        notes=(*notes_of(plan, engines), *gpu_notes(plan.exporters, engines), *said_too),
        exporters=exporters,
    )


async def _engines(
    plan: Plan, client: httpx.AsyncClient, gate: asyncio.Semaphore
) -> tuple[list[EngineSurvey], tuple[str, ...]]:
    """As their pages say, or as the controller does of those that have none; and what else that has to say."""
    roster = Roster() if plan.controller is None else await _roster(plan.controller)
    if plan.controller is not None:
        assert isinstance(plan.source, RosterTargets)
        plan.source.listed = targets_of(roster.members)
    told = {each.worker_id: each.told for each in roster.members}
    looks = [_look(plan, each, told.get(each.worker_id), client, gate) for each in plan.source.targets()]
    paged = (replace(each, version=each.version or roster.version) for each in await asyncio.gather(*looks))
    bare = (_as_listed(each, roster.version, plan.attachment.kind) for each in roster.members if not each.metrics_url)
    return [*paged, *bare], _said(roster)


def notes_of(plan: Plan, engines: Sequence[EngineSurvey]) -> tuple[str, ...]:
    """What an operator should know before saying yes."""
    if not engines:
        kind = plan.controller.kind if plan.controller else ""
        return (f"{kind or 'the registry'} lists no engine: look at {_FOUND_BY.get(kind, 'what it was told of them')}",)
    if all(each.problem for each in engines):
        return ("no engine answers: are the addresses right, and can they be reached from the host that asks?",)
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


async def _roster(address: Address) -> Roster:
    """As the controller lists them, with what it does not let us do. Raises FleetError."""
    steering = open_steering(address)
    needs = await _needs(steering)
    try:
        roster = await steering.look()
        return replace(roster, notes=(*roster.notes, *needs))
    except FleetError as error:
        raise FleetError("; ".join([error.detail, *needs])) from error
    finally:
        await steering.close()


async def _needs(steering: Steering) -> tuple[str, ...]:
    """What is not permitted, as far as that is told."""
    try:
        return await steering.needs() if isinstance(steering, Permitted) else ()
    except FleetError as error:
        return (f"what is permitted is not known: {error.detail}",)


def _said(roster: Roster) -> tuple[str, ...]:
    """What cannot be shown or done, and what else sizes the pools."""
    rivals = (f"{role} is not ours to resize: {pool.rival}" for role, pool in roster.pools.items() if pool.rival)
    return (*([roster.problem] if roster.problem else []), *roster.notes, *rivals)


def _as_listed(member: Member, version: str, kind: str) -> EngineSurvey:
    """What is known of a worker that has no page of its own: what its controller says, and what will stay unknown."""
    return EngineSurvey(
        worker_id=member.worker_id,
        url=member.metrics_url,
        role=member.role.value,
        version=version,
        problem=member.reason,
        model=member.told.model_id,
        num_found=sum(1 for each in member.told.findings if each.state == "found"),
        missing=tuple(each for each in member.told.findings if each.state != "found") or bare_findings(kind),
    )


async def _look(
    plan: Plan, target: Target, told: EnginePage | None, client: httpx.AsyncClient, gate: asyncio.Semaphore
) -> EngineSurvey:
    """`told`: what the fleet's controller knows of it."""
    async with gate:
        kind = plan.attachment.kind
        try:
            text = await fetch_page(client, page_url(target.url, DIALECTS[kind]), plan.token_file)
            page = await asyncio.to_thread(read_page, text, DIALECTS[kind])
            page = page if told is None else filled(page, told)
        except PageError as error:
            return EngineSurvey(
                worker_id=target.worker_id, url=target.url, role=target.role.value, problem=error.detail
            )
        return EngineSurvey(
            worker_id=target.worker_id,
            url=target.url,
            role=target.role.value,
            version=await version_of(client, target.url, DIALECTS[kind].kind),
            model=page.model_id,
            num_found=sum(1 for each in page.findings if each.state == "found"),
            missing=tuple(each for each in page.findings if each.state != "found"),
            problem="" if page.has_anything else page.why_nothing(target.url, kind),
        )
