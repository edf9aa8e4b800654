"""How a fleet in Kubernetes is named: `kubernetes=KUBECONFIG?namespace=NAME&...`, or `kubernetes=in-cluster?...`. Pure.

Decided here: what each option means, what holds where it is not given, and the words of a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from control.errors import CommandRefused
from control.fleets.attached.steering.kube.api import Cluster
from control.fleets.attached.steering.kube.pods import PodRules
from control.types.workers import Role

IN_CLUSTER: Final = "in-cluster"
WORDS: Final = ("prefill", "decode", "mixed")
OPTIONS: Final = (*("context", "namespace", "selector", "role", *WORDS, "unlabelled", "port", "serve_port", "scale"),)
LLM_D_ROLE: Final = "llm-d.ai/role"
#: llm-d's own words (`pkg/epp/.../bylabel` of llm-d-router); `both` is the older one.
LLM_D_WORDS: Final = {
    "prefill": Role.PREFILL,
    "encode-prefill": Role.PREFILL,
    "decode": Role.DECODE,
    "both": Role.MIXED,
    "prefill-decode": Role.MIXED,
    "encode-prefill-decode": Role.MIXED,
}
LLM_D_OTHERS: Final = frozenset({"encode", "talker", "code2wav"})
#: Dynamo's operator says the phase in the second, where the first says `worker` (as its v1alpha1 did).
GRAPH_ROLES: Final = ("nvidia.com/dynamo-sub-component-type", "nvidia.com/dynamo-component-type")
GRAPH_WORDS: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE, "worker": Role.MIXED}
GRAPH_OTHERS: Final = frozenset({"frontend", "planner", "epp", "default"})
SET_ROLE: Final = "disaggregatedset.x-k8s.io/role"
_DNS: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._/]{0,316}")
SCALES: Final = "deployments, deployments/NAME,NAME, disaggregatedset/NAME, graph/NAME, none"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubePlan:
    """`scale`: what sets the sizes: deployments | disaggregatedset | graph | none; `names` of it."""

    cluster: Cluster
    namespace: str
    selector: str
    rules: PodRules
    scale: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Defaults:
    """Of one way to scale. `selector`: with the name of what is scaled in place of {}."""

    labels: tuple[str, ...]
    words: Mapping[str, Role]
    others: frozenset[str]
    selector: str


_DEFAULTS: Final[Mapping[str, _Defaults]] = {
    "none": _Defaults(labels=(LLM_D_ROLE,), words=LLM_D_WORDS, others=LLM_D_OTHERS, selector=LLM_D_ROLE),
    "deployments": _Defaults(labels=(LLM_D_ROLE,), words=LLM_D_WORDS, others=LLM_D_OTHERS, selector=LLM_D_ROLE),
    "disaggregatedset": _Defaults(
        labels=(LLM_D_ROLE, SET_ROLE),
        words=LLM_D_WORDS,
        others=LLM_D_OTHERS,
        selector="disaggregatedset.x-k8s.io/name={}",
    ),
    "graph": _Defaults(
        labels=GRAPH_ROLES,
        words=GRAPH_WORDS,
        others=GRAPH_OTHERS,
        selector="nvidia.com/dynamo-graph-deployment-name={}",
    ),
}


def kube_plan(where: str, options: Mapping[str, str], kind: str) -> KubePlan:
    """Of a fleet of `kind`. Raises CommandRefused, which names what is wrong; nothing is asked of the cluster."""
    scale, names = _scale(scale_of(options, kind))
    if kind == "dynamo" and scale != "graph":
        raise _refused("scale", scale, "graph/NAME")
    defaults = _DEFAULTS[scale]
    labels = (options["role"],) if "role" in options else defaults.labels
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise _refused("role", label, "the name of a label")
    told = {value: Role(role) for role in WORDS for value in _values(options.get(role, ""))}
    unlabelled = _unlabelled(options, kind)
    if unlabelled is not None and not options.get("selector"):
        raise _refused("selector", "", "a label selector, as pods without a role are workers too")
    selector = options.get("selector") or (labels[0] if "role" in options else defaults.selector.format(*names))
    return KubePlan(
        cluster=_cluster(where, options.get("context", "")),
        namespace=_dns("namespace", options.get("namespace", "")),
        selector=selector,
        rules=PodRules(
            labels=() if kind == "openai" else labels,
            words=told or defaults.words,
            others=frozenset() if told else defaults.others,
            port=_port("port", options.get("port", "")),
            unlabelled=unlabelled,
            serve_port=_port("serve_port", options.get("serve_port", "")),
        ),
        scale=scale,
        names=names,
    )


def _unlabelled(options: Mapping[str, str], kind: str) -> Role | None:
    """The role of pods without the label. A plain server has both phases, whatever its pod's labels say."""
    if kind == "openai":
        named = [each for each in ("role", *WORDS) if each in options]
        if named:
            raise _refused(named[0], options[named[0]], "none: a plain server serves both phases")
        return Role.MIXED
    word = options.get("unlabelled", "")
    if word and word not in WORDS:
        raise _refused("unlabelled", word, ", ".join(WORDS))
    return Role(word) if word else None


def scale_of(options: Mapping[str, str], kind: str) -> str:
    """What sets the sizes, as it was said; of llm-d that is known without a word."""
    return options.get("scale") or ("deployments" if kind == "llm-d" else "none")


def _cluster(where: str, context: str) -> Cluster:
    if where == IN_CLUSTER:
        return Cluster(kubeconfig=None)
    path = Path(where)
    if not path.is_absolute() or not path.is_file():
        raise _refused("controller", where, f"the whole path of a kubeconfig, or {IN_CLUSTER}")
    return Cluster(kubeconfig=path, context=context)


def _scale(told: str) -> tuple[str, tuple[str, ...]]:
    kind, slash, rest = told.partition("/")
    names = tuple(_dns("scale", each) for each in _values(rest))
    if kind not in _DEFAULTS or (kind == "none" and slash) or (slash and not names):
        raise _refused("scale", told, SCALES)
    if kind in ("disaggregatedset", "graph") and len(names) != 1:
        raise _refused("scale", told, SCALES)
    return kind, names


def _values(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _dns(field: str, value: str) -> str:
    if not _DNS.fullmatch(value):
        raise _refused(field, value, "a name as Kubernetes has them")
    return value


def _port(field: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise _refused(field, text, "1..65535")
    return int(text)


def _refused(field: str, value: str, bound: str) -> CommandRefused:
    return CommandRefused(f"kubernetes: {field} {value!r} cannot be used", field=field, value=value, bound=bound)
