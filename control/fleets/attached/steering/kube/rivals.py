"""Who else sets the size of what we would resize: an HPA, KEDA, Dynamo's planner, an owner that puts it back. Pure.

We yield to all of them: before an order it is refused with their name, during one it is failed with their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from control.fleets.attached.steering.calls import rows, table
from control.fleets.attached.steering.kube.objects import DEPLOYMENTS, FIELD_MANAGER, Resource, name_of, whole_number

#: On the HPA that KEDA makes.
KEDA_LABEL: Final = "scaledobject.keda.sh/name"
KEDA_PAUSED: Final = "autoscaling.keda.sh/paused"
KEDA_HELD: Final = "autoscaling.keda.sh/paused-replicas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaler:
    """Whoever sets the size of one object by itself."""

    who: str
    group: str
    kind: str
    name: str

    def sizes(self, resource: Resource, name: str) -> bool:
        return (self.group, self.kind, self.name) == (resource.group, resource.kind, name)


def hpa(item: dict[str, Any]) -> Autoscaler:
    """One object of a list of HPAs."""
    spec, keda = table(item, "spec"), table(item, "metadata", "labels").get(KEDA_LABEL)
    least, most = whole_number(spec.get("minReplicas")), whole_number(spec.get("maxReplicas"))
    who = f"KEDA's ScaledObject {keda}, by HPA {name_of(item)}" if keda else f"HPA {name_of(item)}"
    return _autoscaler(f"{who} ({1 if least is None else least}..{'?' if most is None else most})", spec)


def scaled_object(item: dict[str, Any]) -> Autoscaler | None:
    """One object of a list of KEDA's; None while it is paused and holds no size."""
    annotations = table(item, "metadata", "annotations")
    if str(annotations.get(KEDA_PAUSED, "")).lower() == "true" and KEDA_HELD not in annotations:
        return None
    return _autoscaler(f"KEDA's ScaledObject {name_of(item)}", table(item, "spec"))


def rival_of(autoscalers: Iterable[Autoscaler], resource: Resource, name: str) -> str:
    """ "" when nobody is known to size it."""
    who = [each.who for each in autoscalers if each.sizes(resource, name)]
    return f"{min(who, key=len)} sets its size" if who else ""


def owner_of(item: dict[str, Any]) -> str:
    """Of an object that a controller made, and whose size that controller will put back; else ""."""
    for owner in rows(item, "metadata", "ownerReferences"):
        if owner.get("controller") is True:
            return f"it belongs to {owner.get('kind')} {owner.get('name')}, which sets its size"
    return ""


def planner_of(components: Iterable[Mapping[str, Any]]) -> str:
    """Dynamo's own planner, where it is one of a graph's components and runs; else ""."""
    for each in components:
        if each.get("type") == "planner" and each.get("replicas") != 0:
            return f"Dynamo's planner ({each.get('name')}) sets its size"
    return ""


def set_by(item: dict[str, Any]) -> tuple[str, str]:
    """Who has set `spec.replicas` last, as the API server has noted it, "" for us and where it does not say; and when.

    Before Kubernetes 1.22 what is set by `/scale` is not noted: who is named has set it earlier (`news_of`).
    """
    noted = [
        (str(each.get("time", "")), str(each.get("manager", "")))
        for each in rows(item, "metadata", "managedFields")
        if "f:replicas" in table(each, "fieldsV1", "f:spec")
    ]
    at, who = max(noted, default=("", ""))
    return "" if who == FIELD_MANAGER else who[:80], at


def _autoscaler(who: str, spec: dict[str, Any]) -> Autoscaler:
    target = table(spec, "scaleTargetRef")
    kind, version = str(target.get("kind") or DEPLOYMENTS.kind), str(target.get("apiVersion") or "")
    group = version.rpartition("/")[0] or (DEPLOYMENTS.group if kind == DEPLOYMENTS.kind else "")
    return Autoscaler(who=who, group=group, kind=kind, name=str(target.get("name", "")))
