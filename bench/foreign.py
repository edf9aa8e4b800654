"""Our gateway before a real vLLM prefill/decode pair: roles flipped under load, beside `vllm-router` on the same pair.

phaseline bench foreign -- --urls http://127.0.0.1:8801 http://127.0.0.1:8802 --model FOLDER --router BIN/vllm-router
phaseline bench foreign -- --vllm-env ENV --model FOLDER          starts the pair itself (some minutes on a CPU)

The same open-loop plan (Poisson arrivals, fixed before the first answer; chat, greedy, streamed) is sent to each in
turn: our gateway without flips, `vllm-router`, our gateway while the roles are flipped. Failed: any error, a stream
without its end, or 429. Changed: another text, number of tokens or ending than the run without flips. A swap of the
pair is four flips, through mixed, so that each pool that has work keeps a worker; each is a recorded command that
drains, proves the new role with a canary, and is waited for. The servers are not restarted or told anything.

With --kill PID, of a server of --urls: at the end, 8 long streams are opened twice, and in the second round that server
is killed once each has given some text. Lost: a stream with an error, or without its end; changed: another text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from _deployment import ROOT, Deployment, deployment, free_ports
from _streams import Round, prompts
from _vllm_pair import vllm_pair, vllm_router
from control.auth import read_token
from control.client import PhaselineClient
from control.errors import ControlError
from control.traffic.client import Outcome, SendOptions, send_plan
from control.traffic.plan import Lengths, Profile, plan_profile, until
from control.traffic.report import fingerprint, quantiles
from control.types import Action, CommandRequest, CommandState, Role, Verb

FLEET = "pair"
SEED = 11
SWAP = ((0, Role.MIXED), (1, Role.MIXED), (0, Role.DECODE), (1, Role.PREFILL))
BACK = ((1, Role.MIXED), (0, Role.MIXED), (1, Role.DECODE), (0, Role.PREFILL))
WORKERS = ("v0", "v1")
READY_LIMIT_S = 60.0
NUM_STREAMS = 8
STREAM_TOKENS = 200
PIECES_BEFORE = 40  # that each stream has given when its server is killed


@dataclass(slots=True)
class Swaps:
    """The pair changes places, again and again: four flips in a row, each within its command."""

    wanted: int
    seconds: float
    flips_s: list[float] = field(default_factory=list)
    done: int = 0
    problem: str = ""

    def run(self, client: PhaselineClient, stop: threading.Event) -> None:
        """Evenly over the run."""
        begun_s = time.monotonic()
        for number, swap in zip(range(self.wanted), cycle((SWAP, BACK)), strict=False):
            if stop.wait(max(0.0, begun_s + (number + 0.5) * self.seconds / self.wanted - time.monotonic())):
                return
            for index, role in swap:
                try:
                    self.flips_s.append(flip(client, WORKERS[index], role))
                except (ControlError, RuntimeError) as error:  # told at the end of the run, which goes on
                    self.problem = f"swap {number + 1}, {WORKERS[index]} to {role}: {error}"
                    return
            self.done += 1


def flip(client: PhaselineClient, worker_id: str, role: Role) -> float:
    action = Action(verb=Verb.FLIP, worker_id=worker_id, role=role)
    deadline_s = time.monotonic() + 60.0
    begun_s = time.monotonic()
    while True:
        try:
            word = client.preview(CommandRequest(action=action)).needs_confirmation
            command = client.submit(CommandRequest(action=action, why="bench/foreign.py", confirmation=word))
            break
        except ControlError:  # a pool that holds work only for now
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)
    ended = client.wait(command.command_id, timeout_s=120)
    if ended.state is not CommandState.DONE:
        raise RuntimeError(f"{ended.state}: {ended.result}")
    return time.monotonic() - begun_s


@contextmanager
def our_gateway(urls: list[str], model: Path) -> Iterator[tuple[str, PhaselineClient]]:
    """A plane without workers, the pair attached and allowed, and the gateway before it."""
    with deployment("--fleet", "none") as own:
        targets = [f"{role}:{name}={url}" for role, name, url in zip(("prefill", "decode"), WORKERS, urls, strict=True)]
        own.phaseline("attach", FLEET, "--kind", "vllm", "--model", str(model), "--dtype", "float32", "--every", "1",
                      *(word for each in targets for word in ("--targets", each)))  # fmt: skip
        own.phaseline("allow", FLEET, "route", "flip", "resize", "drain")
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "control.cli.main", "serve", FLEET, "--tokenizer", model, "--port", port]
        with (own.run_dir / "serve.log").open("wb") as log:
            serving = subprocess.Popen(list(map(str, command)), env=own.environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            client = fleet_client(own)
            wait_ready(f"http://127.0.0.1:{port}", client, serving)
            policy = {"min_remote_prefill_tokens": 0, "max_local_output_tokens": 0, "min_fleet_devices": 2}
            split = Action(verb=Verb.SET_ROUTING, policy=policy)
            client.wait(client.submit(CommandRequest(action=split, why="all are split")).command_id, timeout_s=30)
            yield f"http://127.0.0.1:{port}", client
        finally:
            serving.terminate()
            serving.wait(60)


def fleet_client(own: Deployment) -> PhaselineClient:
    urls = (f"http://127.0.0.1:{own.environment['PHASELINE_API_PORT']}",)
    return PhaselineClient(urls, read_token(own.run_dir, "operator"), 30.0, fleet_id=FLEET)


def wait_ready(url: str, client: PhaselineClient, serving: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline_s and serving.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200 and "ready" in client.snapshot().health_text:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"our gateway was not ready within {READY_LIMIT_S:g} s")


def load(url: str, model: str, rate_rps: float, seconds: float) -> list[Outcome]:
    profile = Profile(name="pair", help="", rate_rps=rate_rps, prompt=Lengths(median=120, p99=500, low=40, high=900),
                      output=Lengths(median=24, p99=64, low=4, high=96))  # fmt: skip
    outcomes: list[Outcome] = []
    plan = until(plan_profile(profile, seed=SEED), seconds)
    options = SendOptions(base_url=url, model=model, keep_text=True, timeout_s=120.0)
    asyncio.run(send_plan(plan, options, outcomes.append, asyncio.Event()))
    return sorted(outcomes, key=lambda each: each.index)


def row(name: str, outcomes: list[Outcome], seconds: float, base: list[Outcome]) -> dict[str, Any]:
    known = {each.index: fingerprint(each) for each in base if not each.error}
    compared = [each for each in outcomes if each.index in known and not each.error]
    ttft, gaps = quantiles(each.ttft_s for each in outcomes), quantiles(g for each in outcomes for g in each.gaps_s)
    firsts = quantiles(each.gaps_s[0] for each in outcomes if each.gaps_s)
    laters = quantiles(g for each in outcomes for g in each.gaps_s[1:])
    e2e, span_s = quantiles(each.e2e_s for each in outcomes), max(seconds, 1e-9)
    return {
        "system": name,
        "requests": len(outcomes),
        "failed": sum(bool(each.error) for each in outcomes),
        "compared": len(compared),
        "changed": sum(fingerprint(each) != known[each.index] for each in compared),
        "ttft_p50_s": ttft.p50,
        "ttft_p99_s": ttft.p99,
        "gap_p50_s": gaps.p50,
        "gap_p99_s": gaps.p99,
        "first_gap_p50_s": firsts.p50,
        "first_gap_p99_s": firsts.p99,
        "later_gap_p50_s": laters.p50,
        "later_gap_p99_s": laters.p99,
        "e2e_p50_s": e2e.p50,
        "e2e_p99_s": e2e.p99,
        "tokens_per_s": sum(each.output_tokens for each in outcomes) / span_s,
        "split": sum("rule=remote" in each.route for each in outcomes),
        "errors": sorted({each.error for each in outcomes if each.error})[:3],
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    logs = Path(tempfile.mkdtemp(prefix="phaseline-foreign-"))
    with vllm_pair(options.urls, options.vllm_env, options.model, logs) as urls:
        name = httpx.get(f"{urls[0]}/v1/models").json()["data"][0]["id"]
        with our_gateway(urls, options.model) as (url, client):
            load(url, name, options.rate, 5.0)  # warm
            base = timed(rows, "phaseline", url, name, options, [])
            if options.router is not None:
                with vllm_router(options.router, *urls, logs) as router_url:
                    timed(rows, "vllm-router", router_url, name, options, base)
            swaps = Swaps(options.swaps, options.seconds)
            stop = threading.Event()
            thread = threading.Thread(target=swaps.run, args=(client, stop))
            thread.start()
            timed(rows, "phaseline, swapped", url, name, options, base)
            stop.set()
            thread.join()
            took = quantiles(swaps.flips_s)
            rows[-1] |= {"swaps": swaps.done, "flips": len(swaps.flips_s), "flip_p50_s": took.p50}
            rows[-1] |= {"flip_max_s": took.max, "flip_problem": swaps.problem}
            if options.kill is not None:
                rows[-1] |= asyncio.run(killed(url, name, options.kill))
    return rows


async def killed(url: str, model: str, pid: int) -> dict[str, Any]:
    """What greedy streams lose with the server that gives them."""
    texts = prompts("Kill", NUM_STREAMS, (1, 4))
    expected = await Round(url, model, texts, STREAM_TOKENS, 120.0, temperature=0).ended()
    streams = Round(url, model, texts, STREAM_TOKENS, 120.0, temperature=0)
    await streams.until_heard(PIECES_BEFORE, 60.0)
    os.kill(pid, signal.SIGKILL)
    heard = await streams.ended()
    return {
        "killed_under": len(heard),
        "kill_lost": sum(bool(each.problem) for each in heard),
        "kill_changed": sum(a.text != b.text for a, b in zip(heard, expected, strict=True) if not a.problem),
        "kill_gap_max_s": max(each.max_gap_s for each in heard),
    }


def timed(
    rows: list[dict[str, Any]], system: str, url: str, model: str, options: argparse.Namespace, base: list[Outcome]
) -> list[Outcome]:
    begun_s = time.monotonic()
    outcomes = load(url, model, options.rate, options.seconds)
    rows.append(row(system, outcomes, time.monotonic() - begun_s, base))
    print(f"{system}: {rows[-1]['requests']} requests, {rows[-1]['failed']} failed", file=sys.stderr)
    return outcomes


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:>20.3f}"
    return f"{'-' if value is None else value:>20}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", nargs=2, default=(), help="a prefill and a decode server that run already")
    parser.add_argument("--vllm-env", type=Path, help="environment with vllm and nixl, to start a pair from")
    parser.add_argument("--model", type=Path, required=True, help="the model's folder; its tokenizer is used here")
    parser.add_argument("--router", type=Path, help="the program vllm-router; without it, it is left out")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=70.0, help="of each of the runs")
    parser.add_argument(
        "--swaps", type=int, default=10, help="of the pair's roles during the last run; four flips each"
    )
    parser.add_argument("--kill", type=int, metavar="PID", help="of a server of --urls, to be killed at the end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options)
    if options.json:
        print(json.dumps(rows))
        return
    keys = [key for key in rows[-1] if key not in ("errors", "flip_problem")]
    for key in keys:
        print(f"{key:14}", *(shown(each.get(key)) for each in rows))
    for each in rows:
        for problem in (*each["errors"], each.get("flip_problem", "")):
            if problem:
                print(f"{each['system']}: {problem}")


if __name__ == "__main__":
    main()
