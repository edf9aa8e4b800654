"""A fleet in Kubernetes: its pods are the workers, and what sets a pool's size there is asked to set it otherwise.

llm-d's Deployments and DisaggregatedSets, Dynamo's graphs. Decided here: the order of one change (who else sizes it is
asked anew, the size is set only if nobody has changed it since it was read) and when we yield. That it was obeyed is
seen by the pods, not by the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from control.errors import FleetError
from control.facts import PoolFacts
from control.fleets.attached.steering.calls import Refused
from control.fleets.attached.steering.kube.address import KubePlan
from control.fleets.attached.steering.kube.api import KubeApi
from control.fleets.attached.steering.kube.objects import AUTOSCALERS, PODS, SCALED_OBJECTS, Access
from control.fleets.attached.steering.kube.pods import SeenPod, left_out, seen_pod
from control.fleets.attached.steering.kube.rivals import Autoscaler, hpa, rival_of, scaled_object
from control.fleets.attached.steering.kube.scales import NEEDS, READERS, Scale, Scales, as_told
from control.fleets.attached.steering.kube.watch import PodWatch, Watched
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.base import FleetStep, StepOutcome
from control.types.workers import WorkerState

#: Between two looks for autoscalers; before an order there is always one.
RIVALS_EVERY_S: Final = 10.0
#: An object changes with each pod that becomes ready: a size is set again as often as this.
MAX_CONFLICTS: Final = 4
#: Of an object that was changed since it was read; the second of a JSON patch whose test fails.
CONFLICTS: Final = (409, 422)
#: What an API server answers while it has trouble of its own.
FOR_NOW: Final = (429, 500, 502, 503, 504)
LIST: Final = Access("list", PODS)
WATCH: Final = Access("watch", PODS)
#: What is done where a Role does not allow it.
WITHOUT: Final = {WATCH: ": without it they are listed at each look"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rivals:
    """`unseen`: why it is not known who else sizes anything; "" when it is."""

    at_s: float
    autoscalers: tuple[Autoscaler, ...] = ()
    unseen: str = ""

    def of(self, scale: Scale) -> str:
        return scale.rival or rival_of(self.autoscalers, scale.resource, scale.name) or self.unseen


class KubernetesSteering:
    """Of one namespace. `now`: seconds of any steady clock."""

    def __init__(self, api: KubeApi, plan: KubePlan, now: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._plan = plan
        self._now = now
        self._rivals: _Rivals | None = None
        self._pods: tuple[SeenPod, ...] = ()
        self._seen_scales: dict[str, Scale] = {}  # as they were read last
        watched = Watched(resource=PODS, namespace=plan.namespace, selector=plan.selector, keep=self._seen)
        self._watch = PodWatch(api, watched, now)

    async def look(self) -> Roster:
        pods = self._pods = await self._pods_now()
        members = tuple(each.member for each in pods if each.member is not None)
        scales, problem = await self._scales_now()
        rivals = await self._rivals_now(not_older_s=RIVALS_EVERY_S) if scales.by_role else None
        pools = {
            role: _pool(scale, rivals.of(scale) if rivals else "", members) for role, scale in scales.by_role.items()
        }
        notes = (*scales.notes, *([problem] if problem else []))
        return Roster(members=members, pools=pools, problem="; ".join(left_out(pods)), notes=notes)

    async def apply(self, step: FleetStep) -> StepOutcome:
        size = step.size
        if step.verb != "scale" or size is None:
            return _no("pods keep the role that they were started with: only pools are resized")
        scale = (await self._scales()).by_role.get(step.role)
        if scale is None:
            return _no(f"nothing that sets the size of {step.role} was found")
        before = scale.size
        for _ in range(MAX_CONFLICTS):
            rival = (await self._rivals_now(not_older_s=0.0)).of(scale)
            if rival:
                return _no(f"{scale.words} is not ours to resize: {rival}")
            if scale.size not in (before, size):
                return _no(
                    f"{scale.set_by or 'somebody else'} has set {scale.words} to {scale.size} meanwhile: we stop"
                )
            refused = None if scale.size == size else await self._refusal_of(scale, size)
            if refused is None:
                return StepOutcome(accepted=True)
            read, scale = scale, (await self._scales()).by_role.get(step.role) or scale
            if refused.code not in CONFLICTS or read.version == scale.version:
                return _no(refused.detail)
        return StepOutcome(accepted=False, detail=f"{scale.words} was changed {MAX_CONFLICTS} times meanwhile (409)")

    async def needs(self) -> tuple[str, ...]:
        """What a Role would have to allow and does not, as lines for whoever attaches this."""
        plan = self._plan
        asked = (LIST, WATCH, *NEEDS[plan.scale])
        if plan.scale != "none":
            asked += (Access("list", AUTOSCALERS), Access("list", SCALED_OBJECTS))
        answers = await asyncio.gather(*(self._api.allows(each, plan.namespace) for each in asked))
        return tuple(
            f"not permitted in namespace {plan.namespace}: {each.rule}{WITHOUT.get(each, '')}"
            for each, is_allowed in zip(asked, answers, strict=True)
            if not is_allowed
        )

    async def changed(self) -> None:
        await self._watch.changed()

    async def close(self) -> None:
        await self._watch.close()
        await self._api.close()

    def _seen(self, item: dict[str, Any]) -> SeenPod:
        return seen_pod(item, self._plan.rules)

    async def _pods_now(self) -> tuple[SeenPod, ...]:
        """As they are followed, or else as they are listed."""
        known = self._watch.known()
        if known is not None:
            return known
        plan = self._plan
        pods, version = await self._api.listing(PODS, plan.namespace, self._seen, plan.selector)
        self._watch.begin(pods, version)
        return tuple(pods)

    async def _scales(self) -> Scales:
        found = await READERS[self._plan.scale](self._api, self._plan, self._pods)
        told = {role: as_told(each, self._seen_scales.get(each.words)) for role, each in found.by_role.items()}
        self._seen_scales = {each.words: each for each in told.values()}
        return replace(found, by_role=told)

    async def _scales_now(self) -> tuple[Scales, str]:
        """What may not be read, or is not there, keeps nobody from being looked at: it is told."""
        try:
            return await self._scales(), ""
        except Refused as error:
            return Scales(by_role={}), f"nothing can be resized: {error.detail}"

    async def _refusal_of(self, scale: Scale, size: int) -> Refused | None:
        """None: it is set. Raises FleetError where asking again helps."""
        try:
            await self._api.patch(
                scale.resource,
                self._plan.namespace,
                scale.name,
                scale.patch(size),
                sub=scale.sub,
                content_type=scale.content_type,
            )
        except Refused as error:
            if error.code in FOR_NOW:
                raise FleetError(error.detail) from error
            return error
        return None

    async def _rivals_now(self, *, not_older_s: float) -> _Rivals:
        """Raises FleetError when it cannot be known; a look then goes on with what was known."""
        known, now_s = self._rivals, self._now()
        if known is not None and now_s - known.at_s < not_older_s:
            return known
        namespace = self._plan.namespace
        try:
            found = await self._api.listed(AUTOSCALERS, namespace, hpa)
        except Refused as error:
            unseen = f"whether an HPA sets its size cannot be seen: {error.detail}"
            self._rivals = _Rivals(at_s=now_s, unseen=unseen)
            return self._rivals
        except FleetError:
            if known is None or not_older_s == 0.0:
                raise
            return known
        self._rivals = _Rivals(at_s=now_s, autoscalers=(*found, *await self._scaled_objects()))
        return self._rivals

    async def _scaled_objects(self) -> list[Autoscaler]:
        """None where there is no KEDA, or we may not ask: what it does, it does by an HPA."""
        try:
            found = await self._api.listed(SCALED_OBJECTS, self._plan.namespace, scaled_object)
        except Refused:
            return []
        return [each for each in found if each is not None]


def _pool(scale: Scale, rival: str, members: Iterable[Member]) -> PoolFacts:
    own = [each for each in members if each.role is scale.role]
    num_ready = sum(1 for each in own if each.state is WorkerState.READY)
    return PoolFacts(
        target=scale.size, num_ready=num_ready, num_other=len(own) - num_ready, rival=rival, set_by=scale.set_by
    )


def _no(detail: str) -> StepOutcome:
    return StepOutcome(accepted=False, detail=detail, retry_helps=False)
