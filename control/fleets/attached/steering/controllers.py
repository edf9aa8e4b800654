"""What can steer a fleet: by kind, what it can do, and how its address is written.

`sglang-router=http://HOST:PORT` (`?switch=engine`: engines are told their role too; `&graph_gb=8`: memory for the
graphs of decode, which SGLang on a GPU wants to be told), `smg=http://HOST:PORT`,
`ray-serve=http://HEAD:8265/APPLICATION` (`?prefill=NAME&decode=NAME`: its deployments),
`prometheus=http://HOST:9090?query=PROMQL` (`&role=LABEL&prefill=VALUE&decode=VALUE`: which label says the role,
`&unlabelled=mixed`: the role without it, `&serve_port=NUMBER`: where requests go, if not where pages are read),
`dynamo=http://FRONTEND:8000` (`?etcd=http://HOST:2379&namespace=NAME`: its discovery and virtual connector;
`?pages=PORTS`: where its workers have their system pages, if discovery is elsewhere),
`production-stack=http://ROUTER:PORT?file=PATH` (its router's dynamic config file, on the plane's host),
`kubernetes=KUBECONFIG?namespace=NAME&...` or `kubernetes=in-cluster?...` (options: `steering.kube.address`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from control.errors import CommandRefused
from control.fleets.attached.steering.calls import Caller
from control.fleets.attached.steering.dynamo import DynamoSteering
from control.fleets.attached.steering.dynamo_pages import ports_of
from control.fleets.attached.steering.etcd import Etcd
from control.fleets.attached.steering.kube.address import OPTIONS as KUBE_OPTIONS
from control.fleets.attached.steering.kube.address import WORDS, kube_plan, scale_of
from control.fleets.attached.steering.kube.api import KubeApi
from control.fleets.attached.steering.kube.steering import KubernetesSteering
from control.fleets.attached.steering.memory import Memory
from control.fleets.attached.steering.production_stack import FILE_ENDINGS, ProductionStackSteering
from control.fleets.attached.steering.prometheus import PrometheusSteering
from control.fleets.attached.steering.ray_serve import RayServeSteering
from control.fleets.attached.steering.roster import Steering
from control.fleets.attached.steering.sglang_router import SglangRouterSteering
from control.fleets.attached.types import Attachment
from control.types.fleet import Capability
from control.types.workers import Role

#: A Prometheus that was restarted lists an engine again only when it has scraped it (every 15 s to 1 min, mostly).
PROMETHEUS_PATIENCE_S: Final = 120.0
FORM: Final = "KIND=URL, KIND one of sglang-router, smg, ray-serve, dynamo, prometheus, production-stack, kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Of one controller. `options` are those that its kind takes."""

    kind: str
    fleet_kind: str
    url: str
    path: str
    options: Mapping[str, str]
    token: str = ""
    limit_s: float = 60.0

    def caller(self) -> Caller:
        return Caller(self.url, self.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of controller. `dialects`: kinds of fleets that it steers. `is_http`: its address; else it is a path.
    `needs`: of its options, those that must be given. `sends`: who sends the fleet's requests; "": it only lists
    engines, so requests and roles can be ours. `patience_s`: for so long one counts as there that it lists no more."""

    can: frozenset[Capability]
    options: tuple[str, ...]
    dialects: tuple[str, ...]
    open: Callable[[Address, Memory], Steering]
    is_http: bool = True
    needs: tuple[str, ...] = ()
    sends: str = ""
    patience_s: float = 0.0


def _router(address: Address, memory: Memory) -> Steering:
    graph_gb = address.options.get("graph_gb")
    return SglangRouterSteering(
        address.caller(),
        memory,
        in_place=address.kind == "smg",
        switch=address.options.get("switch") == "engine",
        graph_gb=float(graph_gb) if graph_gb else None,
        limit_s=address.limit_s,
    )


def _ray_serve(address: Address, _: Memory) -> Steering:
    names = {role: address.options[role.value] for role in Role if role.value in address.options}
    return RayServeSteering(address.caller(), address.path.strip("/") or "default", names)


def _dynamo(address: Address, _: Memory) -> Steering:
    options = address.options
    etcd = Etcd(Caller(options["etcd"])) if "etcd" in options else None
    return DynamoSteering(address.caller(), etcd, options.get("namespace", ""), ports_of(options.get("pages", "")))


def _production_stack(address: Address, memory: Memory) -> Steering:
    path = Path(address.options.get("file", ""))
    return ProductionStackSteering(address.caller(), path, memory, limit_s=address.limit_s)


def _prometheus(address: Address, _: Memory) -> Steering:
    query, label = address.options.get("query", "up"), address.options.get("role", "role")
    words = {address.options[role]: role for role in WORDS if role in address.options}
    unlabelled = "mixed" if address.fleet_kind == "openai" else address.options.get("unlabelled", "")
    return PrometheusSteering(
        address.caller(), query, label, words, unlabelled=unlabelled, serve_port=address.options.get("serve_port", "")
    )


def _kubernetes(address: Address, _: Memory) -> Steering:
    plan = kube_plan(address.path, address.options, address.fleet_kind)
    return KubernetesSteering(KubeApi(plan.cluster), plan)


_POOL: Final = frozenset({Capability.RESIZE, Capability.FLIP, Capability.DRAIN})
_ENGINES: Final = ("sglang", "vllm")
CONTROLLERS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "sglang-router": Kind(
            can=_POOL, options=("switch", "graph_gb"), dialects=_ENGINES, open=_router, sends="this router"
        ),
        "smg": Kind(can=_POOL, options=(), dialects=_ENGINES, open=_router, sends="this router"),
        "ray-serve": Kind(
            can=frozenset({Capability.RESIZE}),
            options=WORDS,
            dialects=("ray-serve",),
            open=_ray_serve,
            sends="Ray Serve",
        ),
        "production-stack": Kind(
            can=_POOL,
            options=("file",),
            dialects=("vllm",),
            open=_production_stack,
            needs=("file",),
            sends="its router",
        ),
        "prometheus": Kind(
            can=frozenset(),
            options=("query", "role", *WORDS, "unlabelled", "serve_port"),
            dialects=(*_ENGINES, "openai", "dynamo"),
            open=_prometheus,
            patience_s=PROMETHEUS_PATIENCE_S,
        ),
        "dynamo": Kind(
            can=frozenset({Capability.RESIZE}),
            options=("etcd", "namespace", "pages"),
            dialects=("dynamo",),
            open=_dynamo,
            sends="Dynamo's frontend",
        ),
        "kubernetes": Kind(
            can=frozenset({Capability.RESIZE}),
            options=KUBE_OPTIONS,
            dialects=("llm-d", "dynamo", *_ENGINES, "openai"),
            open=_kubernetes,
            is_http=False,
            needs=("namespace",),
        ),
    }
)
#: Kinds of fleets whose workers have no page that we read: what is known of them is their controller's word.
WITHOUT_PAGES: Final = frozenset({"ray-serve"})
#: Who sends the requests of these kinds of fleets, whatever lists their workers.
SENDERS: Final[Mapping[str, str]] = MappingProxyType(
    {"dynamo": "Dynamo's frontend", "llm-d": "llm-d's endpoint picker"}
)


def controller_can(attachment: Attachment) -> frozenset[Capability]:
    """What can be done through its controller; nothing where it has none."""
    kind, _, url = attachment.controller.partition("=")
    found = CONTROLLERS.get(kind)
    if found is None or (kind == "dynamo" and "etcd=" not in url):
        return frozenset()
    if kind == "kubernetes" and _scale(url, attachment) == "none":
        return frozenset()
    return found.can


def why_not_sent(attachment: Attachment) -> str:
    """Why its requests cannot be sent by us, nor its roles given; "" where the controller only lists its engines."""
    kind, _, url = attachment.controller.partition("=")
    found = CONTROLLERS.get(kind)
    who = (found.sends if found else "its controller") or SENDERS.get(attachment.kind, "")
    if who:
        return f"{who} sends its requests"
    if kind == "kubernetes" and (scale := _scale(url, attachment)) != "none":
        return (
            f"scale={scale} lets objects of the cluster size its pools, so a worker's role is not ours to give; "
            "attached with scale=none it is"
        )
    return ""


def _scale(url: str, attachment: Attachment) -> str:
    return scale_of(dict(parse_qsl(urlsplit(url).query)), attachment.kind)


def address_of(attachment: Attachment) -> Address:
    """Raises CommandRefused, which names what is wrong."""
    kind, equals, url = attachment.controller.partition("=")
    if not equals or kind not in CONTROLLERS:
        raise CommandRefused(f"a controller is {FORM}", field="controller", value=kind, bound=FORM)
    parts = urlsplit(url)
    if CONTROLLERS[kind].is_http and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise CommandRefused("a controller has an http address", field="controller", value=kind, bound=FORM)
    if parts.username or parts.password:
        raise CommandRefused("its address holds a password: name a file or env:NAME", field="controller", value=kind)
    options = dict(parse_qsl(parts.query))
    if kind == "dynamo":
        ports_of(options.get("pages", ""))
    unknown = sorted(set(options) - set(CONTROLLERS[kind].options))
    if unknown:
        bound = ", ".join(CONTROLLERS[kind].options) or "none"
        raise CommandRefused(f"{kind} takes no {unknown[0]}", field="controller", value=unknown[0], bound=bound)
    if kind == "prometheus":
        _check_prometheus(options)
    graph_gb = options.get("graph_gb", "0")
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", graph_gb):
        raise CommandRefused("graph_gb is a number of GB", field="controller", value=graph_gb, bound="0..999")
    if kind == "production-stack" and Path(options.get("file", "")).suffix not in FILE_ENDINGS:
        raise CommandRefused(
            "its router's dynamic config is a file", field="controller", value=kind, bound=f"?file=PATH, {FILE_ENDINGS}"
        )
    if attachment.kind not in CONTROLLERS[kind].dialects:
        bound = ", ".join(CONTROLLERS[kind].dialects)
        raise CommandRefused(f"{kind} steers no {attachment.kind}", field="kind", value=attachment.kind, bound=bound)
    if not CONTROLLERS[kind].is_http:
        _check_kubernetes(parts.path, options, attachment)
    return Address(
        kind=kind,
        fleet_kind=attachment.kind,
        url=f"{parts.scheme}://{parts.netloc}",
        path=parts.path,
        options=options,
        token=attachment.controller_token,
        limit_s=attachment.limit_s,
    )


def _check_prometheus(options: Mapping[str, str]) -> None:
    unlabelled, port = options.get("unlabelled", "mixed"), options.get("serve_port", "1")
    if unlabelled not in WORDS:
        raise CommandRefused("no such role", field="unlabelled", value=unlabelled, bound=", ".join(WORDS))
    if not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise CommandRefused("serve_port is no port", field="serve_port", value=port, bound="1..65535")


def _check_kubernetes(path: str, options: Mapping[str, str], attachment: Attachment) -> None:
    if attachment.controller_token:
        raise CommandRefused("kubernetes takes its credentials from the kubeconfig alone", field="controller_token")
    kube_plan(path, options, attachment.kind)


def patience_s(address: Address) -> float:
    """For so long an engine that it lists no more is taken to be there."""
    return CONTROLLERS[address.kind].patience_s


def open_steering(address: Address, memory: Memory | None = None) -> Steering:
    """Asks nothing yet. Without a memory nothing is kept: for a look."""
    return CONTROLLERS[address.kind].open(address, memory or Memory())
