"""What sets the size of each pool: Deployments, the roles of a DisaggregatedSet, the components of a Dynamo graph.

Each reader looks at the objects and says, by role, which one is patched and how. What cannot be resized is left out and
told, with what would help. What was read for it is named in `objects`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from control.fleets.attached.steering.calls import Refused, rows, table
from control.fleets.attached.steering.kube.address import GRAPH_WORDS, KubePlan
from control.fleets.attached.steering.kube.api import JSON_PATCH, MERGE, KubeApi
from control.fleets.attached.steering.kube.objects import (
    ADAPTERS,
    DEPLOYMENTS,
    GRAPHS,
    SCALERS,
    SETS,
    Access,
    Resource,
    whole_number,
)
from control.fleets.attached.steering.kube.pods import SeenPod
from control.fleets.attached.steering.kube.rivals import owner_of, planner_of, set_by
from control.types.workers import Role

MAX_DEPLOYMENTS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What one pool's size is set by. `version`: of the object that was read, so that nothing unseen is overwritten."""

    role: Role
    resource: Resource
    name: str
    size: int
    version: str = ""
    set_by: str = ""  # who has set it last; "" for us, or unknown
    set_at: str = ""  # when that was noted
    rival: str = ""  # who sets it by itself, as far as the object says
    index: int | None = None  # of the component, where the graph itself is patched
    component: str = ""

    @property
    def sub(self) -> str:
        return "" if self.index is not None else "scale"

    @property
    def content_type(self) -> str:
        return MERGE if self.index is None else JSON_PATCH

    def patch(self, size: int) -> Any:
        """What sets it to `size`, unless somebody has changed the object since."""
        if self.index is None:
            return {"metadata": {"resourceVersion": self.version}, "spec": {"replicas": size}}
        at = f"/spec/components/{self.index}"
        return [
            {"op": "test", "path": f"{at}/name", "value": self.component},
            {"op": "test", "path": "/metadata/resourceVersion", "value": self.version},
            {"op": "add", "path": f"{at}/replicas", "value": size},
        ]

    @property
    def words(self) -> str:
        return f"{self.resource.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """By role. `notes`: what cannot be resized, and why."""

    by_role: Mapping[Role, Scale]
    notes: tuple[str, ...] = ()


Reader = Callable[[KubeApi, KubePlan, Iterable[SeenPod]], Awaitable[Scales]]


async def _deployments(api: KubeApi, plan: KubePlan, pods: Iterable[SeenPod]) -> Scales:
    """Those that are named, or else those whose pods we see. The role is that of their pods' template."""
    names = plan.names or tuple(sorted({each.deployment for each in pods if each.deployment}))[:MAX_DEPLOYMENTS]
    found: dict[Role, list[Scale]] = {}
    notes = [] if names else ["no pod belongs to a Deployment: nothing can be resized"]
    for name in names:
        item = await _there(api, plan, DEPLOYMENTS, name)
        if item is None:
            notes.append(f"Deployment {name} is not there: its pods are not resized")
            continue
        role = plan.rules.role(table(item, "spec", "template", "metadata", "labels"))
        if role is None:
            notes.append(f"the pods of Deployment {name} have no role by {' or '.join(plan.rules.labels)}")
        else:
            found.setdefault(role, []).append(_scale_of(item, role, DEPLOYMENTS, name))
    for role, several in found.items():
        if len(several) > 1:
            who = ", ".join(each.name for each in several)
            notes.append(
                f"{role} is the work of {len(several)} Deployments ({who}): name one with scale=deployments/NAME"
            )
    return Scales(by_role={role: each[0] for role, each in found.items() if len(each) == 1}, notes=tuple(notes))


async def _disaggregated_set(api: KubeApi, plan: KubePlan, pods: Iterable[SeenPod]) -> Scales:
    """A role has a scaler of its own where its `scaling.mode` is External, which needs `slices: 1`."""
    (name,) = plan.names
    found: dict[Role, Scale] = {}
    notes = []
    spec = table(await api.read(SETS, plan.namespace, name), "spec")
    for each in rows(spec, "roles"):
        told = str(each.get("name", ""))
        role = plan.rules.words.get(told)
        if role is None:
            continue
        if table(each, "scaling").get("mode") != "External":
            notes.append(f"role {told} of DisaggregatedSet {name} is Static: set scaling.mode External, and slices 1")
            continue
        item = await api.read(SCALERS, plan.namespace, f"{name}-{told}")
        # Its owner is the set, which obeys it.
        found[role] = _scale_of(item, role, SCALERS, f"{name}-{told}", is_owned=False)
    return Scales(by_role=found, notes=tuple(notes))


async def _graph(api: KubeApi, plan: KubePlan, pods: Iterable[SeenPod]) -> Scales:
    """By its scaling adapter where a component has one; else, and only then, in the graph itself."""
    (name,) = plan.names
    found: dict[Role, Scale] = {}
    notes = []
    item = await api.read(GRAPHS, plan.namespace, name)
    components = rows(item, "spec", "components")
    planner = planner_of(components)
    for index, each in enumerate(components):
        told, role = str(each.get("name", "")), GRAPH_WORDS.get(str(each.get("type", "")))
        if role is None:
            continue
        if role in found:
            notes.append(f"{role} is the work of several components of {name}: only {found[role].component} is resized")
            continue
        scale = await _adapter(api, plan, f"{name}-{told.lower()}", role, is_declared="scalingAdapter" in each)
        if scale is None:
            size = whole_number(each.get("replicas", 1)) or 0
            version = str(table(item, "metadata").get("resourceVersion", ""))
            scale = Scale(role=role, resource=GRAPHS, name=name, size=size, version=version, index=index)
        found[role] = _with(scale, planner, told)
    return Scales(by_role=found, notes=tuple(notes))


async def _adapter(api: KubeApi, plan: KubePlan, name: str, role: Role, *, is_declared: bool) -> Scale | None:
    """None: the component has none. Raises Refused where it asks for one that is not there."""
    if is_declared:
        item: dict[str, Any] | None = await api.read(ADAPTERS, plan.namespace, name)
    else:
        item = await _there(api, plan, ADAPTERS, name)
    return None if item is None else _scale_of(item, role, ADAPTERS, name, is_owned=False)


async def _there(api: KubeApi, plan: KubePlan, resource: Resource, name: str) -> dict[str, Any] | None:
    """None: it is not. Raises Refused, FleetError."""
    try:
        return await api.read(resource, plan.namespace, name)
    except Refused as error:
        if error.code == 404:
            return None
        raise


def as_told(scale: Scale, before: Scale | None) -> Scale:
    """A size that is another one while nobody new was noted was set by somebody unknown, or by us, not by who was."""
    if before is None or scale.set_at != before.set_at:
        return scale
    return replace(scale, set_by=before.set_by if scale.size == before.size else "")


def _scale_of(item: dict[str, Any], role: Role, resource: Resource, name: str, *, is_owned: bool = True) -> Scale:
    who, at = set_by(item)
    return Scale(
        role=role,
        resource=resource,
        name=name,
        size=whole_number(table(item, "spec").get("replicas", 1)) or 0,
        version=str(table(item, "metadata").get("resourceVersion", "")),
        set_by=who,
        set_at=at,
        rival=owner_of(item) if is_owned else "",
    )


def _with(scale: Scale, planner: str, component: str) -> Scale:
    return replace(scale, rival=planner, component=component)


async def _nothing(api: KubeApi, plan: KubePlan, pods: Iterable[SeenPod]) -> Scales:
    return Scales(by_role={})


READERS: Final[Mapping[str, Reader]] = {
    "none": _nothing,
    "deployments": _deployments,
    "disaggregatedset": _disaggregated_set,
    "graph": _graph,
}
#: What a Role must allow to resize each, beyond listing pods.
NEEDS: Final[Mapping[str, tuple[Access, ...]]] = {
    "none": (),
    "deployments": (Access("get", DEPLOYMENTS), Access("patch", DEPLOYMENTS, "scale")),
    "disaggregatedset": (Access("get", SETS), Access("get", SCALERS), Access("patch", SCALERS, "scale")),
    "graph": (
        Access("get", GRAPHS),
        Access("get", ADAPTERS),
        Access("patch", ADAPTERS, "scale"),
        Access("patch", GRAPHS),
    ),
}
