"""What paced workers cost: CPU of their processes while a fleet of them decodes at a steady batch.

    python -m engine.bench.paced --workers 48 --processes 3 --batch 15 --seconds 10

Each worker decodes `batch` sequences for the whole time, in role decode, over the real sockets; this process is the
gateway and reads all token messages. Printed: CPU seconds per second of each host process and of the reader, steps and
tokens per second, and how late steps were against the model's plan. No number here is a claim about a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from engine.bench._setup import parser_of, show
from engine.connection import Connection, connect
from engine.types import Role, SamplingParams, WorkKind
from engine.wire import Hello, Order, Step, Submit
from engine.worker import WorkerConfig, WorkerHost

TOKEN = "bench"
PROMPT_TOKENS = 1000


def _host(configs: list[WorkerConfig], pipe: Pipe) -> None:
    """One host process. It answers each line on the pipe with its CPU seconds so far, and ends at None."""
    host = WorkerHost(configs)
    pipe.send(host.start())
    while pipe.recv() is not None:
        pipe.send(time.process_time())
    host.stop()


class Reader:
    """The gateway's side: counts, and nothing else."""

    def __init__(self) -> None:
        self.num_steps = self.num_tokens = 0
        self.loads: dict[str, int] = {}

    def __call__(self, _connection: Connection, message: Any) -> None:
        if isinstance(message, Step):
            self.num_steps += bool(message.events)
            self.num_tokens += sum(len(event.tokens) for event in message.events)
            self.loads[message.worker_id] = message.load.num_running


def config(index: int, shm_dir: str, args: argparse.Namespace) -> WorkerConfig:
    return WorkerConfig(
        worker_id=f"p-{index}",
        epoch=1,
        kind="paced",
        shm_dir=shm_dir,
        fleet_token=TOKEN,
        model_id=args.model,
        paced_device="h100-sxm-80gb",
        paced_model=args.model,
        kv_bytes=16 * 2**30,
        max_batch=args.batch,
        prefill_chunk_tokens=2048,
    )


async def drive(addresses: list[str], pipes: list[Pipe], args: argparse.Namespace) -> None:
    reader = Reader()
    connections = [await connect(address, Hello("bench", "gateway", TOKEN), reader) for address in addresses]
    for number, connection in enumerate(connections):
        connection.send(Order("o", 1, "place", Role.MIXED))
        for sequence in range(args.batch):
            prompt = [1 + number, 1 + sequence, *range(PROMPT_TOKENS - 2)]
            params = SamplingParams(max_tokens=3000, seed=sequence, ignore_eos=True)
            connection.send(Submit(f"{number}-{sequence}", 0, WorkKind.LOCAL, prompt, PROMPT_TOKENS, params))
    while len(reader.loads) < len(addresses) or min(reader.loads.values()) < args.batch:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    before = _cpu(pipes)
    steps, tokens, own, began = reader.num_steps, reader.num_tokens, time.process_time(), time.monotonic()
    await asyncio.sleep(args.seconds)
    wall = time.monotonic() - began
    after = _cpu(pipes)
    shares = [(b - a) / wall for a, b in zip(before, after, strict=True)]
    num_steps = reader.num_steps - steps
    tokens_per_s, reader_cores = (reader.num_tokens - tokens) / wall, (time.process_time() - own) / wall
    us_per_step = sum(shares) * wall / num_steps * 1e6
    show(
        args.json,
        f"{len(addresses)} workers in {len(pipes)} processes, batch {args.batch}, {args.model}, {wall:.1f} s\n"
        f"steps/s {num_steps / wall:.0f} ({num_steps / wall / len(addresses):.1f} per worker)\n"
        f"tokens/s {tokens_per_s:.0f}\n"
        f"host CPU {sum(shares):.3f} cores ({', '.join(f'{share:.3f}' for share in shares)})\n"
        f"host CPU per step {us_per_step:.0f} us\n"
        f"reader CPU {reader_cores:.3f} cores",
        num_workers=len(addresses),
        num_processes=len(pipes),
        batch=args.batch,
        model=args.model,
        steps_per_s=num_steps / wall,
        tokens_per_s=tokens_per_s,
        host_cpu_cores=shares,
        host_cpu_us_per_step=us_per_step,
        reader_cpu_cores=reader_cores,
    )


def _cpu(pipes: list[Pipe]) -> list[float]:
    for pipe in pipes:
        pipe.send("cpu")
    return [pipe.recv() for pipe in pipes]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workers", type=int, default=48)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--batch", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--model", default="llama-3.1-70b-fp8")
    args = parser.parse_args()
    root = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=root, prefix="phaseline-bench-") as shm_dir:
        context = multiprocessing.get_context("spawn")
        pipes, processes, addresses = [], [], []
        for number in range(args.processes):
            ours, theirs = context.Pipe()
            configs = [config(index, shm_dir, args) for index in range(number, args.workers, args.processes)]
            process = context.Process(target=_host, args=(configs, theirs), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            addresses += pipe.recv()
        asyncio.run(drive(addresses, pipes, args))
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(None)
            process.join()


if __name__ == "__main__":
    main()
