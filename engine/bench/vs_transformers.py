"""The engine against transformers `generate`: same weights, cores and prompts, interleaved rounds in one process.

`python -m engine.bench.vs_transformers [--model FOLDER] [--threads 1] [--rounds 3] [--clock cpu]`

transformers runs as it comes: greedy, its default attention and KV cache, prompts padded left, a batch held until its
longest output is done. Only tokens that were asked for count, on both sides. Prefill is `generate` of one token, decode
the time beyond it. The best of the rounds is reported, by the wall clock or, on a machine that others use too, by CPU
seconds of the process. The greedy tokens are compared: a difference counts as a near-tie when transformers' own two
best logits are closer than 1e-3 there.
"""

from __future__ import annotations

import functools
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.bench._setup import model_folder, parser_of, show
from engine.runner import TorchRunner
from engine.types import DecodeItem, Phase, PrefillChunk, SamplingParams, StepPlan, StepResult

say = functools.partial(print, flush=True)
NEAR_TIE = 1e-3
CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts of these lengths, each with its number of output tokens."""

    name: str
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]


CASES = (
    Case("batch 1", (128,), (33,)),
    Case("batch 8, equal lengths", (128,) * 8, (33,) * 8),
    Case("batch 8, mixed prompts", (16, 32, 48, 64, 128, 256, 384, 512), (33,) * 8),
    Case("batch 8, mixed prompts and outputs", (16, 32, 48, 64, 128, 256, 384, 512), (65, 9, 33, 17, 49, 9, 25, 17)),
)


@dataclass(frozen=True, slots=True)
class Timed:
    """One run of a case: seconds per phase and the tokens that came out."""

    prefill_s: float
    decode_s: float
    outputs: list[list[int]]


Clock = Callable[[], float]


def engine_generate(
    runner: TorchRunner, prompts: Sequence[Sequence[int]], output_tokens: Sequence[int], clock: Clock = time.monotonic
) -> Timed:
    """Prefill in chunks of at most 512 tokens, then decode; a finished sequence leaves the batch."""
    greedy = SamplingParams()
    size = runner.pool.layout.block_tokens
    tables, free = [], 0
    for prompt, count in zip(prompts, output_tokens, strict=True):
        needed = -(-(len(prompt) + count) // size)
        tables.append(tuple(range(free, free + needed)))
        free += needed
    seconds = dict.fromkeys(Phase, 0.0)
    outputs: list[list[int]] = [[] for _ in prompts]

    def run(plan: StepPlan) -> None:
        start_s = clock()
        result: StepResult = runner.run(plan)
        seconds[result.timings[0].phase] += clock() - start_s
        for i, token in result.tokens.items():
            outputs[i].append(token)

    for chunks in _prefill_steps(prompts, tables, greedy):
        run(StepPlan(step_id=0, prefill=chunks))
    while left := [i for i, out in enumerate(outputs) if len(out) < output_tokens[i]]:
        items = [DecodeItem(i, outputs[i][-1], len(prompts[i]) + len(outputs[i]) - 1, tables[i], greedy) for i in left]
        run(StepPlan(step_id=0, decode=tuple(items)))
    return Timed(seconds[Phase.PREFILL], seconds[Phase.DECODE], outputs)


def _prefill_steps(
    prompts: Sequence[Sequence[int]], tables: Sequence[tuple[int, ...]], greedy: SamplingParams
) -> list[tuple[PrefillChunk, ...]]:
    steps: list[tuple[PrefillChunk, ...]] = []
    step: list[PrefillChunk] = []
    room = CHUNK_TOKENS
    for i, prompt in enumerate(prompts):
        start = 0
        while start < len(prompt):
            end = min(start + room, len(prompt))
            last = greedy if end == len(prompt) else None
            step.append(PrefillChunk(i, tuple(prompt[start:end]), start, tables[i], last))
            room -= end - start
            start = end
            if room == 0:
                steps.append(tuple(step))
                step, room = [], CHUNK_TOKENS
    return [*steps, tuple(step)] if step else steps


def transformers_generate(
    model: Any, prompts: Sequence[Sequence[int]], output_tokens: Sequence[int], clock: Clock = time.monotonic
) -> Timed:
    """`generate` twice: one token for the prefill time, then all; decode is the difference."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    times = []
    for count in (1, max(output_tokens)):
        start_s = clock()
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
        times.append(clock() - start_s)
    outputs = [row[longest : longest + n].tolist() for row, n in zip(out, output_tokens, strict=True)]
    return Timed(times[0], times[1] - times[0], outputs)


def load_transformers(folder: Path) -> Any:
    """The reference in float32, never stopping early."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model.eval()


def differences(
    model: Any, prompts: Sequence[Sequence[int]], ours: list[list[int]], theirs: list[list[int]]
) -> list[str]:
    """One line for the first different token of each sequence, with transformers' margin between its two best there."""
    lines = []
    for i, (prompt, own, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        at = next((k for k, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), None)
        if at is None:
            continue
        with torch.inference_mode():
            logits_V = model(torch.tensor([[*prompt, *other[:at]]])).logits[0, -1]
        best = logits_V.topk(2).values
        margin = float(best[0] - best[1])
        kind = "near-tie" if margin < NEAR_TIE else "DIFFERENT"
        lines.append(
            f"{kind}: sequence {i}, output {at}: {own[at]} here, {other[at]} there, its top-2 margin {margin:.1e}"
        )
    return lines


def run_case(
    case: Case, runners: dict[str, TorchRunner], reference: Any, rounds: int, clock: Clock, as_json: bool
) -> None:
    rng = random.Random(case.name)
    vocab_size = next(iter(runners.values())).model.config.vocab_size
    prompts = [[rng.randrange(vocab_size) for _ in range(n)] for n in case.prompt_tokens]
    runs: dict[str, list[Timed]] = {name: [] for name in ("transformers", *runners)}
    for _ in range(rounds + 1):
        runs["transformers"].append(transformers_generate(reference, prompts, case.output_tokens, clock))
        for name, runner in runners.items():
            runs[name].append(engine_generate(runner, prompts, case.output_tokens, clock))
    if not as_json:
        say(f"\n{case.name}: prompts {case.prompt_tokens}, outputs {case.output_tokens}")
        say(f"  {'':14}{'prefill tok/s':>14}{'ratio':>7}{'decode tok/s':>14}{'ratio':>7}{'ms/step':>9}")
    num_prompt, num_decoded = sum(case.prompt_tokens), sum(case.output_tokens) - len(prompts)
    base_prefill = base_decode = 0.0
    for name, timed in runs.items():
        warm = timed[1:]
        prefill = num_prompt / min(t.prefill_s for t in warm)
        decode_s = min(t.decode_s for t in warm)
        decode = num_decoded / decode_s
        base_prefill, base_decode = base_prefill or prefill, base_decode or decode
        step_ms = 1e3 * decode_s / (max(case.output_tokens) - 1)
        ratios = prefill / base_prefill, decode / base_decode
        show(
            as_json,
            f"  {name:14}{prefill:14.1f}{ratios[0]:6.2f}x{decode:14.1f}{ratios[1]:6.2f}x{step_ms:9.1f}",
            case=case.name,
            engine=name,
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
            decode_step_s=step_ms / 1e3,
        )
    for name in runners:
        for line in differences(reference, prompts, runs[name][-1].outputs, runs["transformers"][-1].outputs):
            show(as_json, f"  {name}: {line}", case=case.name, engine=name, difference=line)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, help="model folder; the one that ships when absent")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; exact mode is only run with 1")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one to warm up")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--case", type=int, action="append", help="index of a case; all when absent")
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.monotonic
    modes = ("exact", "fast") if options.threads == 1 else ("fast",)
    blocks = max(sum(-(-(p + o) // 16) for p, o in zip(c.prompt_tokens, c.output_tokens, strict=True)) for c in CASES)
    folder = model_folder(options.model)
    runners = {mode: TorchRunner.load(folder, blocks, mode=mode) for mode in modes}
    reference = load_transformers(folder)
    torch.set_num_threads(options.threads)
    host = platform.processor() or platform.machine()
    conditions = f"{host}, torch {torch.__version__}, {options.threads} thread(s), float32, {options.clock} clock"
    show(options.json, conditions, conditions=conditions)
    for index in options.case or range(len(CASES)):
        run_case(CASES[index], runners, reference, options.rounds, clock, options.json)


if __name__ == "__main__":
    main()
