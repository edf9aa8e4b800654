"""Every process of a running deployment is replaced under open-loop load: what fails, what changes, how long it takes.

    python -m bench.rolling_upgrade [--from REV] [--kind paced|cpu] [--model DIR] [--rate 6] [--workers 4] [--json]

`--from` is the release that runs first, as a commit of this repository (checked out beside it for the run); without it
the present code is upgraded to a copy of itself with another build. Clients do not retry. Each answer is compared with
that of the same prompt on the undisturbed deployment; prompts carry a seed, so that a token depends on nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from _deployment import ROOT, deployment
from control.deployment import read_state
from engine.convert import make_tiny_model

NUM_PROMPTS = 24
WARM_S = 5.0
AFTER_S = 10.0


@dataclass(slots=True)
class Outcome:
    """What the clients saw."""

    num_sent: int = 0
    failures: list[str] = field(default_factory=list)
    num_changed: int = 0
    ttft_s: list[float] = field(default_factory=list)
    max_gap_s: list[float] = field(default_factory=list)


class Load:
    """Open-loop arrivals at `rate_rps`, exponential, of prompts 0 .. NUM_PROMPTS - 1."""

    def __init__(self, url: str, model: str, max_tokens: int, rate_rps: float) -> None:
        self.outcome = Outcome()
        self.expected: dict[int, str] = {}
        self._url = f"{url}/v1/completions"
        self._model = model
        self._max_tokens = max_tokens
        self._rate_rps = rate_rps
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=8)
        self._client = httpx.AsyncClient(timeout=120.0, limits=limits, trust_env=False)
        self._open: set[asyncio.Task[None]] = set()

    async def learn(self) -> None:
        """The answers of the undisturbed deployment."""
        for number in range(NUM_PROMPTS):
            text, problem, _ = await self._one(number)
            if problem:
                raise SystemExit(f"the undisturbed run failed: {problem}")
            self.expected[number] = text

    async def run(self, ends: asyncio.Event) -> None:
        """Until told to end; then waits for what is open."""
        random_ = random.Random(1)
        due_s = time.monotonic()
        while not ends.is_set():
            due_s += random_.expovariate(self._rate_rps)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(self._arrival(random_.randrange(NUM_PROMPTS)))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        await asyncio.gather(*self._open)
        await self._client.aclose()

    async def _arrival(self, number: int) -> None:
        outcome = self.outcome
        outcome.num_sent += 1
        text, problem, times = await self._one(number)
        if problem:
            outcome.failures.append(f"{time.strftime('%H:%M:%S')} {problem}")
        elif text != self.expected[number]:
            outcome.num_changed += 1
        if len(times) > 1:
            outcome.ttft_s.append(times[1] - times[0])
            outcome.max_gap_s.append(max((b - a for a, b in itertools.pairwise(times[1:])), default=0.0))

    async def _one(self, number: int) -> tuple[str, str, list[float]]:
        """(text, problem, times: sent, then each event) of one streamed answer."""
        body = {
            "model": self._model,
            "prompt": [3 + (number * 7 + at * at) % 200 for at in range(40 + 8 * number)],
            "max_tokens": self._max_tokens,
            "seed": number,
            "ignore_eos": True,
            "stream": True,
        }
        parts: list[str] = []
        times = [time.monotonic()]
        last = ""
        try:
            async with self._client.stream("POST", self._url, json=body) as answer:
                async for line in answer.aiter_lines():
                    if not line:
                        continue
                    last = line.removeprefix("data: ")
                    if answer.status_code != 200:
                        return "", f"{answer.status_code}: {last[:300]}", times
                    if last == "[DONE]":
                        continue
                    event = json.loads(last)
                    if "error" in event:
                        return "", last[:300], times
                    parts += [choice["text"] for choice in event["choices"]]
                    times.append(time.monotonic())
        except httpx.HTTPError as error:
            return "", repr(error), times
        return "".join(parts), "" if last == "[DONE]" else f"ended early: {last[:200]}", times


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The release that runs first: a commit, or this code with another build."""
    with tempfile.TemporaryDirectory(prefix="phaseline-old-") as folder:
        path = Path(folder) / "code"
        if revision:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(path), revision], check=True)
            try:
                yield path
            finally:
                subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(path)], check=False)
            return
        for package in ("control", "engine", "app", "data"):
            shutil.copytree(ROOT / package, path / package, ignore=shutil.ignore_patterns("__pycache__", "run"))
        with open(path / "engine" / "lifecycle.py", "a") as file:
            file.write("\n# Another build than the one that upgrades it.\n")
        yield path


async def longest_silence_s(url: str, ends: asyncio.Event) -> float:
    """How long the control API did not answer at a stretch."""
    longest_s, heard_s = 0.0, time.monotonic()
    async with httpx.AsyncClient(timeout=1.0, trust_env=False) as client:
        while not ends.is_set():
            with contextlib.suppress(httpx.HTTPError):
                await client.get(url)
                longest_s, heard_s = max(longest_s, time.monotonic() - heard_s), time.monotonic()
            await asyncio.sleep(0.05)
    return longest_s


async def measure(place: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    load = Load(place.gateway_url, arguments.model_id, arguments.max_tokens, arguments.rate)
    await load.learn()
    before = processes(place.run_dir)
    ends = asyncio.Event()
    running = asyncio.create_task(load.run(ends))
    api = place.environment["PHASELINE_API_PORT"]
    silence = asyncio.create_task(longest_silence_s(f"http://127.0.0.1:{api}/healthz", ends))
    await asyncio.sleep(WARM_S)
    started_s = time.monotonic()
    environment = {**place.environment, "PYTHONPATH": str(ROOT), "PHASELINE_NUM_GATEWAYS": "2"}
    upgrade = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli.main", "upgrade", "--json"),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=None if arguments.verbose else asyncio.subprocess.DEVNULL,
    )
    out, _ = await upgrade.communicate()
    took_s = time.monotonic() - started_s
    await asyncio.sleep(AFTER_S)
    ends.set()
    await running
    after = processes(place.run_dir)
    found = report(load.outcome, json.loads(out) if out else {}, took_s, before, after)
    return found | {"control_api_away_s": round(await silence, 1)}


def processes(run_dir: Path) -> dict[str, int]:
    """Process id by component."""
    state = read_state(run_dir)
    assert state is not None
    found = {name: each.root.pid for name, each in state.components.items() if each.root is not None}
    return {"supervisor": state.supervisor.pid, **found}


def report(
    seen: Outcome, notes: dict[str, Any], took_s: float, before: dict[str, int], after: dict[str, int]
) -> dict[str, Any]:
    def quantile(values: list[float], share: float) -> float | None:
        return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 3) if values else None

    return {
        "upgrade": notes.get("state", "did not begin"),
        "steps": [f"{each['name']}: {each['state']} {each['text']}".strip() for each in notes.get("steps", [])],
        "upgrade_s": round(took_s, 1),
        "requests": seen.num_sent,
        "failed": len(seen.failures),
        "changed": seen.num_changed,
        "ttft_p50_s": quantile(seen.ttft_s, 0.5),
        "ttft_p99_s": quantile(seen.ttft_s, 0.99),
        "longest_gap_p50_s": quantile(seen.max_gap_s, 0.5),
        "longest_gap_p99_s": quantile(seen.max_gap_s, 0.99),
        "longest_gap_max_s": quantile(seen.max_gap_s, 1.0),
        "same_process": sorted(name for name, pid in before.items() if after.get(name) == pid),
        "failures": seen.failures[:10],
    }


def in_words(found: dict[str, Any]) -> str:
    """One line for each thing found."""
    lines = [f"{name}: {value}" for name, value in found.items() if not isinstance(value, list)]
    return "\n".join([*lines, *(f"  {each}" for name in ("steps", "failures") for each in found[name])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="revision", default="", help="commit that runs first; default: this code")
    parser.add_argument("--kind", choices=("paced", "cpu"), default="paced")
    parser.add_argument("--model", default="", help="model folder for --kind cpu; default: a tiny one, made here")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--planes", type=int, default=1, help="planes; above 1 only where the first release knows them")
    parser.add_argument("--rate", type=float, default=6.0, help="arrivals per second")
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")
    parser.add_argument("--verbose", action="store_true", help="show the upgrade's progress")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {"drain_limit_s": 60, "paced_workers_per_process": 1}
    if arguments.planes > 1:
        settings["num_planes"] = arguments.planes
    up = ["--kind", arguments.kind, "--workers", str(arguments.workers)]
    arguments.model_id = "llama-3.1-70b-fp8"
    with contextlib.ExitStack() as stack:
        if arguments.kind == "cpu":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="phaseline-model-")))
            model = arguments.model or str(make_tiny_model(folder / "tiny", seed=1))
            arguments.model_id = Path(model).name
            up += ["--model", model]
        old = stack.enter_context(checkout(arguments.revision))
        place = stack.enter_context(deployment(*up, root=old, **settings))
        found = asyncio.run(measure(place, arguments))
    found = {"from": arguments.revision or "another build of this code", "workers": arguments.kind} | found
    print(json.dumps(found, indent=1) if arguments.json else in_words(found))
    if found["failed"] or found["changed"] or found["upgrade"] != "done":
        raise SystemExit(1)


if __name__ == "__main__":
    main()
