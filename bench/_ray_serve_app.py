"""A Ray Serve application of two deployments, Prefill and Decode, behind one ingress, for tests of resizing it.

python bench/_ray_serve_app.py DASHBOARD_PORT HTTP_PORT    (in Ray Serve's environment)
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading

import ray
from ray import serve

FEW_CPUS = {"num_cpus": 0.1}


@serve.deployment(name="Prefill:fake", num_replicas=1, ray_actor_options=FEW_CPUS, graceful_shutdown_timeout_s=30)
class Prefill:
    async def __call__(self) -> str:
        await asyncio.sleep(0.1)
        return "kv"


@serve.deployment(name="Decode:fake", num_replicas=2, ray_actor_options=FEW_CPUS, graceful_shutdown_timeout_s=30)
class Decode:
    async def __call__(self, kv: str) -> str:
        await asyncio.sleep(1.0)
        return kv * 3


@serve.deployment(name="Ingress", ray_actor_options=FEW_CPUS)
class Ingress:
    def __init__(self, prefill: serve.handle.DeploymentHandle, decode: serve.handle.DeploymentHandle) -> None:
        self._prefill, self._decode = prefill, decode

    async def __call__(self) -> str:
        return str(await self._decode.remote(await self._prefill.remote()))


def main(dashboard_port: int, http_port: int) -> None:
    ray.init(num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=dashboard_port)
    serve.start(http_options={"host": "127.0.0.1", "port": http_port})
    serve.run(Ingress.bind(Prefill.bind(), Decode.bind()), name="pd", external_scaler_enabled=True)
    print("ready", flush=True)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
