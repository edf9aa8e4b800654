"""Cost of the engine's own Python per step: `next_step` + `finish_step` at several batches, meter and outbox included.

    python -m engine.bench.core

Prints the median over many steady decode steps, and the device it ran on. The runner is left out: tokens are made up
before the clock starts. A step of a real model takes 1,000 to 60,000 us; this is what is added to it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass

from engine.core import CoreConfig, EngineCore
from engine.cost_model import SeededTokens
from engine.meter import Clock, Meter
from engine.readings import DeviceInfo
from engine.types import KvLayout, ModelConfig, Phase, PhaseTiming, Role, SamplingParams, StepResult, WorkKind
from engine.wire import Order, Submit

BATCHES = (1, 8, 32, 256)
MODEL = ModelConfig(
    model_id="bench",
    vocab_size=128_256,
    hidden_size=8192,
    intermediate_size=28_672,
    num_layers=80,
    num_q_heads=64,
    num_kv_heads=8,
    head_dim=128,
    max_context=131_072,
    eos_token_ids=(128_001,),
)
LAYOUT = KvLayout(
    model_id="bench", weights_digest="", dtype="seeded", num_layers=80, block_tokens=16, num_kv_heads=8, head_dim=128
)


@dataclass(frozen=True, slots=True)
class CoreCost:
    """Medians over the timed steps, in microseconds."""

    batch: int
    next_us: float
    finish_us: float
    total_us: float
    admit_us: float  # submit, hash and admit one request of `prompt_tokens`, its first token included
    prompt_tokens: int
    steps: int
    device: str


def _core(batch: int, prompt_tokens: int, steps: int) -> EngineCore:
    device = DeviceInfo(name="bench", kind="paced")
    meter = Meter.create(
        None,
        worker_id="bench",
        epoch=1,
        model_id="bench",
        address="",
        simulated=True,
        device=device,
        host_id="",
        max_context=MODEL.max_context,
        clock=Clock(monotonic=lambda: 0.0, unix=lambda: 0.0),
    )
    config = CoreConfig(
        model=MODEL,
        layout=LAYOUT,
        num_blocks=batch * ((prompt_tokens + steps) // LAYOUT.block_tokens + 3),
        worker_id="bench",
        epoch=1,
        max_batch=batch,
        prefill_chunk_tokens=8192,
        max_queue=batch + 1,
    )
    core = EngineCore(config=config, meter=meter)
    core.order(Order("o", 1, "place", Role.MIXED), 0.0)
    return core


def measure(batch: int, *, prompt_tokens: int = 1020, steps: int = 300) -> CoreCost:
    """Fill a batch, then time `steps` decode steps with a token for everybody."""
    core = _core(batch, prompt_tokens, steps + batch)
    tokens = SeededTokens(MODEL.vocab_size, avoid=MODEL.eos_token_ids)
    now_s, admit = 0.0, time.perf_counter()
    sampling = SamplingParams(max_tokens=steps + batch + 1)
    for index in range(batch):
        prompt = list(range(index * 16, index * 16 + prompt_tokens))
        assert not core.submit("g", Submit(str(index), 1, WorkKind.LOCAL, prompt, prompt_tokens, sampling), now_s)
    while core.load(now_s).num_running < batch:
        plan = core.next_step(now_s)
        assert plan is not None
        core.finish_step(plan, StepResult(tokens.sample(plan), ()), now_s)
    admit = time.perf_counter() - admit
    begins, ends = [], []
    for _ in range(steps):
        start = time.perf_counter()
        plan = core.next_step(now_s)
        begins.append(time.perf_counter() - start)
        assert plan is not None
        assert len(plan.decode) == batch
        result = StepResult(tokens.sample(plan), (PhaseTiming(Phase.DECODE, now_s, now_s + 0.03, 0.0),))
        now_s += 0.03
        start = time.perf_counter()
        core.finish_step(plan, result, now_s)
        ends.append(time.perf_counter() - start)
    next_us, finish_us = statistics.median(begins) * 1e6, statistics.median(ends) * 1e6
    return CoreCost(
        batch,
        next_us,
        finish_us,
        next_us + finish_us,
        admit / batch * 1e6,
        prompt_tokens,
        steps,
        platform.processor() or platform.machine() or platform.machine(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    for batch in BATCHES:
        cost = measure(batch)
        if arguments.json:
            print(json.dumps(asdict(cost)))
        else:
            print(
                f"batch {cost.batch:4d}: {cost.total_us:7.1f} us a step (next {cost.next_us:.1f}, finish "
                f"{cost.finish_us:.1f}); admission {cost.admit_us:.0f} us per {cost.prompt_tokens}-token request"
            )


if __name__ == "__main__":
    main()
