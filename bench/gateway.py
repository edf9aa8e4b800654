"""What the gateway costs: CPU per unary request and per streamed token, and the latency it adds.

    python -m bench.gateway [--requests 3000] [--model FOLDER] [--json]

One gateway process (`control.gateway.main`, as it ships) in front of null workers on the real wire, which answer at
once, so all that is measured is the gateway. One run: unary requests through the gateway and straight to the worker
take turns, so both see the same machine. CPU is the gateway process's own (user + system), read before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from control.fleets.fleet_token import fleet_token
from control.gateway.plane_link import save_table
from control.types.routing import RoutingPolicy, RoutingTable, WorkerRoute
from control.types.workers import Role, WorkerState
from engine.bench._setup import model_folder
from engine.connection import Connection, Mailbox, connect
from engine.text import ModelText
from engine.types import SamplingParams, WorkKind
from engine.wire import Hello, Step, Submit

PROMPT = (
    "Summarise in two sentences why the prefill and the decode phase of a language model want different machines. " * 4
)
UNARY_TOKENS = 16
STREAM_TOKENS = 128
READY_LIMIT_S = 30.0
TIMES = "times.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run. Times in the unit of the name; `machine` names where."""

    machine: str
    prompt_tokens: int
    num_unary: int
    num_streams: int
    num_stream_tokens: int
    cpu_us_per_unary_local: float
    cpu_us_per_unary_remote: float
    cpu_us_per_streamed_token: float
    direct_p50_us: float
    direct_p99_us: float
    gateway_p50_us: float
    gateway_p99_us: float
    added_p50_us: float
    added_p99_us: float
    unary_rps_at_8: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's body, and its route header."""

    body: bytes
    route: str


class HttpClient:
    """One keep-alive connection and no more HTTP than the benchmark needs, so that the client costs little."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)

    async def post(self, path: str, body: bytes) -> Answer:
        """Raises RuntimeError with the body unless the answer is a 200."""
        head = ("POST %s HTTP/1.1", "Host: bench", "Content-Type: application/json", "Content-Length: %d", "", "")
        self._writer.write(("\r\n".join(head) % (path, len(body))).encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
        if headers.get(b"transfer-encoding") == b"chunked":
            answer = await self._chunks()
        else:
            answer = await self._reader.readexactly(int(headers[b"content-length"]))
        if b" 200 " not in lines[0]:
            raise RuntimeError(f"{lines[0].decode()}: {answer.decode()}")
        return Answer(answer, headers.get(b"x-phaseline-route", b"").decode())

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readexactly(2)
        return b"".join(parts)

    def close(self) -> None:
        self._writer.close()


class DirectClient:
    """The same request, straight to a worker over the wire."""

    def __init__(self, prompt: list[int]) -> None:
        self._prompt = prompt
        self._box = Mailbox()
        self._connection: Connection | None = None
        self._num = 0

    async def open(self, address: str, token: str) -> None:
        self._connection = await connect(address, Hello("bench", "gateway", token), self._box, self._box.closed)

    async def ask(self) -> None:
        assert self._connection is not None
        self._num += 1
        sampling = SamplingParams(max_tokens=UNARY_TOKENS)
        self._connection.send(Submit(f"d{self._num}", 1, WorkKind.LOCAL, self._prompt, len(self._prompt), sampling))
        while not (await self._box.next(Step)).events:
            pass

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


# --- processes ---------------------------------------------------------------------------------------------------


@contextmanager
def process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with this block."""
    child = subprocess.Popen(command, text=True, **options)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def start_worker(stack: ExitStack, run_dir: Path, worker_id: str, role: Role, step_s: float = 0.0) -> WorkerRoute:
    """A null worker, as a row of the routing table."""
    arguments = ["--token", fleet_token(run_dir), "--worker-id", worker_id, "--role", role, "--step-s", str(step_s)]
    command = [sys.executable, "-m", "control.gateway.null_worker", *arguments]
    child = stack.enter_context(process(command, stdout=subprocess.PIPE))
    assert child.stdout is not None
    address = child.stdout.readline().strip()
    return WorkerRoute(
        worker_id=worker_id, epoch=1, address=address, role=role, state=WorkerState.READY, simulated=True
    )


def start_gateway(
    stack: ExitStack, run_dir: Path, model: Path, port: int, rows: Sequence[WorkerRoute], *, timed: bool = False
) -> psutil.Process:
    """The gateway as it ships, with a routing table on disk and no plane. `timed`: see `bench._timed_gateway`."""
    remote = RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=0, max_local_output_tokens=0)
    table = RoutingTable(
        version=1,
        fleet_id="bench",
        model_id=model.name,
        fence=1,
        num_devices=len(rows),
        policy=remote,
        workers=tuple(rows),
    )
    save_table(run_dir / "gateway" / "table.json", table)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")},
        "PHASELINE_RUN_DIR": str(run_dir),
        "PHASELINE_FLEET_ID": "bench",
        "PHASELINE_MODEL": str(model),
        "PHASELINE_GATEWAY_PORT": str(port),
        "PHASELINE_API_PORT": str(port + 1),
    }
    log = stack.enter_context((run_dir / "gateway.log").open("w"))
    module = ["bench._timed_gateway", str(run_dir / TIMES)] if timed else ["control.gateway.main"]
    child = stack.enter_context(process([sys.executable, "-m", *module], env=environment, stderr=log))
    return psutil.Process(child.pid)


async def wait_ready(port: int) -> None:
    """Until the gateway says that it is ready, within a bound."""
    async with asyncio.timeout(READY_LIMIT_S):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                if b" 200 " in (await reader.read()).split(b"\r\n", 1)[0]:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# --- measurements ------------------------------------------------------------------------------------------------


def body(model: str, *, max_tokens: int, stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": PROMPT}]
    return msgspec.json.encode({"model": model, "messages": messages, "max_tokens": max_tokens, "stream": stream})


async def many(port: int, payload: bytes, number: int, concurrency: int, rule: str) -> float:
    """Send `number` requests over `concurrency` connections; returns the seconds it took."""
    left = iter(range(number))

    async def one_connection() -> None:
        client = HttpClient(port)
        await client.open()
        for _ in left:
            answer = await client.post("/v1/chat/completions", payload)
            if not answer.route.startswith(f"rule={rule};"):
                raise RuntimeError(f"expected rule {rule}, got {answer.route}")
        client.close()

    started_s = time.perf_counter()
    await asyncio.gather(*[one_connection() for _ in range(concurrency)])
    return time.perf_counter() - started_s


async def alternate(port: int, payload: bytes, direct: DirectClient, number: int) -> tuple[list[float], list[float]]:
    """Latencies in us, one request at a time, in turns: straight to the worker, through the gateway."""
    client = HttpClient(port)
    await client.open()
    straight, through = [], []
    for _ in range(number):
        started_s = time.perf_counter()
        await direct.ask()
        straight.append((time.perf_counter() - started_s) * 1e6)
        started_s = time.perf_counter()
        await client.post("/v1/chat/completions", payload)
        through.append((time.perf_counter() - started_s) * 1e6)
    client.close()
    return straight, through


def percentile(values: list[float], q: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[q - 1]


async def measure(number: int, model: Path, port: int) -> Result:
    """Three gateways, one after the other: one mixed worker, a prefill and a decode worker, a worker with a clock."""
    prompt = ModelText(model).encode_chat([{"role": "user", "content": PROMPT}])
    unary, stream = body(model.name, max_tokens=UNARY_TOKENS), body(model.name, max_tokens=STREAM_TOKENS, stream=True)
    num_streams = max(32, number // 25)
    async with fronted(port, model, [("null-0", Role.MIXED, 0.0)]) as place:
        local_us, unary_rps = await cpu_us_each(place, port, unary, number, 8, "empty_pool")
        direct = DirectClient(prompt)
        await direct.open(place.rows[0].address, place.token)
        straight, through = await alternate(port, unary, direct, max(200, number // 3))
        direct.close()
    async with fronted(port, model, [("p0", Role.PREFILL, 0.0), ("d0", Role.DECODE, 0.0)]) as place:
        remote_us, _ = await cpu_us_each(place, port, unary, number, 8, "remote")
    async with fronted(port, model, [("null-0", Role.MIXED, 0.01)]) as place:
        stream_us, _ = await cpu_us_each(place, port, stream, num_streams, 32, "empty_pool")
    return Result(
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        prompt_tokens=len(prompt),
        num_unary=number,
        num_streams=num_streams,
        num_stream_tokens=num_streams * STREAM_TOKENS,
        cpu_us_per_unary_local=local_us,
        cpu_us_per_unary_remote=remote_us,
        cpu_us_per_streamed_token=(stream_us - local_us) / STREAM_TOKENS,
        direct_p50_us=percentile(straight, 50),
        direct_p99_us=percentile(straight, 99),
        gateway_p50_us=percentile(through, 50),
        gateway_p99_us=percentile(through, 99),
        added_p50_us=percentile(through, 50) - percentile(straight, 50),
        added_p99_us=percentile(through, 99) - percentile(straight, 99),
        unary_rps_at_8=unary_rps,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway in front of its workers."""

    gateway: psutil.Process
    rows: list[WorkerRoute]
    token: str
    times: Path  # of a timed gateway, at its end


@asynccontextmanager
async def fronted(
    port: int,
    model: Path,
    workers: Sequence[tuple[str, Role, float]],
    *,
    timed: bool = False,
    prepare: Callable[[Path], object] = lambda _: None,
) -> AsyncIterator[Place]:
    """Null workers (id, role, seconds per step) and a gateway that is ready; all of it ends with this block.

    `prepare` is given the run folder before anything starts.
    """
    with ExitStack() as stack:
        run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="phaseline-bench-")))
        prepare(run_dir)
        rows = [start_worker(stack, run_dir, *worker) for worker in workers]
        gateway = start_gateway(stack, run_dir, model, port, rows, timed=timed)
        await wait_ready(port)
        yield Place(gateway, rows, fleet_token(run_dir), run_dir / TIMES)


async def cpu_us_each(
    place: Place, port: int, payload: bytes, number: int, concurrency: int, rule: str
) -> tuple[float, float]:
    """CPU of the gateway per request in us, after a warm-up; and requests per second."""
    await many(port, payload, max(concurrency, number // 5), concurrency, rule)
    before_s = cpu_s(place.gateway)
    took_s = await many(port, payload, number, concurrency, rule)
    return (cpu_s(place.gateway) - before_s) / number * 1e6, number / took_s


def table_of(result: Result) -> str:
    rows = [
        ("CPU per unary request, one worker", f"{result.cpu_us_per_unary_local:.0f} us"),
        ("CPU per unary request, prefill + decode worker", f"{result.cpu_us_per_unary_remote:.0f} us"),
        ("CPU per streamed token (32 streams, one message per step)", f"{result.cpu_us_per_streamed_token:.1f} us"),
        ("latency straight to the worker, p50 / p99", f"{result.direct_p50_us:.0f} / {result.direct_p99_us:.0f} us"),
        ("latency through the gateway, p50 / p99", f"{result.gateway_p50_us:.0f} / {result.gateway_p99_us:.0f} us"),
        ("added, p50 / p99", f"{result.added_p50_us:.0f} / {result.added_p99_us:.0f} us"),
        ("unary requests per second over 8 connections", f"{result.unary_rps_at_8:.0f}"),
    ]
    head = (
        f"gateway in front of null workers: {result.machine}\n"
        f"{result.num_unary} unary requests of {result.prompt_tokens} + {UNARY_TOKENS} tokens, "
        f"{result.num_streams} streams of {STREAM_TOKENS} tokens\n"
    )
    return head + "\n".join(f"{name:<60} {value:>16}" for name, value in rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gateway", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=3000, help="unary requests per measurement, 100..100000")
    parser.add_argument("--model", type=Path, help="model folder; the one that ships when absent")
    parser.add_argument("--port", type=int, default=18200, help="port of the gateway, on loopback")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not 100 <= options.requests <= 100_000:
        parser.error(f"--requests must be in 100..100000, got {options.requests}")
    result = uvloop.run(measure(options.requests, model_folder(options.model).resolve(), options.port))
    print(json.dumps(asdict(result), indent=2) if options.json else table_of(result))


if __name__ == "__main__":
    main()
