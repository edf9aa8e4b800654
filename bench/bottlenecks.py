"""Is the product's bottleneck the resource of which one more unit raises goodput most? Found by trying it.

python bench/bottlenecks.py                                 38 mixes of traffic and fleet on virtual time; half held out
python bench/bottlenecks.py --real --mixes 16 40 42 44 46  in real processes, in real time: a gateway is short of CPU

For each mix the fleet as it is, and with one more prefill worker, one more decode worker's KV, one more decode worker's
bandwidth, links twice as fast, one more gateway, and all of these, serve the same arrivals. Truth: what raises goodput
(judged by the client, of all arrivals) by at least 5% of the offered requests, most; two when the second best raises it
by at least three quarters of that, or when nothing alone does but all together do; else none. The verdict is what the
product says of the fleet as it is when the last request has arrived: through its API with --real.

Workers are paced (simulated): the product's own code and sockets, with modelled step times. On virtual time nothing is
late, however busy the machine is, so a result is the same each time; a gateway's CPU costs no time there, so the mixes
in which it is scarce are only in --real, where the kernel gives each gateway its share of a core and no more (deadline
class: this needs CAP_SYS_NICE). Self-consistent: the capacities of all variants come from one cost model, of which the
product knows nothing; only what a gateway's CPU can do is the machine's own.

Regret is the goodput, as a share of the offered requests, that following the verdict would miss.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop

from _mix_site import Sites, running
from _mixes import TIGHT, Mix, mix_of
from _paced_pool import body_of
from control.types.bottleneck import Bottleneck, Resource
from overload import Answer, ask

SEED: Final = 8
NUM_MIXES: Final = 2 * len(TIGHT)
SECONDS: Final = 20.0
TAIL_LIMIT_S: Final = 25.0
LEAST_GAIN: Final = 0.05
ALIKE: Final = 0.75
KINDS: Final = ("none", *(each.value for each in Resource), "two", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One mix as it was tried. `good`: share of the offered requests, by variant."""

    number: int
    tight: tuple[str, ...]
    num_offered: int
    good: dict[str, float]
    verdict: dict[str, Any]
    lateness_s: float = 0.0  # of the load itself, in real time

    @property
    def is_held_out(self) -> bool:
        return self.number % 2 == 1

    @property
    def gains(self) -> dict[str, float]:
        return {each.value: self.good[each.value] - self.good["as it is"] for each in Resource}


def truth_of(found: Found) -> tuple[str, tuple[str, ...]]:
    """Kind, and the resources that are alike; none are named when only all together help."""
    ranked = sorted(found.gains, key=lambda each: -found.gains[each])
    best = found.gains[ranked[0]]
    if best < LEAST_GAIN:
        together = found.good["all"] - found.good["as it is"]
        return ("two", ()) if together >= 2 * LEAST_GAIN else ("none", ())
    alike = tuple(each for each in ranked if found.gains[each] >= max(LEAST_GAIN, ALIKE * best))
    return ("two" if len(alike) > 1 else alike[0]), alike


def is_right(found: Found) -> bool:
    """Two are right when both are among those that are alike."""
    kind, alike = truth_of(found)
    if found.verdict["kind"] != kind:
        return False
    return kind != "two" or not alike or set(found.verdict["resources"]) <= set(alike)


def regret_of(found: Found) -> float:
    """Goodput that one more unit of what the verdict names first would miss, of what the best unit brings."""
    named = found.verdict["resources"]
    best = max(*found.gains.values(), 0.0)
    return best - (max(0.0, found.gains[named[0]]) if named else 0.0)


# --- trying --------------------------------------------------------------------------------------------------------


async def offer(mix: Mix, sites: Sites, seconds: float) -> tuple[dict[str, list[Answer]], Bottleneck, float]:
    """The same arrivals to every variant at the same time; the verdict at their end; how late we were ourselves."""
    answers: dict[str, list[Answer]] = {name: [] for name in sites.urls}
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=seconds + TAIL_LIMIT_S)
    late_s = 0.0
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began_s = time.monotonic()
        tasks: list[asyncio.Task[None]] = []
        for number, (at_s, prompt_tokens) in enumerate(mix.arrivals(seconds)):
            await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
            late_s = max(late_s, time.monotonic() - began_s - at_s)
            body = body_of(mix, number, prompt_tokens)
            for name, urls in sites.urls.items():
                answer = Answer("k", "", prompt_tokens, at_s)
                answers[name].append(answer)
                url = urls[number % len(urls)]
                tasks.append(asyncio.create_task(ask(session, body, answer, began_s + at_s, url)))
        told = await asyncio.to_thread(sites.bottleneck)
        _, left = await asyncio.wait(tasks, timeout=TAIL_LIMIT_S)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return answers, told, late_s


def try_really(mix: Mix, seconds: float) -> Found:
    with running(mix) as sites:
        answers, told, late_s = uvloop.run(offer(mix, sites, seconds))
    good = {name: sum(each.is_good for each in found) / len(found) for name, found in answers.items()}
    num_offered = len(answers["as it is"])
    return found_of(mix, {"good": good, "num_offered": num_offered, "verdict": asdict(told)}, late_s)


def try_virtually(mix: Mix, seed: int, seconds: float) -> Found:
    """In a process of its own, whose clock is another one."""
    script = Path(__file__).with_name("_virtual_site.py")
    command = [sys.executable, str(script), str(mix.number), str(seed), str(seconds)]
    return found_of(mix, json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def found_of(mix: Mix, tried: dict[str, Any], late_s: float = 0.0) -> Found:
    return Found(
        number=mix.number,
        tight=mix.tight,
        num_offered=tried["num_offered"],
        good={name: round(share, 4) for name, share in tried["good"].items()},
        verdict=tried["verdict"],
        lateness_s=round(late_s, 3),
    )


def try_all(options: argparse.Namespace) -> list[Found]:
    """Mixes on virtual time share the machine; those in real time have it alone."""
    mixes = [mix_of(number, options.seed) for number in options.mixes]
    if not options.real:
        mixes = [each for each in mixes if each.site.cpu_share == 1.0]
    found = []
    with ThreadPoolExecutor(1 if options.real else options.at_once) as pool:
        run = try_really if options.real else partial(try_virtually, seed=options.seed)
        for each in pool.map(partial(run, seconds=options.seconds), mixes):
            found.append(each)
            print(row_of(each), file=sys.stderr, flush=True)
    return found


# --- telling -------------------------------------------------------------------------------------------------------


def row_of(found: Found) -> str:
    kind, alike = truth_of(found)
    gains = " ".join(f"{name[:3]}{gain:+.2f}" for name, gain in found.gains.items())
    mark = "ok   " if is_right(found) else "WRONG"
    told = "+".join(found.verdict["resources"]) or found.verdict["kind"]
    return (
        f"{found.number:2d} {'held' if found.is_held_out else 'seen'} {mark} good {found.good['as it is']:.2f} {gains} "
        f"all{found.good['all'] - found.good['as it is']:+.2f} | truth {'+'.join(alike) or kind}, verdict {told} "
        f"({'+'.join(found.tight) or 'nothing'} drawn tight)"
    )


def summary(found: list[Found]) -> dict[str, Any]:
    table: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for each in found:
        table[truth_of(each)[0]][each.verdict["kind"]] += 1
    regrets = [regret_of(each) for each in found]
    return {
        "mixes": len(found),
        "right": sum(is_right(each) for each in found),
        "mean_regret": round(sum(regrets) / len(regrets), 4) if regrets else None,
        "worst_regret": round(max(regrets), 4) if regrets else None,
        "confusion": {truth: dict(row) for truth, row in table.items() if row},
    }


def show(title: str, told: dict[str, Any]) -> None:
    print(f"\n{title}: {told['right']} of {told['mixes']} right; goodput missed by following the verdict: "
          f"mean {told['mean_regret']}, worst {told['worst_regret']} of the offered")  # fmt: skip
    print("  truth \\ verdict".ljust(20) + "".join(kind[:9].rjust(10) for kind in KINDS))
    for truth, row in told["confusion"].items():
        print(f"  {truth}".ljust(20) + "".join(str(row.get(kind, "")).rjust(10) for kind in KINDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, nargs="+", default=list(range(NUM_MIXES)))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of arrivals, for each mix")
    parser.add_argument("--real", action="store_true", help="in real processes, in real time")
    parser.add_argument("--at-once", type=int, default=2, help="mixes on virtual time at the same time")
    parser.add_argument("--out", type=Path, help="keep what was found, with all evidence")
    parser.add_argument("--json", action="store_true", help="in one line")
    options = parser.parse_args()
    found = try_all(options)
    if options.out:
        options.out.write_text(json.dumps([asdict(each) for each in found]))
    parts = {
        "seen while the rules were written": [each for each in found if not each.is_held_out],
        "held out": [each for each in found if each.is_held_out],
    }
    told = {name: summary(part) for name, part in parts.items()}
    if options.json:
        print(json.dumps({"bottlenecks": {**told, "seed": options.seed, "seconds": options.seconds}}))
        return
    for each in found:
        print(row_of(each))
    for name, part in told.items():
        show(name, part)


if __name__ == "__main__":
    main()
