"""Engines that only answer metrics pages, in a process of their own: good ones, and those that hang, flood or lie."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

LABELS = 'engine="0",model_name="bench"'
TOKENS_PER_S = 100.0
FLOOD_BYTES = 50 * 1024 * 1024
#: So many bytes: one says so at once, one says no length.
FLOODS = ("flood", "endless")
#: As many further series as a vLLM 0.32 engine has, which nobody reads.
OTHERS = "".join(f"vllm:other_{n}{{{LABELS}}} {n}\n" for n in range(600))


def page(kind: str, age_s: float) -> str:
    """What an engine of that kind says `age_s` after it started; one that resets starts anew every 20 s."""
    age_s = age_s % 20.0 if kind == "resets" else age_s
    tokens = "NaN" if kind == "nan" else f"{age_s * TOKENS_PER_S:.0f}"
    lines = [
        f"vllm:generation_tokens_total{{{LABELS}}} {tokens}",
        f'vllm:prompt_tokens_by_source_total{{{LABELS},source="local_compute"}} {10 * age_s:.0f}',
        f"vllm:iteration_tokens_total_count{{{LABELS}}} {age_s * 20:.0f}",
        f"vllm:request_prompt_tokens_count{{{LABELS}}} {age_s / 10:.0f}",
        f"vllm:request_prompt_tokens_sum{{{LABELS}}} {10 * age_s:.0f}",
        f"vllm:num_requests_running{{{LABELS}}} 8",
        f"vllm:num_requests_waiting{{{LABELS}}} 0",
        f"vllm:kv_cache_usage_perc{{{LABELS}}} 0.4",
    ]
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time"):
        bounds = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
        lines += [f'vllm:{name}_seconds_bucket{{{LABELS},le="{bound}"}} {age_s * bound:.0f}' for bound in bounds]
        lines.append(f'vllm:{name}_seconds_bucket{{{LABELS},le="+Inf"}} {age_s * 50:.0f}')
    return "\n".join(lines) + "\n" + OTHERS


async def serve(kinds: Sequence[str], told: Connection) -> None:
    """One listener for each kind; "dead" ones are closed again, so that nobody answers there."""
    begun_s = time.monotonic()
    servers = []
    ports = []
    for kind in kinds:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str = kind) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    if kind == "hang":
                        await asyncio.sleep(3600.0)
                    body = page(kind, time.monotonic() - begun_s).encode()
                    size = FLOOD_BYTES if kind in FLOODS else len(body)
                    length = "connection: close" if kind == "endless" else f"content-length: {size}"
                    writer.write(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
                    for _ in range(size // len(body)):
                        writer.write(body)
                        await writer.drain()
                    if kind in FLOODS:
                        break
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        if kind == "dead":
            server.close()
        servers.append(server)
    told.send(ports)
    await asyncio.Event().wait()


def _main(kinds: Sequence[str], told: Connection) -> None:
    asyncio.run(serve(kinds, told))


@contextlib.contextmanager
def fake_engines(kinds: Sequence[str]) -> Iterator[list[str]]:
    """Their addresses, in the order of `kinds`: good | hang | dead | flood | endless | nan | resets."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(tuple(kinds), theirs), daemon=True)
    process.start()
    try:
        yield [f"http://127.0.0.1:{port}" for port in ours.recv()]
    finally:
        process.terminate()
        process.join()
