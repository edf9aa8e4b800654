"""What the meter costs: seconds of all its calls in one step, as a share of that step's time.

The calls are those that `engine.core` makes in a step: heartbeat, begin, end with one record per forward, token gaps,
load; on a page in shared memory. The step is the model's own, one thread, exact mode.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.core_types import CoreConfig
from engine.meter import Meter, MeterReader
from engine.readings import DeviceInfo
from engine.runner import TorchRunner
from engine.step_meter import StepMeter
from engine.types import DecodeItem, Load, PrefillChunk, Role, SamplingParams, StepPlan, StepResult

GREEDY = SamplingParams()
BLOCK_TOKENS = 16
CONTEXT = 256


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


@dataclass(frozen=True, slots=True)
class StepCost:
    """One kind of step: its own time, and that of all meter calls in it."""

    step: str
    step_s: float
    meter_s: float

    @property
    def share(self) -> float:
        return self.meter_s / self.step_s


def step_costs(folder: Path, num_steps: int) -> list[StepCost]:
    """Of decode and prefill steps of a model, one thread, exact mode."""
    torch.set_num_threads(1)
    runner = TorchRunner.load(folder, 8 * CONTEXT // BLOCK_TOKENS, block_tokens=BLOCK_TOKENS)
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    plans = {
        "decode, batch 1": decode_plan(1),
        "decode, batch 8": decode_plan(8),
        "prefill, 128 tokens": prefill_plan(128, runner.model.config.vocab_size),
    }
    found = []
    with tempfile.TemporaryDirectory(dir=root, prefix="phaseline-bench-") as page_folder:
        meter = _step_meter(runner, Path(page_folder))
        for name, plan in plans.items():
            step_s, result = step_seconds(runner, plan, num_steps)
            found.append(StepCost(name, step_s, meter_seconds(meter, plan, result)))
        found.append(StepCost("node agent, a read a second", 1.0, read_seconds(Path(page_folder))))
    return found


def read_seconds(folder: Path, repeats: int = 200) -> float:
    """Median time in which a node agent reads one worker's page, its ring full of new steps the first time."""
    reader, cursor, times = MeterReader(folder / "bench.meter"), 0, []
    for _ in range(repeats):
        began = time.perf_counter()
        cursor = reader.read(cursor).next_cursor
        times.append(time.perf_counter() - began)
    return statistics.median(times)
