"""A real Kubernetes control plane on loopback: etcd, API server and controller manager, TLS, tokens and RBAC. No node.

Decided here: with what it is started, and who may do what in it. Its pods are run by `_kube_pods`, as there is no
kubelet; how its programs come to be is `_kube_build`.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import ssl
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from _deployment import free_ports
from _kube_build import BINARIES, binary, build
from _peer_dynamo import ETCD, SizedDynamo
from _peers import Peer, PeerFailed

NAMESPACE = "serving"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
RBAC = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
AUTOSCALING = f"/apis/autoscaling/v1/namespaces/{NAMESPACE}"
MERGE = "application/merge-patch+json"
CONTROLLERS = ("deployment", "replicaset", "garbagecollector", "horizontalpodautoscaling")
CONTROLLERS += ("serviceaccount", "serviceaccount-token", "namespace")
#: Requests of our own accounts alone, a line each when it begins to be answered.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": [f"system:serviceaccounts:{NAMESPACE}"]}, {"level": "None"}],
}
TOKEN_LIMIT_S = 60.0
ACCOUNT = "kubernetes.io/service-account.name"


class KubeCluster(Peer):
    """Asked as its admin by `call`; accounts of ours get a Role and a kubeconfig by `account`."""

    name = "kubernetes"
    model_id = "fake"
    what = "Kubernetes API server and controllers, engines fake"
    frontend = "apiserver"

    def __init__(self) -> None:
        super().__init__()
        self._token = secrets.token_hex(16)

    @property
    def python(self) -> Path:
        """It has no environment: what shows that it is there."""
        return binary(BINARIES[-1])

    @classmethod
    def packages(cls) -> list[list[str]]:
        return []

    @classmethod
    def set_up(cls) -> None:
        SizedDynamo.set_up_etcd()
        build()

    # --- its processes -------------------------------------------------------------------------------------------

    def start(self) -> None:
        etcd, etcd_peer, port = free_ports(3)
        self.url = f"https://127.0.0.1:{port}"
        self._write_files()
        self.run("etcd", _etcd(self.folder / "etcd", etcd, etcd_peer))
        self.run("apiserver", _apiserver(self.folder, etcd, port))
        self.until_whole()
        self.run("controllers", _controllers(self.folder, self.kubeconfig("admin", self._token)))
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})

    def is_whole(self) -> bool:
        try:
            return self._ask("GET", "/readyz").text == "ok"
        except httpx.HTTPError:
            return False

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start_again(name)
        self.until_whole()

    # --- what is in it -------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """As the admin. Raises PeerFailed with what it says."""
        answer = self._ask(method, path, body, content_type)
        if answer.status_code >= 300:
            raise PeerFailed(f"kubernetes: {method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def account(self, name: str, rules: list[dict[str, Any]]) -> Path:
        """A service account that may do `rules` and nothing else; its kubeconfig."""
        about, group = {"metadata": {"name": name}}, "rbac.authorization.k8s.io"
        self.call("POST", f"{CORE}/serviceaccounts", about)
        self.call("POST", f"{RBAC}/roles", {**about, "rules": rules})
        subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
        bound = {"roleRef": {"apiGroup": group, "kind": "Role", "name": name}, "subjects": [subject]}
        self.call("POST", f"{RBAC}/rolebindings", {**about, **bound})
        return self.write_token(name)

    def set_rules(self, name: str, rules: list[dict[str, Any]]) -> None:
        self.call("PATCH", f"{RBAC}/roles/{name}", {"rules": rules}, MERGE)

    def write_token(self, name: str) -> Path:
        """The account's token of now, into its kubeconfig."""
        deadline_s = time.monotonic() + TOKEN_LIMIT_S
        while time.monotonic() < deadline_s:
            for each in self._tokens(name):
                if "token" in each.get("data", {}):
                    return self.kubeconfig(name, base64.b64decode(each["data"]["token"]).decode())
            time.sleep(0.1)
        raise PeerFailed(f"kubernetes: no token for {name}: {self.log('controllers')}")

    def revoke(self, name: str) -> None:
        """Its tokens; the controllers make another one."""
        for each in self._tokens(name):
            self.call("DELETE", f"{CORE}/secrets/{each['metadata']['name']}")

    def requests_of(self, name: str, since_unix_s: float, until_unix_s: float) -> list[tuple[str, str]]:
        """Of one account: verb and resource, as the API server's own audit log has them."""
        found = []
        for line in (self.folder / "audit.log").read_text().splitlines():
            each = json.loads(line)
            at_unix_s = datetime.fromisoformat(each["requestReceivedTimestamp"]).astimezone(UTC).timestamp()
            # A watch is told when it begins, all else when it ends.
            is_told = each["stage"] == ("ResponseStarted" if each["verb"] == "watch" else "ResponseComplete")
            if is_told and each["user"]["username"].endswith(f":{name}") and since_unix_s <= at_unix_s < until_unix_s:
                found.append((each["verb"], each.get("objectRef", {}).get("resource", "")))
        return found

    def kubeconfig(self, name: str, token: str) -> Path:
        """Written in one step, as whoever rotates a token does."""
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "tls.crt")}
        told = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{"name": name, "context": {"cluster": "here", "user": name}}],
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
        }
        path = self.folder / f"{name}.kubeconfig"
        path.with_suffix(".new").write_text(yaml.safe_dump(told))
        return path.with_suffix(".new").rename(path)

    # --- how -----------------------------------------------------------------------------------------------------

    def _tokens(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"{CORE}/secrets")["items"]
        return [each for each in found if each["metadata"].get("annotations", {}).get(ACCOUNT) == name]

    def _ask(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> httpx.Response:
        context = ssl.create_default_context(cafile=str(self.folder / "tls.crt"))
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        content = None if body is None else json.dumps(body)
        return httpx.request(method, self.url + path, content=content, headers=headers, verify=context, timeout=30)

    def _write_files(self) -> None:
        certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here"]
        certificate += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "tls.key", "-out", "tls.crt"]
        for command in (certificate, ["openssl", "genrsa", "-out", "accounts.key", "2048"]):
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        (self.folder / "tokens.csv").write_text(f'{self._token},admin,1,"system:masters"\n')
        (self.folder / "audit.yaml").write_text(yaml.safe_dump(AUDIT))


def _etcd(folder: Path, port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    told = {"listen-client-urls": client, "advertise-client-urls": client, "listen-peer-urls": peer}
    told |= {"initial-advertise-peer-urls": peer, "initial-cluster": f"default={peer}", "data-dir": str(folder)}
    return [shutil.which("etcd") or str(ETCD), *_flags(told)]


def _apiserver(folder: Path, etcd_port: int, port: int) -> list[str]:
    told = {
        "etcd-servers": f"http://127.0.0.1:{etcd_port}",
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "endpoint-reconciler-type": "none",
        "secure-port": port,
        "tls-cert-file": folder / "tls.crt",
        "tls-private-key-file": folder / "tls.key",
        "token-auth-file": folder / "tokens.csv",
        "authorization-mode": "RBAC",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": folder / "accounts.key",
        "service-account-signing-key-file": folder / "accounts.key",
        "service-cluster-ip-range": "10.0.0.0/24",
        "audit-policy-file": folder / "audit.yaml",
        "audit-log-path": folder / "audit.log",
    }
    return [str(binary("kube-apiserver")), *_flags(told)]


def _controllers(folder: Path, kubeconfig: Path) -> list[str]:
    told = {
        "kubeconfig": kubeconfig,
        "controllers": ",".join(CONTROLLERS),
        "leader-elect": "false",
        "port": 0,
        "secure-port": 0,
        "service-account-private-key-file": folder / "accounts.key",
        "root-ca-file": folder / "tls.crt",
        "horizontal-pod-autoscaler-sync-period": "3s",
    }
    return [str(binary("kube-controller-manager")), *_flags(told)]


def _flags(told: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in told.items()]
