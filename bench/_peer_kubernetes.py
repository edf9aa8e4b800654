"""Kubernetes for real, as far as its API server and controllers go: an llm-d like fleet, its pods played by a stand-in.

Decided here: what is tried of it. The Role that our accounts get is the one that docs/fleets.md prints, so that it is
enough, and that each verb of it is needed, is part of the trial.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from _deployment import ROOT
from _kube_cluster import APPS, AUTOSCALING, MERGE, NAMESPACE, KubeCluster
from _kube_pods import ROLE, StandInKubelet, tokens_at
from _peer_kube_custom import try_sets_and_graphs
from _peer_site import Site, Unmet, asked, resize, undo
from _peers import running
from control.client import Attachment
from control.errors import ControlError
from control.fleets.attached.steering.calls import Refused
from control.fleets.attached.steering.kube.api import Cluster, KubeApi
from control.fleets.attached.steering.kube.objects import PODS
from control.fleets.attached.steering.kube.pods import SeenPod
from control.fleets.attached.steering.kube.watch import Watched, changes
from control.types.commands import Command, CommandRequest, CommandState, Preview
from control.types.fleet import Capability

DECODE = f"{APPS}/deployments/ms-decode"
BODY: dict[str, Any] = {"model": "fake", "prompt": "word " * 150, "max_tokens": 40, "stream": True}
LIMIT_S = 20.0
LOAD_S = 10.0
NEAR = 0.03
#: How the two ways of knowing pods are compared: looks as far apart as they are by default, and so many changes.
EVERY_S = 2.0
NUM_CHANGES = 12
CALM_S = 30.0


def try_kubernetes(site: Site) -> None:
    """Role by role, size by size, refusal by refusal; then what breaks, and what a watch saves."""
    with running(KubeCluster()) as peer:
        assert isinstance(peer, KubeCluster)
        rules = documented_rules()
        config = peer.account("phaseline", rules)
        with played(peer) as pods:
            for role, size in (("prefill", 1), ("decode", 2)):
                peer.call("POST", f"{APPS}/deployments", deployment(role, size, pods.port))
            site.until("three pods", lambda: len(pods.pods()) == 3)
            _prove_the_role(site, peer, config, rules)
            site.attach(**_told(config), model="llama-3.1-8b", device="h100-sxm-80gb", simulated=True)
            site.until_pools(prefill=1, decode=2)
            site.note("workers and roles", ", ".join(f"{name} {role}" for name, role in site.workers().items()))
            _watch_lines(site, pods)
            site.expect_refused("resize without permission", resize(decode=3))
            site.allow(Capability.RESIZE)
            site.until_pools(prefill=1, decode=2)
            _resize_under_load(site, pods)
            _refuse(site, peer, rules)
            _yield_to_others(site, peer, pods)
            _be_ignored(site, peer, pods)
            _survive(site, peer, pods, config)
            _compare_watch_and_lists(site, peer, pods, config, rules)
            try_sets_and_graphs(site, peer, pods, config)


@contextmanager
def played(peer: KubeCluster) -> Iterator[StandInKubelet]:
    kubelet = StandInKubelet(peer.folder / "admin.kubeconfig", peer.folder / "pods.log")
    try:
        yield kubelet
    finally:
        kubelet.close()


def documented_rules() -> list[dict[str, Any]]:
    """As docs/fleets.md prints them."""
    text = (ROOT / "docs" / "fleets.md").read_text()
    block = re.search(r"^    rules:\n(?:    - .*\n)+", text, re.MULTILINE)
    if block is None:
        raise Unmet("docs/fleets.md prints no rules of a Role")
    found: list[dict[str, Any]] = yaml.safe_load(textwrap.dedent(block[0]))["rules"]
    return found


def deployment(role: str, size: int, port: int) -> dict[str, Any]:
    labels = {ROLE: role, "app": "llm-d"}
    container = {"name": "vllm", "image": "fake", "ports": [{"name": "metrics", "containerPort": port}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": size, "selector": {"matchLabels": labels}, "template": template}
    return {"metadata": {"name": f"ms-{role}"}, "spec": spec}


def _told(config: Path, options: str = "", **more: Any) -> dict[str, Any]:
    where = f"kubernetes={config}?namespace={NAMESPACE}{options}"
    return {"kind": "llm-d", "controller": where, "every_s": 0.5, "limit_s": LIMIT_S, **more}


# --- what the Role must allow ----------------------------------------------------------------------------------------


def _prove_the_role(site: Site, peer: KubeCluster, config: Path, rules: list[dict[str, Any]]) -> None:
    """With all of it nothing is missing; without any one verb the dry run says which."""
    whole = [
        (rule["apiGroups"][0], plural, verb) for rule in rules for plural in rule["resources"] for verb in rule["verbs"]
    ]
    for each in _kinds(config).values():
        if "not permitted" in (said := _dry_run(site, each)):
            raise Unmet(f"the Role of docs/fleets.md is not enough: {said}")
    for group, plural, verb in whole:
        left = [
            {"apiGroups": [g], "resources": [p], "verbs": [v]}
            for g, p, v in whole
            if (g, p, v) != (group, plural, verb)
        ]
        peer.set_rules("phaseline", left)
        words = f'{{apiGroups: ["{group}"], resources: ["{plural}"], verbs: ["{verb}"]}}'
        told = _kinds(config).get(group, _kinds(config)["apps"])
        site.until(f"a dry run that names {words}", lambda: words in _dry_run(site, told), limit_s=20)  # noqa: B023
    peer.set_rules("phaseline", rules)
    site.until("all permitted again", lambda: "not permitted" not in _dry_run(site, _kinds(config)["apps"]))
    site.note("the documented Role", f"is enough; each of its {len(whole)} verbs, taken away, is named by a dry run")


def _kinds(config: Path) -> dict[str, Attachment]:
    """By the group whose objects they are sized by."""
    return {
        "apps": Attachment(name="dry", **_told(config)),
        "disaggregatedset.x-k8s.io": Attachment(name="dry", **_told(config, "&scale=disaggregatedset/x")),
        "nvidia.com": Attachment(name="dry", **_told(config, "&scale=graph/x", kind="dynamo")),
    }


def _dry_run(site: Site, told: Attachment) -> str:
    """All that it has to say."""
    try:
        return " ".join(site.client.survey(told).notes)
    except ControlError as error:
        return error.detail


# --- what is seen, and set -------------------------------------------------------------------------------------------


def one_of(pods: StandInKubelet, role: str) -> Callable[[], str]:
    """As a Service would choose among its engines."""
    turn = count()

    def url() -> str:
        found = pods.addresses(role)
        return f"{found[next(turn) % len(found)]}/v1/completions"

    return url


def _watch_lines(site: Site, pods: StandInKubelet) -> None:
    """Tokens of both phases as the engines have counted them, both lines known."""
    since_unix_s = time.time()
    with asked(one_of(pods, "decode"), BODY, 4) as decoded, asked(one_of(pods, "prefill"), BODY, 1):
        time.sleep(LOAD_S)
    site.note("streams", decoded.words())
    for phase, metric in (("prefill", "prefill_compute_wall"), ("decode", "decode_bandwidth_wall")):
        engines = [url for role in ("prefill", "decode") for url in pods.addresses(role)]
        true = sum(tokens_at(url)[phase] for url in engines)  # a prefill server gives first tokens
        site.until(f"{phase} tokens", lambda: site.total(f"{phase}_tokens", since_unix_s) > true * (1 - NEAR))  # noqa: B023
        ours = site.total(f"{phase}_tokens", since_unix_s)
        known = [value for _, value in site.line(metric, since_unix_s, "role").get(phase, []) if value]
        text = f"{ours:.0f} counted, {true} by the engines ({ours / true - 1:+.1%}); {metric} known for {len(known)} s"
        site.note(f"{phase} line", text)
        if ours > true * (1 + NEAR) or not known:
            raise Unmet(f"{phase} line: {text}")


def _resize_under_load(site: Site, pods: StandInKubelet) -> None:
    """Streams go to the engines themselves: what becomes of those of a pod that ends is the cluster's affair."""
    with asked(one_of(pods, "decode"), BODY, 6) as load:
        time.sleep(2)
        done = site.expect("resize decode 2 -> 3", resize(decode=3), CommandState.DONE)
        site.until_pools(prefill=1, decode=3)
        site.expect("undo", undo(done), CommandState.DONE)
        site.until_pools(prefill=1, decode=2)
        time.sleep(1)
    site.note("streams meanwhile, straight to the engines; the pod that ended had its grace period", load.words())


def _refuse(site: Site, peer: KubeCluster, rules: list[dict[str, Any]]) -> None:
    site.expect_refused("resize to 10000", resize(decode=10_000))
    without = [each for each in rules if "deployments/scale" not in each["resources"]]
    peer.set_rules("phaseline", without)
    site.expect("without the verb", resize(decode=3), CommandState.FAILED, 'resources: ["deployments/scale"]')
    peer.set_rules("phaseline", rules)


def _yield_to_others(site: Site, peer: KubeCluster, pods: StandInKubelet) -> None:
    """An autoscaler is named before; who sets another size meanwhile, after."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ms-decode"}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 5}
    path = f"{AUTOSCALING}/horizontalpodautoscalers"
    peer.call("POST", path, {"metadata": {"name": "theirs"}, "spec": spec})
    seen_s = site.until("the HPA, in a preview", lambda: "HPA theirs" in _refusal(site))
    site.note("an HPA on the target", f"{_refusal(site)} (seen after {seen_s:.1f} s)")
    site.expect_refused("resize of what it sizes", resize(decode=3))
    peer.call("DELETE", f"{path}/theirs")
    site.until("no HPA", lambda: not _refusal(site))
    pods.starts = False
    for who, where, words in (
        ("argocd", "", "argocd has set it to 4: we stop"),
        ("kubectl-scale", "/scale", "has set it to 4: we stop"),
    ):
        begun_s, command = time.monotonic(), _begun(site, peer, 3)
        peer.call("PATCH", f"{DECODE}{where}?fieldManager={who}", {"spec": {"replicas": 4}}, MERGE)
        ended = site.client.wait(command.command_id, timeout_s=3 * LIMIT_S)
        site.ended(f"{who} sets 4 meanwhile{' by /scale' if where else ''}", ended, CommandState.FAILED, words, begun_s)
        _back_to_two(site, peer)
    pods.starts = True


def _preview(site: Site) -> Preview:
    return site.client.preview(CommandRequest(action=resize(decode=3)))


def _refusal(site: Site) -> str:
    return _preview(site).refused


def _begun(site: Site, peer: KubeCluster, size: int) -> Command:
    """An order that the API server has."""
    command = site.order(resize(decode=size), wait=False)
    site.until("our size", lambda: peer.call("GET", DECODE)["spec"]["replicas"] == size)
    return command


def _back_to_two(site: Site, peer: KubeCluster) -> None:
    """As its owner sets it, by the object itself."""
    peer.call("PATCH", f"{DECODE}?fieldManager=owner", {"spec": {"replicas": 2}}, MERGE)
    site.until_pools(prefill=1, decode=2)
    site.until("two, as they are shown", lambda: _preview(site).pools_before["decode"] == 2)


# --- what breaks -----------------------------------------------------------------------------------------------------


def _be_ignored(site: Site, peer: KubeCluster, pods: StandInKubelet) -> None:
    """Accepted by the API server, and nothing comes of it."""
    pods.starts = False
    site.expect("resize, but no pod starts", resize(decode=3), CommandState.FAILED, "not reached within")
    pods.start_waiting()
    site.note("with room again", f"three ready after {site.until_pools(prefill=1, decode=3):.1f} s")
    _back_to_two(site, peer)
    peer.kill("controllers")
    site.expect("resize, no controller runs", resize(decode=3), CommandState.FAILED, "not reached within")
    peer.start_again("controllers")
    site.note("controllers again", f"three ready after {site.until_pools(prefill=1, decode=3):.1f} s")
    _back_to_two(site, peer)


def _survive(site: Site, peer: KubeCluster, pods: StandInKubelet, config: Path) -> None:
    """The API server's restart, a token that is revoked and one that is put in its place, a version that is too old."""
    peer.restart("apiserver")
    site.note("API server killed and begun again", f"a pod's change is seen {_seen_after(site, pods):.1f} s later")
    peer.revoke("phaseline")
    site.until("word of the token", lambda: "refuses the credentials" in _problems(site))
    site.note("token revoked", site.client.snapshot(site.name).health_text)
    peer.write_token("phaseline")
    site.until("no trouble", lambda: "refuses the credentials" not in _problems(site))
    site.note("token rotated in the kubeconfig", f"a pod's change is seen {_seen_after(site, pods):.1f} s later")
    site.note("a watch from a version that is too old", asyncio.run(_expired(config)))
    done = site.expect("resize after all that", resize(decode=3), CommandState.DONE)
    site.expect("undo", undo(done), CommandState.DONE)
    site.until_pools(prefill=1, decode=2)


def _problems(site: Site) -> str:
    found = site.client.snapshot(site.name)
    return " ".join((found.health_text, *found.notices))


def _seen_after(site: Site, pods: StandInKubelet) -> float:
    """A pod that is not ready, and ready again."""
    name = next(name for name, role in pods.pods().items() if role == "decode")
    pods.set_ready(name, False)
    took_s = site.until_pools(prefill=1, decode=1)
    pods.set_ready(name, True)
    site.until_pools(prefill=1, decode=2)
    return took_s


async def _expired(config: Path) -> str:
    api = KubeApi(Cluster(kubeconfig=config))
    watched = Watched(resource=PODS, namespace=NAMESPACE, selector="", keep=lambda item: SeenPod(name="x"))
    try:
        await api.listing(PODS, NAMESPACE, watched.keep)
        async for _ in changes(api, watched, "1"):
            raise Unmet("a watch from version 1 goes on")
    except Refused as error:
        if error.code != 410:
            raise Unmet(f"a watch from version 1: {error.code} {error.detail}") from error
        return f"410, {error.detail}: listed again"
    finally:
        await api.close()
    raise Unmet("a watch from version 1 ends without a word")


# --- what a watch saves ----------------------------------------------------------------------------------------------


def _compare_watch_and_lists(
    site: Site, peer: KubeCluster, pods: StandInKubelet, config: Path, rules: list[dict[str, Any]]
) -> None:
    """Two fleets of the same pods, at the same time; the account of one may not watch."""
    fewer = [each | {"verbs": [verb for verb in each["verbs"] if verb != "watch"]} for each in rules]
    sites = {"watched": Site(site.fleet, "watched"), "listed": Site(site.fleet, "listed")}
    configs = {"watched": peer.account("watching", rules), "listed": peer.account("listing", fewer)}
    for name, each in sites.items():
        each.findings = site.findings
        each.attach(**_told(configs[name], every_s=EVERY_S), simulated=True)
    for each in sites.values():
        each.until_pools(prefill=1, decode=2)
    took_s: dict[str, list[float]] = {name: [] for name in sites}
    for _ in range(NUM_CHANGES):
        for name, seconds in _one_change(sites, pods).items():
            took_s[name].append(seconds)
    begun_unix_s = time.time()
    time.sleep(CALM_S)
    for name, account in (("watched", "watching"), ("listed", "listing")):
        found = Counter(peer.requests_of(account, begun_unix_s, begun_unix_s + CALM_S))
        rate = {f"{verb} {plural}": num * 60 / CALM_S for (verb, plural), num in sorted(found.items())}
        told = ", ".join(f"{what} {each:.0f}" for what, each in rate.items())
        site.note(f"{name}: requests a minute", f"{sum(rate.values()):.0f} ({told})")
        text = f"median {statistics.median(took_s[name]):.2f} s, longest {max(took_s[name]):.2f} s of {NUM_CHANGES}"
        site.note(f"{name}: until a pod's readiness is seen", text)


def _one_change(sites: dict[str, Site], pods: StandInKubelet) -> dict[str, float]:
    """Seconds until each fleet shows one decode worker less, at any moment between two looks."""
    name = next(name for name, role in pods.pods().items() if role == "decode")
    time.sleep(random.uniform(0.0, EVERY_S))
    begun_s, took_s = time.monotonic(), {}
    pods.set_ready(name, False)
    while len(took_s) < len(sites) and time.monotonic() - begun_s < 60:
        for each, site in sites.items():
            if each not in took_s and site.pools()["decode"] == 1:
                took_s[each] = time.monotonic() - begun_s
    pods.set_ready(name, True)
    for site in sites.values():
        site.until_pools(prefill=1, decode=2)
    return took_s
