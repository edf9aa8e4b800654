"""How true the meter's numbers are, beside vLLM's formula on the same steps, and what all metering costs.

    python -m bench.meter [--mixes 200] [--seed 1] [--steps 20] [--requests 4000] [--model FOLDER] [--json]

1. Random steps of a real engine core (prefill chunks, decode batches, prefix hits): FLOPs and bytes of each phase as
   the meter's page has them, against a count of torch's own operators that shares no code with it. All that is counted
   is known from shapes and masks, so the products are not carried out. vLLM's formula is counted per phase here; its
   own counters add the phases up. Its bytes include activations, and are compared with operators' bytes that do too.
2. The meter's calls as a share of the step that they count.
3. A gateway in front of null workers, with a plane that takes its records: how much of its CPU time goes into request
   records, times of tokens, beats and metrics (`bench._timed_gateway`). Null workers answer at once, so this is
   the share of a gateway that does nothing but pass on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import uvloop

from bench._recording_cost import RecordingCost, recording_costs
from engine.bench._meter_cost import StepCost, step_costs
from engine.bench._mixes import Counted, CountedRunner, steps
from engine.bench._setup import model_folder
from engine.types import Phase

#: Prefill budgets of a step, an equal share of the mixes each.
BUDGETS = (64, 256, 1024, 4096)
AIM = 0.001
NUM_BLOCKS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One phase over all mixes that had it: the worst single step, and all of them together."""

    phase: str
    num_steps: int
    num_cached_tokens: int
    flops_worst: float
    bytes_worst: float
    vllm_flops_worst: float
    vllm_bytes_worst: float
    vllm_flops_total: float
    vllm_bytes_total: float
    left_out_flops_worst: float  # neither linear nor attention, at one FLOP per value


def count_mixes(folder: Path, num_mixes: int, seed: int) -> list[Counted]:
    """Phases of `num_mixes` steps."""
    runner = CountedRunner.load(folder, NUM_BLOCKS, mode="fast")
    runner.count(carry_out=False)
    dice, found = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="phaseline-bench-") as pages:
        for number, budget in enumerate(BUDGETS):
            share = (num_mixes + number) // len(BUDGETS)
            mixes = steps(runner, Path(pages) / f"{budget}.meter", dice, budget)
            found += [each for step in islice(mixes, share) for each in step]
    return found


def truth_of(phase: Phase, counted: Sequence[Counted]) -> Truth:
    own = [each for each in counted if each.phase is phase]

    def worst(errors: list[float]) -> float:
        return max(errors, key=abs, default=0.0)

    return Truth(
        phase=phase.value,
        num_steps=len(own),
        num_cached_tokens=sum(each.num_cached for each in own),
        flops_worst=worst([each.meter_flops / each.ops.flops - 1 for each in own]),
        bytes_worst=worst([each.meter_bytes / each.ops.bytes - 1 for each in own]),
        vllm_flops_worst=worst([each.vllm.flops / each.ops.flops - 1 for each in own]),
        vllm_bytes_worst=worst([each.vllm.bytes / each.ops.bytes_with_activations - 1 for each in own]),
        vllm_flops_total=sum(each.vllm.flops for each in own) / sum(each.ops.flops for each in own) - 1,
        vllm_bytes_total=sum(each.vllm.bytes for each in own) / sum(each.ops.bytes_with_activations for each in own)
        - 1,
        left_out_flops_worst=worst([each.ops.other_flops / each.ops.flops for each in own]),
    )


def truth_table(found: Sequence[Truth], num_mixes: int) -> str:
    lines = [
        f"{num_mixes} mixes against torch's operators (aim: {AIM:.1%} at worst)",
        f"{'':8}{'steps':>6}{'FLOPs':>10}{'bytes':>10}{'vLLM FLOPs':>22}{'vLLM bytes':>22}{'left out':>10}",
        f"{'':8}{'':>6}{'worst':>10}{'worst':>10}{'worst':>11}{'total':>11}{'worst':>11}{'total':>11}{'worst':>10}",
    ]
    lines += [
        f"{each.phase:8}{each.num_steps:6d}{each.flops_worst:10.4%}{each.bytes_worst:10.4%}"
        f"{each.vllm_flops_worst:+11.2%}{each.vllm_flops_total:+11.2%}{each.vllm_bytes_worst:+11.2%}"
        f"{each.vllm_bytes_total:+11.2%}{each.left_out_flops_worst:10.3%}"
        for each in found
    ]
    return "\n".join(lines)


def cost_table(costs: Sequence[StepCost]) -> str:
    lines = ["Metering as a share of the step (aim: under 1%)"]
    lines += [
        f"{each.step:28}{each.step_s * 1e3:10.2f} ms{each.meter_s * 1e6:9.1f} us{each.share:10.4%}" for each in costs
    ]
    return "\n".join(lines)


def recording_table(costs: Sequence[RecordingCost]) -> str:
    lines = ["Recording as a share of the gateway's CPU time (aim: under 1%)"]
    for each in costs:
        parts = ", ".join(f"{name} {spent_s / each.cpu_s:.2%}" for name, spent_s in each.parts_s.items())
        us = each.cpu_s / each.num_requests * 1e6
        lines += [
            f"{each.load:22}{each.num_requests:6d} requests, {each.num_records} records, {us:.0f} us CPU each"
            f"{each.share:9.2%}",
            f"{'':22}{each.us_per_request:.1f} us a request and {each.us_per_token:.2f} us a token   ({parts})",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=200, help="random steps, at least 4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--requests", type=int, default=4000, help="unary requests through the gateway, at least 100")
    parser.add_argument("--port", type=int, default=18260, help="of the gateway, on loopback; those above it too")
    parser.add_argument("--model", type=Path, help="model folder; the one that ships when absent")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    folder = model_folder(options.model)
    counted = count_mixes(folder, options.mixes, options.seed)
    truths = [truth_of(phase, counted) for phase in Phase]
    costs = step_costs(folder, options.steps)
    recording = uvloop.run(recording_costs(folder.resolve(), options.port, options.requests))
    if options.json:
        found = {
            "truth": [asdict(each) for each in truths],
            "steps": [{**asdict(each), "share": each.share} for each in costs],
            "recording": [{**asdict(each), "share": each.share} for each in recording],
        }
        print(json.dumps(found))
        return
    tables = (truth_table(truths, options.mixes), cost_table(costs), recording_table(recording))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
