"""NVIDIA Dynamo with real engines: one prefill and one decode worker of `dynamo.vllm` on CPUs, over NIXL."""

from __future__ import annotations

import statistics
import time

import httpx

from _counted_load import LoadSize
from _deployment import free_ports
from _dynamo_vllm_environment import VLLM, set_up
from _peer_dynamo import SizedDynamo, find_pages_by_port, watch_lines
from _peer_site import Site, Unmet, asked, resize
from _peers import DYNAMO, running
from _vllm_environment import MODEL
from control.traffic.client import Outcome
from control.types.commands import CommandState
from control.types.fleet import Capability

HOST = "127.0.0.1"
KV = '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_device":"cpu"}'
LOAD = LoadSize(num_clients=4, num_each=6, answer_tokens=30)
#: Of engines on CPUs: their start takes one minute on a quiet machine, and six while others work on both its cores.
START_LIMIT_S = 900.0
ANSWERS_WITHIN_S = 300.0
#: A page that is written while it is read may cost a token.
NEAR = 0.005
BUCKET_S = 3600  # all that this fleet has lived, in one
COUNTERS = {
    "computed": 'vllm:prompt_tokens_by_source_total{source="local_compute"}',
    "fetched": 'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}',
    "transfers": "vllm:nixl_xfer_time_seconds_count",
    "bytes": "vllm:nixl_bytes_transferred_sum",
    "failures": "vllm:nixl_num_failed_transfers_total",
}


class DynamoVllm(SizedDynamo):
    """`dynamo.vllm` where `Dynamo` has mock workers, one core each."""

    name = "dynamo-vllm"
    model_id = MODEL.name
    what = f"Dynamo, dynamo.vllm workers (vLLM {VLLM}, CPU build, NIXL), a random Llama of two layers"
    ready_limit_s = START_LIMIT_S

    def __init__(self) -> None:
        super().__init__()
        self.num_prefill, self.num_decode = 1, 1

    @classmethod
    def set_up(cls) -> None:
        SizedDynamo.set_up()
        set_up()

    def worker(self, role: str) -> tuple[list[str], dict[str, str]]:
        environment = {"UCX_NET_DEVICES": "lo", "UCX_TLS": "tcp,sm,self", "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST,
                       "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_HOST_IP": HOST, "VLLM_NO_USAGE_STATS": "1",
                       "VLLM_CPU_OMP_THREADS_BIND": "0" if role == "prefill" else "1", "PYTHONPATH": "",
                       "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_ports(1)[0])}  # fmt: skip
        command = ["dynamo.vllm", "--model", MODEL, "--served-model-name", self.model_id,
                   "--disaggregation-mode", role, "--dtype", "float32", "--max-model-len", 2048, "--enforce-eager",
                   "--block-size", 32, "--enable-mfu-metrics", "--kv-transfer-config", KV]  # fmt: skip
        return list(map(str, command)), environment

    def engine_counts(self, name: str) -> dict[str, float]:
        """vLLM's own counters on that worker's page; a series that is not there yet is 0."""
        page = httpx.get(f"http://{HOST}:{self.page_port(name)}/metrics", timeout=30).text
        rows = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("vllm:")]
        return {each: sum(float(value) for key, value in rows if _is(key, series)) for each, series in COUNTERS.items()}


def try_dynamo_vllm(site: Site) -> None:
    """Found, counted, split; a decode worker killed and brought back by a resize that its controller carries out."""
    begun_s = time.monotonic()
    with running(DynamoVllm()) as peer:
        assert isinstance(peer, DynamoVllm)
        site.note("one prefill and one decode engine", f"whole after {time.monotonic() - begun_s:.0f} s")
        site.attach(
            kind="dynamo",
            controller=f"dynamo={peer.url}?etcd={peer.etcd_url}&namespace=dynamo",
            model=str(MODEL),
            dtype="float32",
            peak_flops=1e11,
            peak_bytes_per_s=1e10,
            limit_s=START_LIMIT_S,
        )
        site.until_pools(prefill=1, decode=1)
        _find(site, peer)
        before = {name: peer.engine_counts(name) for name in ("prefill0", "decode0")}
        since_unix_s, outcomes = watch_lines(site, peer, LOAD, NEAR)
        _compare_latencies(site, since_unix_s, outcomes)
        _see_split(site, peer, before)
        _kill_and_resize(site, peer)


def _find(site: Site, peer: DynamoVllm) -> None:
    """By its card in etcd and by port alone: roles, versions, and whose page is whose."""
    workers = site.client.snapshot(site.name).workers
    found = {each.worker_id: (each.role.value, each.version, each.address) for each in workers}
    for name, (role, version, page) in found.items():
        site.note(f"found {role}", f"{name}, Dynamo {version or '?'}, its page {page}")
    true = {
        peer.worker_id(f"{role}0"): (role, DYNAMO, f"http://{HOST}:{peer.page_port(f'{role}0')}/metrics")
        for role in ("prefill", "decode")
    }
    if found != true:
        raise Unmet(f"found {found}, should be {true}")
    find_pages_by_port(site, peer)


def _compare_latencies(site: Site, since_unix_s: float, outcomes: list[Outcome]) -> None:
    """Side by side, judged by nobody: what an engine times begins when its request arrives there."""
    seen = statistics.median(each.ttft_s for each in outcomes if each.ttft_s is not None)
    shown = {role: _shown(site, "worker_ttft_p50_s", since_unix_s, role) for role in ("prefill", "decode")}
    site.note(
        "TTFT p50",
        f"clients {seen:.3f} s; shown prefill {shown['prefill']:.3f} s (its queue and the prompt), decode "
        f"{shown['decode']:.3f} s (KV fetch and a first step): the clients' is both, and the way through the frontend",
    )
    seen = statistics.median(each.tpot_s for each in outcomes if each.tpot_s is not None)
    gap = _shown(site, "worker_itl_p50_s", since_unix_s, "decode")
    site.note(
        "ITL p50",
        f"clients {1000 * seen:.1f} ms (mean of a request; pieces come bundled); shown decode {1000 * gap:.1f} ms "
        "(each gap, as exact as the bounds of vLLM's histogram)",
    )


def _shown(site: Site, metric: str, since_unix_s: float, role: str) -> float:
    """Of the last bucket that has a value."""
    found = site.client.series(metric, since_unix_s, step_s=BUCKET_S, by="role", fleet_id=site.name).series
    values = [point.value for line in found if line.label == role for point in line.points if point.value is not None]
    if not values:
        raise Unmet(f"no {metric} of role {role}")
    return values[-1]


def _see_split(site: Site, peer: DynamoVllm, before: dict[str, dict[str, float]]) -> None:
    """By vLLM's own counters: prompts are computed on one side, and fetched on the other."""
    after = {name: peer.engine_counts(name) for name in before}
    grown = {name: {each: after[name][each] - before[name][each] for each in COUNTERS} for name in before}
    prefill, decode = grown["prefill0"], grown["decode0"]
    site.note(
        "split, by vLLM's counters",
        f"prefill computed {prefill['computed']:.0f} prompt tokens; decode fetched {decode['fetched']:.0f} in "
        f"{decode['transfers']:.0f} NIXL transfers of {decode['bytes'] / 1e6:.1f} MB, {decode['failures']:.0f} failed, "
        f"and computed {decode['computed']:.0f}",
    )
    if not (prefill["computed"] == decode["fetched"] > 0 == decode["computed"] and decode["bytes"] > 0):
        raise Unmet(f"not split: {grown}")


def _kill_and_resize(site: Site, peer: DynamoVllm) -> None:
    """The only decode worker dies: a gap, not zeros. What brings it back is a resize of its pool, which is obeyed."""
    since_unix_s, dead = time.time(), peer.worker_id("decode0")
    body = {"model": peer.model_id, "prompt": "word " * 150, "max_tokens": 30, "stream": True}
    with asked(f"{peer.url}/v1/completions", body, 2) as load:
        site.until("answers", lambda: load.done >= 4, ANSWERS_WITHIN_S)
        peer.kill("decode0")
        killed_unix_s = time.time()
        seen_s = site.until_pools(prefill=1, decode=0)
    site.note("decode0 killed with -9", f"not ready after {seen_s:.1f} s; load meanwhile: {load.words()}")
    gone_s = site.until("no longer on ours", lambda: dead not in site.workers())
    site.note("off our list", f"{seen_s + gone_s:.1f} s after the kill")
    site.expect_refused("resize without permission", resize(decode=1))
    site.allow(Capability.RESIZE)
    site.until("its pool", lambda: site.pools() == {"prefill": 1, "decode": 0})
    begun_s = time.monotonic()
    command = site.order(resize(decode=1), wait=False)
    ended = site.client.wait(command.command_id, timeout_s=START_LIMIT_S)
    site.ended("resize decode 0 -> 1, obeyed by the controller", ended, CommandState.DONE, "", begun_s)
    site.until_pools(prefill=1, decode=1)
    served_s = site.until("its model", peer.is_whole)
    site.note(
        "its model", f"served by Dynamo {served_s:.1f} s after that (404 until then, though its worker is listed)"
    )
    born = peer.worker_id("decode0")
    with asked(f"{peer.url}/v1/completions", body, 2) as load:
        site.until("answers", lambda: load.done >= 4, ANSWERS_WITHIN_S)
        site.until("its line", lambda: any(_values(site, born, since_unix_s)))
    lines = site.line("decode_tokens", since_unix_s, "worker")
    last = max((at for at, value in lines.get(dead, []) if value is not None), default=0.0) - killed_unix_s
    site.note("line of the dead one", f"ends {last:+.1f} s after the kill, then a gap")
    site.note("back again", f"{born}, was {dead}; load afterwards: {load.words()}")
    if not -6 < last < 6:
        raise Unmet(f"the line of {dead} ends {last:.1f} s after it was killed: {lines.get(dead)}")
    if born == dead or load.failed:
        raise Unmet(f"{born} after {dead}: {load.words()}")


def _values(site: Site, worker_id: str, since_unix_s: float) -> list[float | None]:
    return [value for _, value in site.line("decode_tokens", since_unix_s, "worker").get(worker_id, [])]


def _is(key: str, series: str) -> bool:
    """Is `key`, with all its labels, of that series? `series`: a name, or a name with one label."""
    name, _, label = series.partition("{")
    return key.partition("{")[0] == name and label.rstrip("}") in key
