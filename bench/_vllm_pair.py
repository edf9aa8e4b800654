"""Two real vLLM servers over NIXL on this host, and `vllm-router` before them: started, waited for, ended by process.

Their environments are `_vllm_environment`'s.
"""

from __future__ import annotations

from pathlib import Path

from _deployment import free_ports
from _peers import PEERS, Peer
from _vllm_environment import MODEL, ROUTER, VLLM, VLLM_ROUTER, set_up

HOST = "127.0.0.1"
START_LIMIT_S = 400.0


class VllmPair(Peer):
    """`v0` and `v1`, one core each, at `urls`. `kv_roles`: as each is started; with `kv_both` its role is ours."""

    name = "vllm"
    model_id = MODEL.name
    what = f"vLLM {VLLM}, CPU build, NIXL, a random Llama of two layers"
    ready_limit_s = START_LIMIT_S
    frontend = "v0"

    def __init__(self, kv_roles: tuple[str, str] = ("kv_both", "kv_both")) -> None:
        super().__init__()
        self.num_prefill, self.num_decode = 1, 1
        self.urls: list[str] = []
        self._kv_roles = kv_roles

    @classmethod
    def set_up(cls) -> None:
        set_up()

    @classmethod
    def packages(cls) -> list[list[str]]:
        return []

    def start(self) -> None:
        ports = free_ports(4)
        self.urls = [f"http://{HOST}:{port}" for port in ports[:2]]
        for core in range(2):
            self._start(core, ports[core], ports[2 + core])
        self.until_whole()

    def _start(self, core: int, port: int, side_port: int) -> None:
        settings = {"UCX_NET_DEVICES": "lo", "UCX_TLS": "tcp,sm,self", "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST,
                    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": HOST, "PYTHONPATH": "",
                    "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": str(core),
                    "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port)}  # fmt: skip
        kv = f'{{"kv_connector":"NixlConnector","kv_role":"{self._kv_roles[core]}","kv_buffer_device":"cpu"}}'
        command = [PEERS / self.name / "bin" / "vllm", "serve", MODEL, "--served-model-name", MODEL.name,
                   "--host", HOST, "--port", port, "--dtype", "float32", "--max-model-len", 2048, "--enforce-eager",
                   "--block-size", 32, "--kv-transfer-config", kv]  # fmt: skip
        self.run(f"v{core}", list(map(str, command)), settings)

    def is_whole(self) -> bool:
        return all(self._answers(url) for url in self.urls)

    def _answers(self, url: str) -> bool:
        self.url = url
        return self.get("/v1/models") is not None

    def pid(self, name: str) -> int:
        return self._processes[name].pid


class VllmRouter(Peer):
    """`vllm-router` in prefill/decode mode before a pair that runs."""

    name = "vllm-router"
    model_id = MODEL.name
    what = f"vllm-router {VLLM_ROUTER}"

    def __init__(self, prefill: str, decode: str, binary: Path = ROUTER) -> None:
        super().__init__()
        self._targets, self._binary = (prefill, decode), binary

    @classmethod
    def packages(cls) -> list[list[str]]:
        return []

    def start(self) -> None:
        port, metrics = free_ports(2)
        self.url = f"http://{HOST}:{port}"
        prefill, decode = self._targets
        command = [self._binary, "--host", HOST, "--port", port, "--prometheus-port", metrics,
                   "--policy", "round_robin", "--vllm-pd-disaggregation", "--prefill", prefill, "--decode", decode,
                   "--kv-connector", "nixl"]  # fmt: skip
        self.run("frontend", list(map(str, command)))
        self.until_whole()

    def is_whole(self) -> bool:
        return self.get("/v1/models") is not None

    @property
    def pid(self) -> int:
        return self._processes["frontend"].pid
