"""What the meter costs: seconds of all its calls in one step, as a share of that step's time.

    python -m engine.bench.meter [--model FOLDER] [--steps 20]

The calls are those that `engine.core` makes in a step: heartbeat, begin, end with one record per forward, token gaps,
load; on a page in shared memory. The step is the model's own, one thread, exact mode. The aim is a share of 0.5%.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from engine.bench._setup import model_folder, parser_of, show
from engine.core_types import CoreConfig
from engine.meter import Meter
from engine.readings import DeviceInfo
from engine.runner import TorchRunner
from engine.step_meter import StepMeter
from engine.types import DecodeItem, Load, PrefillChunk, Role, SamplingParams, StepPlan, StepResult

GREEDY = SamplingParams()
BLOCK_TOKENS = 16
CONTEXT = 256
AIM = 0.005


def decode_plan(batch: int) -> StepPlan:
    blocks = CONTEXT // BLOCK_TOKENS
    items = (
        DecodeItem(seq, 5, CONTEXT - 1, tuple(range(seq * blocks, (seq + 1) * blocks)), GREEDY) for seq in range(batch)
    )
    return StepPlan(1, decode=tuple(items))


def prefill_plan(tokens: int, vocab_size: int) -> StepPlan:
    rng = random.Random(1)
    ids = tuple(rng.randrange(vocab_size) for _ in range(tokens))
    return StepPlan(1, prefill=(PrefillChunk(0, ids, 0, tuple(range(-(-tokens // BLOCK_TOKENS))), GREEDY),))


def step_seconds(runner: TorchRunner, plan: StepPlan, steps: int) -> tuple[float, StepResult]:
    """Median time of the step, after two that warm it up."""
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        result = runner.run(plan)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:]), result


def meter_seconds(meter: StepMeter, plan: StepPlan, result: StepResult, repeats: int = 5000) -> float:
    """Median time of all meter calls of one step."""
    load = Load(num_running=8, kv_blocks_total=100, kv_blocks_held=50)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        meter.heartbeat(began)
        meter.begin(began)
        meter.latency("itl", 0.05, max(1, len(plan.decode)))
        meter.end(plan, result, Role.MIXED)
        meter.load(load)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _step_meter(runner: TorchRunner, folder: Path) -> StepMeter:
    layout = runner.pool.layout
    meter = Meter.create(
        folder / "bench.meter", worker_id="bench", epoch=1, model_id=layout.model_id, address="", simulated=False,
        device=DeviceInfo(name="cpu", kind="cpu"), host_id="bench", max_context=runner.model.config.max_context,
    )  # fmt: skip
    config = CoreConfig(
        model=runner.model.config, layout=layout, num_blocks=runner.pool.num_blocks, worker_id="bench", epoch=1
    )
    return StepMeter(meter, config)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, help="model folder; the one that ships when absent")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runner = TorchRunner.load(model_folder(args.model), 8 * CONTEXT // BLOCK_TOKENS, block_tokens=BLOCK_TOKENS)
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=root, prefix="phaseline-bench-") as folder:
        meter = _step_meter(runner, Path(folder))
        plans = {
            "decode, batch 1": decode_plan(1),
            "decode, batch 8": decode_plan(8),
            "prefill, 128 tokens": prefill_plan(128, runner.model.config.vocab_size),
        }
        for name, plan in plans.items():
            step_s, result = step_seconds(runner, plan, args.steps)
            meter_s = meter_seconds(meter, plan, result)
            show(
                args.json,
                f"{name:20} step {step_s * 1e3:8.2f} ms   meter {meter_s * 1e6:6.1f} us   "
                f"share {meter_s / step_s:.4%}   (aim {AIM:.1%})",
                step=name,
                step_s=step_s,
                meter_s=meter_s,
                share=meter_s / step_s,
            )


if __name__ == "__main__":
    main()
