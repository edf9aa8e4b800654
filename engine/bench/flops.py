"""The meter's arithmetic against two independent counts: torch's FlopCounterMode, and the unmasked pairs in our masks.

`python -m engine.bench.flops [--model FOLDER]` prints, per shape of step, FLOPs by `engine.work` and by torch. Rows
that are only padding are not work; so the compared steps have row counts that need none, and run in fast mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.attention import PrefillAttention
from engine.bench._setup import model_folder, parser_of, show
from engine.runner import TorchRunner
from engine.types import PrefillChunk, SamplingParams
from engine.work import ModelWork, attention_pairs


def linear_flops_by_torch(runner: TorchRunner, chunks: Sequence[PrefillChunk]) -> int:
    """FLOPs of all linears in one prefill forward, head included, as FlopCounterMode counts them."""
    counter = FlopCounterMode(display=False, custom_mapping=_onednn_formula())
    with counter:
        runner.prefill_logits(chunks)
    by_op = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in by_op.items() if "scaled_dot_product" not in str(op))


def _onednn_formula() -> dict[Any, Any]:
    """FlopCounterMode has no entry for oneDNN's linear: 2 * rows * inputs * outputs, from the shapes of the call."""

    def formula(x: Sequence[int], weight: Sequence[int], *_: object, out_shape: object = None, **__: object) -> int:
        return 2 * int(x[0]) * int(weight[0]) * int(weight[1])

    return {torch.ops.mkldnn._linear_pointwise: formula}


def unmasked_pairs(runner: TorchRunner, chunks: Sequence[PrefillChunk]) -> int:
    """Query-key pairs that the attention masks of one forward let through, counted one by one, without padding rows."""
    shape = runner.model.shape
    num_rows = shape.num_rows(sum(len(chunk.token_ids) for chunk in chunks))
    calls = PrefillAttention(chunks, num_rows, shape, runner.pool).calls()
    return sum(int((call.mask_11RS[0, 0, : call.end - call.first] == 0).sum()) for call in calls)


def compare(runner: TorchRunner, lengths: Sequence[tuple[int, int]]) -> tuple[float, int, float, int]:
    """One forward of chunks (start, tokens): linear FLOPs and pairs by `engine.work`, then by torch and by our masks.

    Only the last chunk samples.
    """
    size = runner.pool.layout.block_tokens
    chunks, free = [], 0
    for i, (start, tokens) in enumerate(lengths):
        table = tuple(range(free, free + -(-(start + tokens) // size)))
        free += len(table)
        sample = SamplingParams() if i == len(lengths) - 1 else None
        chunks.append(PrefillChunk(i, (0,) * tokens, start, table, sample))
    counted, pairs = linear_flops_by_torch(runner, chunks), unmasked_pairs(runner, chunks)
    work = ModelWork(runner.model.config)
    derived_pairs = sum(attention_pairs(tokens, start + tokens) for start, tokens in lengths)
    linears = work.prefill_flops(sum(tokens for _, tokens in lengths), 0, 1)
    return linears, derived_pairs, float(counted), pairs


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, help="model folder; the one that ships when absent")
    options = parser.parse_args()
    runner = TorchRunner.load(model_folder(options.model), num_blocks=256, mode="fast")
    if not options.json:
        print(
            f"{'chunks (start, tokens)':40}{'linear work':>14}{'by torch':>14}{'off':>9}{'pairs':>10}{'unmasked':>10}"
        )
    for lengths in ([(0, 64)], [(0, 256)], [(512, 128)], [(0, 40), (100, 24), (7, 64)]):
        linears, pairs, counted, unmasked = compare(runner, lengths)
        off = abs(linears / counted - 1)
        show(
            options.json,
            f"{lengths!s:40}{linears:14.4e}{counted:14.4e}{off:9.4%}{pairs:10d}{unmasked:10d}",
            chunks=lengths,
            linear_flops=linears,
            linear_flops_by_torch=counted,
            attention_pairs=pairs,
            unmasked_pairs=unmasked,
        )


if __name__ == "__main__":
    main()
