"""A pod as a worker: its role by a label, its state, and where its metrics page is. Pure.

A pod without a role that we know is no worker of ours to show, and is told; one that has ended (evicted, completed) has
been replaced and is not counted. Of a group of pods that are one worker (LeaderWorkerSet) only the leader is one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from control.errors import CommandRefused
from control.fleets.attached.steering.calls import rows, table
from control.fleets.attached.steering.kube.objects import name_of
from control.fleets.attached.steering.roster import Member
from control.fleets.attached.targets import make_target
from control.types.workers import Role, WorkerState

WORKER_INDEX: Final = "leaderworkerset.sigs.k8s.io/worker-index"
TEMPLATE_HASH: Final = "pod-template-hash"
PORT_ANNOTATION: Final = "prometheus.io/port"
PATH_ANNOTATION: Final = "prometheus.io/path"
#: Container ports that are of a metrics page by their names: llm-d's charts, Dynamo's operator.
PORT_NAMES: Final = ("metrics", "system")
LONGEST_NAME: Final = 100
MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRules:
    """`labels`: the first that a pod has says what it is; one that has none is `unlabelled`, None: no worker. `others`:
    known to be no phase. `port` None: as it says. `serve_port`: of requests; None: that of the page."""

    labels: tuple[str, ...]
    words: Mapping[str, Role]
    others: frozenset[str] = frozenset()
    port: int | None = None
    unlabelled: Role | None = None
    serve_port: int | None = None

    def word(self, labels: Mapping[str, Any]) -> str | None:
        return next((str(labels[name]) for name in self.labels if name in labels), None)

    def role(self, labels: Mapping[str, Any]) -> Role | None:
        word = self.word(labels)
        return self.unlabelled if word is None else self.words.get(word)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPod:
    """`member` None: it is not shown, for the reason in `note`, if any. `deployment`: whose it is; "" of none."""

    name: str
    member: Member | None = None
    note: str = ""
    deployment: str = ""


def seen_pod(item: dict[str, Any], rules: PodRules) -> SeenPod:
    """One object of a list of pods."""
    name, labels = name_of(item), table(item, "metadata", "labels")
    phase = table(item, "status").get("phase")
    if phase in ("Succeeded", "Failed") or labels.get(WORKER_INDEX, "0") != "0":
        return SeenPod(name=name)
    role = rules.role(labels)
    if role is None:
        word = rules.word(labels)
        note = f"no label {' or '.join(rules.labels)}" if word is None else f"the role {word!r}, which is no phase"
        return SeenPod(name=name, note="" if word in rules.others else note)
    state, reason = _state(item)
    host = _host(item)
    url, note = _page(item, rules, host)
    uid = str(table(item, "metadata").get("uid", ""))
    member = Member(
        worker_id=name if len(name) <= LONGEST_NAME else uid,
        role=role,
        state=state,
        reason=reason or note,
        metrics_url=url,
        serve_url=f"http://{host}:{rules.serve_port}" if url and rules.serve_port else "",
    )
    return SeenPod(name=name, member=member, note=note, deployment=_deployment(item))


def left_out(pods: Iterable[SeenPod]) -> tuple[str, ...]:
    """What is not shown, or shown without a page, once for each reason."""
    named: dict[str, list[str]] = {}
    for each in pods:
        if each.note:
            named.setdefault(each.note, []).append(each.name)
    return tuple(
        f"{len(names)} pods with {note}: {', '.join(names[:MAX_NAMED])}{' ...' if len(names) > MAX_NAMED else ''}"
        for note, names in named.items()
    )


def _state(item: dict[str, Any]) -> tuple[WorkerState, str]:
    if table(item, "metadata").get("deletionTimestamp"):
        return WorkerState.DRAINING, "terminating"
    conditions = {str(each.get("type")): each for each in rows(item, "status", "conditions")}
    if conditions.get("Ready", {}).get("status") == "True":
        return WorkerState.READY, ""
    waiting = [table(each, "state", "waiting").get("reason") for each in rows(item, "status", "containerStatuses")]
    unscheduled = conditions.get("PodScheduled", {})
    if unscheduled.get("status") == "False":
        waiting.insert(0, unscheduled.get("message") or unscheduled.get("reason"))
    told = next((str(each) for each in waiting if each), str(table(item, "status").get("phase", "unknown")).lower())
    return WorkerState.STARTING, told[:200]


def _host(item: dict[str, Any]) -> str:
    """As a URL has it; "" for a pod that has no IP yet."""
    try:
        address = ipaddress.ip_address(str(table(item, "status").get("podIP", "")))
    except ValueError:
        return ""
    return f"[{address}]" if address.version == 6 else str(address)


def _page(item: dict[str, Any], rules: PodRules, host: str) -> tuple[str, str]:
    """Its address, or why there is none; both "" for a pod that has no IP yet."""
    if not host:
        return "", ""
    annotations = table(item, "metadata", "annotations")
    port = rules.port or _port(annotations.get(PORT_ANNOTATION)) or _named_port(item)
    if port is None:
        return "", f"no {PORT_ANNOTATION} and no port named {' or '.join(PORT_NAMES)} (say port=NUMBER)"
    path = str(annotations.get(PATH_ANNOTATION) or "/metrics")
    try:
        return make_target(f"http://{host}:{port}/{path.lstrip('/')}", Role.MIXED.value, "pod").url, ""
    except CommandRefused:
        return "", f"a {PATH_ANNOTATION} that is no path"


def _named_port(item: dict[str, Any]) -> int | None:
    ports = [port for each in rows(item, "spec", "containers") for port in rows(each, "ports")]
    named = [each for name in PORT_NAMES for each in ports if each.get("name") == name]
    found = named or (ports if len(ports) == 1 else [])
    return _port(found[0].get("containerPort")) if found else None


def _port(value: Any) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536 else None


def _deployment(item: dict[str, Any]) -> str:
    """Its ReplicaSet is named after the deployment and the hash of its template, which is a label of the pod too."""
    suffix = f"-{table(item, 'metadata', 'labels').get(TEMPLATE_HASH, '')}"
    for owner in rows(item, "metadata", "ownerReferences"):
        name = str(owner.get("name", ""))
        if owner.get("kind") == "ReplicaSet" and suffix != "-" and name.endswith(suffix):
            return name.removesuffix(suffix)
    return ""
