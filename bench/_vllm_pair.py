"""Two real vLLM servers over NIXL on this host, and `vllm-router` before them: started, waited for, ended by process.

An environment of its own holds vLLM (see docs/fleets.md); servers that run already are used as they are.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from _deployment import free_ports

START_LIMIT_S = 400.0
ROUTER_LIMIT_S = 60.0
KV = '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_device":"cpu"}'


@contextlib.contextmanager
def vllm_pair(urls: Sequence[str], environment: Path | None, model: Path, logs: Path) -> Iterator[list[str]]:
    """`urls` as they are; without any, a pair of our own from `environment`."""
    if urls:
        yield list(urls)
        return
    if environment is None:
        raise SystemExit("give --urls PREFILL DECODE of running servers, or --vllm-env FOLDER to start them")
    ports = free_ports(4)
    servers = [_start(environment, model, core, ports[core], ports[2 + core], logs) for core in range(2)]
    try:
        found = [f"http://127.0.0.1:{port}" for port in ports[:2]]
        for url, server in zip(found, servers, strict=True):
            _wait(f"{url}/v1/models", server, START_LIMIT_S)
        yield found
    finally:
        _end(servers)


def _start(environment: Path, model: Path, core: int, port: int, side_port: int, logs: Path) -> subprocess.Popen[bytes]:
    host = "127.0.0.1"
    settings = {"UCX_NET_DEVICES": "lo", "UCX_TLS": "tcp,sm,self", "VLLM_NIXL_SIDE_CHANNEL_HOST": host,
                "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": host, "VLLM_NO_USAGE_STATS": "1",
                "VLLM_CPU_OMP_THREADS_BIND": str(core), "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port)}  # fmt: skip
    command = [environment / "bin" / "vllm", "serve", model, "--served-model-name", model.name, "--host", host,
               "--port", port, "--dtype", "float32", "--max-model-len", 2048, "--enforce-eager", "--block-size", 32,
               "--kv-transfer-config", KV]  # fmt: skip
    return _run(command, logs / f"vllm{core}.log", settings)


@contextlib.contextmanager
def vllm_router(binary: Path, prefill: str, decode: str, logs: Path) -> Iterator[str]:
    """Its address, once it answers."""
    port, metrics = free_ports(2)
    command = [binary, "--host", "127.0.0.1", "--port", port, "--prometheus-port", metrics, "--policy", "round_robin",
               "--vllm-pd-disaggregation", "--prefill", prefill, "--decode", decode,
               "--kv-connector", "nixl"]  # fmt: skip
    router = _run(command, logs / "vllm-router.log", {})
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/v1/models", router, ROUTER_LIMIT_S)
        yield url
    finally:
        _end([router])


def _run(command: Sequence[object], log: Path, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(list(map(str, command)), env={**os.environ, **settings}, stdout=out, stderr=out)


def _wait(url: str, process: subprocess.Popen[bytes], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2.0).status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"{url} did not answer within {limit_s:g} s: see the logs")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for each in processes:
        each.terminate()
    for each in processes:
        try:
            each.wait(20)
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()
