"""A Ray Serve application of two deployments, Prefill and Decode, behind one ingress, for tests of resizing it.

python bench/_ray_serve_app.py DASHBOARD_PORT HTTP_PORT    (in Ray Serve's environment)

No model runs, the replicas only wait. They export series through Ray with the names, labels and kinds of vLLM 0.32.0
(`vllm/v1/metrics/ray_wrappers.py`); the numbers in them are made up: PROMPT_TOKENS and OUTPUT_TOKENS for each request.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading

import ray
from ray import serve
from ray.util.metrics import Counter, Gauge, Histogram

FEW_CPUS = {"num_cpus": 0.1}
PROMPT_TOKENS, OUTPUT_TOKENS = 700, 40
MODEL = "made-up"
SECONDS = [0.01, 0.1, 0.5, 1.0, 2.5, 10.0]
LENGTHS = [100.0, 500.0, 1000.0, 5000.0]


class VllmSeries:
    """What vLLM's stat logger would say through Ray in this replica."""

    def __init__(self, source: str, num_generated: int) -> None:
        self._source, self._num_generated, self._num_running = source, num_generated, 0
        self._tags = {"model_name": MODEL, "engine": "0", "ReplicaId": serve.get_replica_context().replica_id.unique_id}
        keys = tuple(self._tags)
        self._by_source = Counter("vllm_prompt_tokens_by_source", tag_keys=(*keys, "source"))
        self._generated = Counter("vllm_generation_tokens", tag_keys=keys)
        self._running = Gauge("vllm_num_requests_running", tag_keys=keys)
        self._waiting = Gauge("vllm_num_requests_waiting", tag_keys=keys)
        self._kv = Gauge("vllm_kv_cache_usage_perc", tag_keys=keys)
        self._prompts = Histogram("vllm_request_prompt_tokens", boundaries=LENGTHS, tag_keys=keys)
        self._computed = Histogram("vllm_request_prefill_kv_computed_tokens", boundaries=LENGTHS, tag_keys=keys)
        self._steps = Histogram("vllm_iteration_tokens_total", boundaries=LENGTHS, tag_keys=keys)
        self._e2e = Histogram("vllm_e2e_request_latency_seconds", boundaries=SECONDS, tag_keys=keys)
        self._say()

    def _say(self) -> None:
        self._running.set(self._num_running, self._tags)
        self._waiting.set(0, self._tags)
        self._kv.set(min(1.0, 0.05 * self._num_running), self._tags)

    def begin(self) -> None:
        self._num_running += 1
        self._say()

    def end(self, took_s: float) -> None:
        self._num_running -= 1
        self._by_source.inc(PROMPT_TOKENS, self._tags | {"source": self._source})
        self._generated.inc(self._num_generated, self._tags)
        self._prompts.observe(PROMPT_TOKENS, self._tags)
        self._computed.observe(PROMPT_TOKENS if self._source == "local_compute" else 1, self._tags)
        for _ in range(self._num_generated):
            self._steps.observe(1, self._tags)
        self._e2e.observe(took_s, self._tags)
        self._say()


@serve.deployment(name="Prefill:fake", num_replicas=1, ray_actor_options=FEW_CPUS, graceful_shutdown_timeout_s=30)
class Prefill:
    def __init__(self) -> None:
        self._series = VllmSeries("local_compute", 1)

    async def __call__(self) -> str:
        self._series.begin()
        await asyncio.sleep(0.1)
        self._series.end(0.1)
        return "kv"


@serve.deployment(name="Decode:fake", num_replicas=2, ray_actor_options=FEW_CPUS, graceful_shutdown_timeout_s=30)
class Decode:
    def __init__(self) -> None:
        self._series = VllmSeries("external_kv_transfer", OUTPUT_TOKENS)

    async def __call__(self, kv: str) -> str:
        self._series.begin()
        await asyncio.sleep(1.0)
        self._series.end(1.0)
        return kv * 3


@serve.deployment(name="Ingress", ray_actor_options=FEW_CPUS)
class Ingress:
    def __init__(self, prefill: serve.handle.DeploymentHandle, decode: serve.handle.DeploymentHandle) -> None:
        self._prefill, self._decode = prefill, decode

    async def __call__(self) -> str:
        return str(await self._decode.remote(await self._prefill.remote()))


def main(dashboard_port: int, http_port: int) -> None:
    ray.init(
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard_port,
        _node_ip_address="127.0.0.1",
    )
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
