"""Parts for the gateway's tests: a small real tokenizer, null workers, and a gateway on a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from control.gateway.admission import Admission
from control.gateway.app import Gateway, GatewayLimits, running
from control.gateway.drain import Server
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.null_worker import NullConfig, NullWorker
from control.gateway.records import Origin, RecordLog
from control.gateway.tracing import Tracing
from control.types.requests import RequestRecord, Slo
from control.types.routing import RoutingPolicy, RoutingTable, WorkerRoute
from engine.text import ModelText, Text
from engine.types import WorkerState
from engine.wire import Hello

MODEL = "null"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLIT_ALWAYS = RoutingPolicy(min_fleet_devices=0, min_remote_prefill_tokens=0, max_local_output_tokens=0)
LOCAL_ALWAYS = RoutingPolicy(min_fleet_devices=100)
LIMIT_S = 10.0


def write_model_folder(folder: Path) -> Path:
    """A byte-level tokenizer of 400 tokens, with special tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The capital of France is Paris. Tokens are text, and text is tokens."] * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def table(workers: Sequence[NullWorker], addresses: Sequence[str], version: int = 1, **changes: Any) -> RoutingTable:
    """All workers with weight 1, split always; `weights` by worker id."""
    weights = changes.pop("weights", {})
    rows = tuple(
        WorkerRoute(
            worker_id=worker.config.worker_id,
            epoch=1,
            address=address,
            role=worker.config.role,
            state=WorkerState.READY,
            weight=weights.get(worker.config.worker_id, 1.0),
        )
        for worker, address in zip(workers, addresses, strict=True)
    )
    fields: dict[str, Any] = {"policy": SPLIT_ALWAYS, "num_devices": len(rows), **changes}
    return RoutingTable(version=version, fleet_id="test", model_id=MODEL, fence=1, workers=rows, **fields)


class House:
    """A running gateway with its workers, and a client."""

    def __init__(self, gateway: Gateway, workers: list[NullWorker], addresses: list[str], url: str) -> None:
        self.gateway = gateway
        self.workers = workers
        self.addresses = addresses
        self.url = url
        self.client = httpx.AsyncClient(base_url=url, timeout=LIMIT_S)
        self._version = 1

    def retable(self, **changes: Any) -> None:
        self._version += 1
        assert self.gateway.fleet.take_table(table(self.workers, self.addresses, self._version, **changes))

    @property
    def records(self) -> list[RequestRecord]:
        return self.gateway.records.batch_from(0)[1]

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=chat_body(**fields))

    async def events(self, **fields: Any) -> tuple[httpx.Response, list[Any]]:
        """A streamed chat: the response, and its events; the last one is "[DONE]" if it came."""
        response = await self.chat(stream=True, **fields)
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        return response, [line if line == "[DONE]" else json.loads(line) for line in lines]

    def seen(self, index: int, kind: type) -> list[Any]:
        return [message for message in self.workers[index].seen if isinstance(message, kind)]


def chat_body(**fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Where is Paris?"}], "max_tokens": 8}
    return {name: value for name, value in {**body, **fields}.items() if value is not ...}


@contextlib.asynccontextmanager
async def house(
    text: Text,
    configs: Sequence[NullConfig],
    *,
    limits: dict[str, Any] | None = None,
    max_in_flight: int = 64,
    slo: Slo | None = None,
    tracing: Tracing | None = None,
    **changes: Any,
) -> AsyncIterator[House]:
    """A gateway in front of null workers, on an ephemeral port; `changes` go into the table."""
    slo = slo or Slo()
    workers = [NullWorker(config) for config in configs]
    addresses = [await worker.start() for worker in workers]
    bounds = {"default_max_tokens": 16, "max_body_bytes": 100_000, **(limits or {})}
    bounds = {"first_token_timeout_s": 60.0, "token_gap_timeout_s": 60.0, **bounds}
    fleet = Fleet(Hello("gw-test", "gateway", "secret"))
    gateway = Gateway(
        fleet=fleet,
        admission=Admission(fleet, AdmissionRules(max_in_flight=max_in_flight, slo=slo)),
        records=RecordLog(),
        origin=Origin(gateway_id="gw-test", fleet_id="test", slo=slo),
        limits=GatewayLimits(**bounds),
        tracing=tracing,
    )
    gateway.text = text
    async with running(gateway), serving(gateway) as url:
        gateway.fleet.take_table(table(workers, addresses, **changes))
        await until(lambda: all(link.is_connected for link in gateway.fleet.links.values()))
        place = House(gateway, workers, addresses, url)
        try:
            yield place
        finally:
            await place.client.aclose()
            for worker in workers:
                await worker.close()


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvloop does it: or each answer waits 40 ms
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task
        listener.close()


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Wait for a state, within a bound."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  any state of any part
            await asyncio.sleep(0.002)


def load_text(folder: Path) -> ModelText:
    return ModelText(write_model_folder(folder))
