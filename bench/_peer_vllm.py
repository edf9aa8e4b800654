"""vLLM for real: two servers over NIXL on CPUs behind our gateway, which gives them their roles."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import httpx

from _foreign_front import NotServed, served
from _pair_load import killed, own_load, row
from _peer_site import Site, Unmet
from _peers import PeerFailed, running
from _role_swaps import WORKERS, swapping
from _vllm_environment import MODEL
from _vllm_pair import VllmPair
from control.traffic.client import Outcome
from control.types.fleet import Capability

RATE_RPS = 3.0
SECONDS = 20.0  # of the run without flips, and of that with them
NUM_SWAPS = 2  # there and back
LINES = ("prefill_flops_per_s", "decode_bytes_per_s")


def try_vllm(site: Site) -> None:
    """Both lines; a swap and back under load; a server killed under greedy streams; detached, the other one goes on."""
    with running(VllmPair()) as pair:
        assert isinstance(pair, VllmPair)
        roles = ("prefill", "decode")
        targets = tuple(f"{role}:{name}={url}" for role, name, url in zip(roles, WORKERS, pair.urls, strict=True))
        site.attach(kind="vllm", targets=targets, model=str(MODEL), dtype="float32")
        site.until_pools(prefill=1, decode=1)
        alone = _said_alone(pair.urls[0])
        site.allow(Capability.ROUTE, Capability.FLIP, Capability.RESIZE, Capability.DRAIN)
        plane = site.fleet
        try:
            with served(site.name, MODEL, plane.environment, site.client, plane.run_dir / "serve.log") as front:
                _swapped(site, front.url, _lines(site, front.url))
                _dies(site, front.url, pair)
        except NotServed as error:
            raise PeerFailed(str(error)) from error
        site.client.detach(site.name)
        if _said_alone(pair.urls[0]) != alone:
            raise Unmet("the server that is left says something else than before it was attached")
        site.note("detached", f"v0 still serves, pid {pair.pid('v0')}, the same answer as before")


def _lines(site: Site, url: str) -> list[Outcome]:
    """Requests over the pair, and what they leave on the chart."""
    begun_unix_s = time.time()
    outcomes = own_load(url, MODEL.name, RATE_RPS, SECONDS)
    told = row("base", outcomes, [])
    site.note("requests, split", f"{told['requests']}, {told['failed']} failed, TTFT p50 {told['ttft_p50_s']:.3f} s")
    _all_well(told)
    for metric in LINES:
        site.until(metric, partial(_has_points, site, metric, begun_unix_s))
    site.note("both lines", f"{' and '.join(LINES)} have points above 0, from their pages")
    return outcomes


def _has_points(site: Site, metric: str, since_unix_s: float) -> bool:
    found = site.client.series(metric, since_unix_s, step_s=1, fleet_id=site.name).series
    return any(point.value for line in found for point in line.points)


def _swapped(site: Site, url: str, base: list[Outcome]) -> None:
    with swapping(site.client, NUM_SWAPS, SECONDS) as swaps:
        outcomes = own_load(url, MODEL.name, RATE_RPS, SECONDS)
    told = row("swapped", outcomes, base)
    flips = f"{len(swaps.flips_s)} flips, the longest {max(swaps.flips_s, default=0.0):.1f} s"
    counts = f"{told['requests']} requests, {told['failed']} failed, {told['changed']} of {told['compared']} changed"
    site.note("places changed, there and back, under load", f"{flips}; {counts}")
    if swaps.done != NUM_SWAPS:
        raise Unmet(f"{swaps.done} of {NUM_SWAPS} swaps: {swaps.problem}")
    _all_well(told)


def _dies(site: Site, url: str, pair: VllmPair) -> None:
    told = asyncio.run(killed(url, MODEL.name, lambda: pair.kill("v1")))
    site.note("v1 killed with -9 under greedy streams", ", ".join(f"{name} {each}" for name, each in told.items()))
    if told["kill_lost"] or told["kill_changed"]:
        raise Unmet(f"streams did not survive their server: {told}")


def _all_well(told: dict[str, object]) -> None:
    if told["failed"] or told["refused_429"] or told["changed"]:
        raise Unmet(f"requests failed or changed: {told}")


def _said_alone(url: str) -> str:
    """What one server says by itself."""
    body = {"model": MODEL.name, "prompt": "The pair is", "max_tokens": 8, "temperature": 0}
    return str(
        httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()["choices"][0]["text"]
    )
