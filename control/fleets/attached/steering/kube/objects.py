"""What is asked of a Kubernetes API: resources by group and plural, their paths, and what each call needs.

Read from the client 37.0, LWS after 0.10.0 (060ab4d, `api/disaggregatedset/v1`) and Dynamo's operator (02046ef,
`deploy/operator/api/v1beta1`). Nothing is asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Who we are in an object's `managedFields`.
FIELD_MANAGER: Final = "phaseline"


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object. `group` "": Kubernetes's core."""

    group: str
    version: str
    plural: str
    kind: str

    def path(self, namespace: str, name: str = "", sub: str = "") -> str:
        """`namespace` "": of an object that belongs to none."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        within = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{within}/{self.plural}" + "".join(f"/{part}" for part in (name, sub) if part)


PODS: Final = Resource("", "v1", "pods", "Pod")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
SETS: Final = Resource("disaggregatedset.x-k8s.io", "v1", "disaggregatedsets", "DisaggregatedSet")
SCALERS: Final = Resource(SETS.group, "v1", "disaggregatedsetrolescalers", "DisaggregatedSetRoleScaler")
GRAPHS: Final = Resource("nvidia.com", "v1beta1", "dynamographdeployments", "DynamoGraphDeployment")
ADAPTERS: Final = Resource(
    GRAPHS.group, "v1beta1", "dynamographdeploymentscalingadapters", "DynamoGraphDeploymentScalingAdapter"
)
#: Of every cluster, old and new: v2 begins with 1.23, and what is read of it says the same in both.
AUTOSCALERS: Final = Resource("autoscaling", "v1", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
SCALED_OBJECTS: Final = Resource("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject")
REVIEWS: Final = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")


@dataclass(frozen=True, slots=True)
class Access:
    """One verb on one resource: what a Role must allow for a call."""

    verb: str
    resource: Resource
    sub: str = ""

    @property
    def what(self) -> str:
        return self.resource.plural + (f"/{self.sub}" if self.sub else "")

    @property
    def rule(self) -> str:
        """As a line of a Role's `rules`."""
        return f'{{apiGroups: ["{self.resource.group}"], resources: ["{self.what}"], verbs: ["{self.verb}"]}}'

    def review(self, namespace: str) -> dict[str, Any]:
        """The question whether we are allowed to, as a SelfSubjectAccessReview; asking changes nothing."""
        told = {"namespace": namespace, "verb": self.verb, "group": self.resource.group}
        told |= {"resource": self.resource.plural} | ({"subresource": self.sub} if self.sub else {})
        spec = {"resourceAttributes": told}
        return {"apiVersion": f"{REVIEWS.group}/{REVIEWS.version}", "kind": REVIEWS.kind, "spec": spec}


def name_of(item: Mapping[str, Any]) -> str:
    """ "" where it has none."""
    meta = item.get("metadata")
    return str(meta.get("name", "")) if isinstance(meta, dict) else ""


def whole_number(value: Any) -> int | None:
    """None unless it is one, of at least 0: `True` and 1.5 are none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
