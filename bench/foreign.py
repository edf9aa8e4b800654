"""Our gateway before a real vLLM prefill/decode pair: roles flipped under load, beside `vllm-router` on the same pair.

python bench/peers.py --only vllm --setup         once: vLLM, vllm-router, aiperf, a random model
python bench/foreign.py                           starts the pair, and sends our own load
python bench/foreign.py --generator aiperf --seconds 300
python bench/foreign.py --urls http://127.0.0.1:8801 http://127.0.0.1:8802 --model FOLDER     a pair that runs already

The same open-loop plan (Poisson arrivals, fixed before the first answer; chat, greedy, streamed) is sent to each in
turn: our gateway, `vllm-router` twice for half of it, our gateway while the roles are flipped, so that no order favours
one of them. Failed: any error, or a stream without its end. Refused: 429, which is admission, told apart. Changed:
another text, number of tokens or ending than our run without flips. A swap of the pair is four flips, through mixed, so
that each pool that has work keeps a worker; each is a recorded command that drains, proves the new role with a canary,
and is waited for. The servers are not restarted or told anything.

The first gap of a stream holds the handoff where a gateway sends the first token of the prefill server, as ours does;
vllm-router waits for the decode server with it: so its first gap is short and its first token late.

With --kill PID, of a server of --urls: at the end, 8 long streams are opened twice, and in the second round that server
is killed once each has given some text. Lost: a stream with an error, or without its end; changed: another text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from _aiperf import aiperf
from _foreign_front import Front, NotServed, our_gateway
from _pair_load import killed, own_load, row
from _peers import PeerFailed, running
from _role_swaps import swapping
from _vllm_environment import MODEL, ROUTER
from _vllm_pair import VllmPair, VllmRouter
from control.traffic.client import Outcome
from control.traffic.report import quantiles

WARM_S = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """One plan: the same requests at the same times, or the first of them."""

    generator: str
    model: str
    rate_rps: float
    seconds: float

    def send(self, url: str, seconds: float) -> list[Outcome]:
        if self.generator == "aiperf":
            planned, sent = round(self.rate_rps * self.seconds), round(self.rate_rps * seconds)
            return aiperf(url, self.model, self.rate_rps, planned, sent)
        return own_load(url, self.model, self.rate_rps, seconds)


@contextmanager
def the_pair(options: argparse.Namespace) -> Iterator[list[str]]:
    if options.urls:
        yield list(options.urls)
        return
    with running(VllmPair()) as pair:
        assert isinstance(pair, VllmPair)
        yield pair.urls


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with the_pair(options) as urls, our_gateway(urls, options.model) as (ours, client):
        name = httpx.get(f"{urls[0]}/v1/models").json()["data"][0]["id"]
        load = Load(options.generator, name, options.rate, options.seconds)
        own_load(ours.url, name, options.rate, WARM_S)
        base = timed(rows, "phaseline", ours, load, options.seconds, [])
        if options.router.exists():
            with running(VllmRouter(*urls, options.router)) as router:
                assert isinstance(router, VllmRouter)
                own_load(router.url, name, options.rate, WARM_S)
                for _ in range(2):
                    timed(rows, "vllm-router", Front(router.url, router.pid), load, options.seconds / 2, base)
        with swapping(client, options.swaps, options.seconds) as swaps:
            timed(rows, "phaseline, swapped", ours, load, options.seconds, base)
        took = quantiles(swaps.flips_s)
        rows[-1] |= {"swaps": swaps.done, "flips": len(swaps.flips_s), "flip_p50_s": took.p50}
        rows[-1] |= {"flip_max_s": took.max, "flip_problem": swaps.problem}
        if options.kill is not None:
            rows[-1] |= asyncio.run(killed(ours.url, name, lambda: os.kill(options.kill, signal.SIGKILL)))
    return rows


def timed(
    rows: list[dict[str, Any]], system: str, front: Front, load: Load, seconds: float, base: list[Outcome]
) -> list[Outcome]:
    is_ours = system != "vllm-router"
    cpu_s, num_split = front.cpu_s, front.num_split if is_ours else 0
    outcomes = load.send(front.url, seconds)
    told = row(system, outcomes, base)
    told["tokens_per_s"] = told["tokens"] / seconds
    told["cpu_share"] = (front.cpu_s - cpu_s) / seconds  # of one core, by the process that takes the requests
    told["split"] = front.num_split - num_split if is_ours else None
    rows.append(told)
    print(f"{system}: {told['requests']} requests, {told['failed']} failed", file=sys.stderr)
    return outcomes


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:>20.3f}"
    return f"{'-' if value is None else value:>20}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", nargs=2, default=(), help="a prefill and a decode server that run already")
    parser.add_argument("--model", type=Path, default=MODEL, help="the model's folder; its tokenizer is used here")
    parser.add_argument("--router", type=Path, default=ROUTER, help="the program vllm-router; left out where it is not")
    parser.add_argument("--generator", choices=("own", "aiperf"), default="own")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=70.0, help="of each of our two runs")
    parser.add_argument(
        "--swaps", type=int, default=10, help="of the pair's roles during the last run; four flips each"
    )
    parser.add_argument("--kill", type=int, metavar="PID", help="of a server of --urls, to be killed at the end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        rows = measure(options)
    except (PeerFailed, NotServed) as error:
        raise SystemExit(str(error)) from error
    if options.json:
        print(json.dumps(rows))
        return
    keys = [key for key in rows[-1] if key not in ("errors", "refusals", "flip_problem")]
    for key in keys:
        print(f"{key:18}", *(shown(each.get(key)) for each in rows))
    for each in rows:
        for problem in (*each["errors"], *each["refusals"], each.get("flip_problem", "")):
            if problem:
                print(f"{each['system']}: {problem}")


if __name__ == "__main__":
    main()
