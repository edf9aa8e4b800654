"""The real systems that people run, attached to a real plane, watched, and changed through it: what was obeyed.

python bench/peers.py --setup                     makes their environments under data/run/peers, and ends
python bench/peers.py                             all of them
python bench/peers.py --only dynamo ray-serve

Dynamo's frontend with its mock workers and its virtual connector in etcd, sglang-router and smg with fake workers, a
Ray Serve application of two deployments, Debian's Prometheus, a Kubernetes API server with its controllers and no
node: no model runs there, what is tried is who obeys, who does not, and whether we say so. And engines with a small
random model, over NIXL on CPUs: a prefill and a decode worker of Dynamo's own (`dynamo.vllm`), and two vLLM servers
behind our gateway: flips under load, a killed server. A system that does not start is a failure, with its log.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from _kube_cluster import KubeCluster
from _peer_dynamo import SizedDynamo, try_dynamo
from _peer_dynamo_planner import PlannedDynamo, try_dynamo_planner
from _peer_dynamo_vllm import DynamoVllm, try_dynamo_vllm
from _peer_kubernetes import try_kubernetes
from _peer_prometheus import PromPeer, try_prometheus
from _peer_ray_serve import RayServe, try_ray_serve
from _peer_sglang_router import try_sglang_router, try_smg
from _peer_site import Site, Unmet, lone_plane
from _peer_vllm import try_vllm
from _peers import PeerFailed, SglangRouter, Smg
from _vllm_pair import VllmPair
from control.errors import ControlError

SYSTEMS: dict[str, tuple[type[Any], Callable[[Site], None]]] = {
    "dynamo": (SizedDynamo, try_dynamo),
    "dynamo-planner": (PlannedDynamo, try_dynamo_planner),
    "dynamo-vllm": (DynamoVllm, try_dynamo_vllm),
    "sglang-router": (SglangRouter, try_sglang_router),
    "smg": (Smg, try_smg),
    "ray-serve": (RayServe, try_ray_serve),
    "prometheus": (PromPeer, try_prometheus),
    "kubernetes": (KubeCluster, try_kubernetes),
    "vllm": (VllmPair, try_vllm),
}


@contextmanager
def attempted(name: str, results: dict[str, Any], site: Site) -> Iterator[None]:
    """Whatever goes wrong with one system is its result."""
    results[name] = {"ok": True, "findings": site.findings}
    try:
        yield
    except (Unmet, PeerFailed, ControlError, OSError) as error:
        results[name] |= {"ok": False, "problem": str(error)}
        print(f"  {name}: FAILED: {error}", flush=True)
        if not isinstance(error, Unmet | PeerFailed):
            traceback.print_exc()


def _is_set_up(name: str) -> bool:
    """One that cannot be says why, and keeps no other from it."""
    try:
        SYSTEMS[name][0].set_up()
        return True
    except (PeerFailed, OSError, subprocess.CalledProcessError) as error:
        print(f"{name}: NOT SET UP: {error}", flush=True)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--setup", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.setup:
        missing = [name for name in options.only if not _is_set_up(name)]
        return 1 if missing else 0
    results: dict[str, Any] = {}
    with lone_plane() as fleet:
        for name in options.only:
            print(f"{name}:", flush=True)
            site = Site(fleet, name)
            with attempted(name, results, site):
                SYSTEMS[name][1](site)
    if options.json:
        print(json.dumps(results))
    for name, each in results.items():
        print(f"{name:16} {'ran, all as expected' if each['ok'] else 'FAILED: ' + each['problem']}")
    return 0 if all(each["ok"] for each in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
