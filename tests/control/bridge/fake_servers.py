"""Engines of other people over real HTTP on loopback: vLLM with NIXL, a plain OpenAI server, SGLang. They compute
nothing: the next token is a function of all tokens before it, so that any of them continues any other's answer exactly.

A decode request is checked as the real one would fail: KV that nobody keeps, or that of another prompt, is an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "tiny"
BLOCK = 16


def next_token(tokens: Sequence[int]) -> int:
    """In the visible part of the test tokenizer's alphabet."""
    return 40 + (sum(tokens) * 31 + len(tokens) * 7) % 50


def answer_of(prompt: Sequence[int], num: int) -> list[int]:
    """What every one of these engines says after `prompt`, greedy."""
    tokens = list(prompt)
    for _ in range(num):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass(slots=True, kw_only=True)
class FakeServer:
    """One engine. `seen`: bodies of generation requests. `kept` is shared by those that hand KV to each other."""

    kind: str = "vllm"
    name: str = "a"
    kept: dict[str, list[int]] = field(default_factory=dict)
    rooms: dict[int, asyncio.Future[list[int]]] = field(default_factory=dict)
    pace_s: float = 0.0  # between two tokens
    skew: int = 0  # added to the first token of a prompt that is computed for another server
    loses_kv: bool = False
    ignores_kv: bool = False  # it computes a prompt itself whose KV waits elsewhere
    num_pulled: int = 0
    computed_tokens: int = 0
    fetched_tokens: int = 0
    max_running: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    num_running: int = 0
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/get_server_info", self._info)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/generate", self._generate)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def die(self) -> None:
        """As a process that is killed: every connection ends, nobody listens."""
        if self._runner is None or self._runner.server is None:
            return
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL, "max_model_len": 4096}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        if self.kind != "vllm":
            raise web.HTTPNotFound
        page = f'vllm:cache_config_info{{block_size="{BLOCK}",num_gpu_blocks="4096"}} 1.0\n'
        page += f'vllm:num_requests_running{{model_name="{MODEL}"}} {self.num_running}\n'
        page += f'vllm:generation_tokens_total{{model_name="{MODEL}"}} {len(self.seen)}\n'
        for source, num in (("local_compute", self.computed_tokens), ("external_kv_transfer", self.fetched_tokens)):
            page += f'vllm:prompt_tokens_by_source_total{{model_name="{MODEL}",source="{source}"}} {num}\n'
        return web.Response(text=page)

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response({"disaggregation_bootstrap_port": 9100})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        prompt, num, params = body["prompt"], body["max_tokens"], body.get("kv_transfer_params")
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            fetches = bool(params and params.get("do_remote_prefill")) and not self.ignores_kv
            self.fetched_tokens += len(prompt) if fetches else 0
            self.computed_tokens += 0 if fetches else len(prompt)
            if params and params.get("do_remote_decode"):
                return await self._prefill(prompt, num)
            if fetches and (problem := self._fetch(prompt, params)):
                return web.json_response({"error": {"message": problem}}, status=500)
            return await self._stream(request, body, prompt, num)
        finally:
            self.num_running -= 1

    async def _prefill(self, prompt: list[int], num: int) -> web.Response:
        assert num == 1, "a prompt that is computed for another server has max_tokens 1"
        await asyncio.sleep(self.pace_s)
        key = f"{self.name}-{len(self.seen)}"
        self.kept[key] = list(prompt)
        token = next_token(prompt) + self.skew
        params = {"do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": self.name,
                  "remote_block_ids": [list(range(-(-len(prompt) // BLOCK)))], "remote_request_id": key,
                  "remote_host": "127.0.0.1", "remote_port": 5600, "remote_num_tokens": len(prompt), "dcp_size": 1,
                  "transfer_mode": "pull"}  # fmt: skip
        choice = {"text": "x", "token_ids": [token], "finish_reason": "length"}
        return web.json_response({"choices": [choice], "kv_transfer_params": params})

    def _fetch(self, prompt: list[int], params: dict[str, Any]) -> str:
        kept = self.kept.pop(params["remote_request_id"], None)
        if kept is None or self.loses_kv:
            return "KV load failure"
        self.num_pulled += 1
        if len(prompt) > len(params["remote_block_ids"][0]) * BLOCK:
            return "blocks are wanted that were never filled"
        return "" if kept == prompt[: len(kept)] else "the KV is of another prompt"

    async def _stream(
        self, request: web.Request, body: dict[str, Any], prompt: list[int], num: int
    ) -> web.StreamResponse:
        tokens = answer_of(prompt, num)
        if not body["stream"]:
            return web.json_response({"choices": [self._choice(tokens, "length")]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for index, token in enumerate(tokens):
            await asyncio.sleep(self.pace_s)
            choice = self._choice([token], "length" if index == num - 1 else None)
            await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def _choice(self, tokens: list[int], finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"text": "".join(map(chr, tokens)), "finish_reason": finish}
        return {**choice, "token_ids": tokens} if self.kind == "vllm" else choice

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        """SGLang: both halves wait for each other in a room."""
        body = await request.json()
        self.seen.append(body)
        prompt, num, room = body["input_ids"], body["sampling_params"]["max_new_tokens"], body.get("bootstrap_room")
        if room is not None:
            assert (body["bootstrap_host"], body["bootstrap_port"]) == ("127.0.0.1", 9100)
            met = self.rooms.setdefault(room, asyncio.get_running_loop().create_future())
            if not body["stream"] and num == 1:
                met.set_result(list(prompt)) if not met.done() else None
                await asyncio.sleep(0)
                return web.json_response({"output_ids": answer_of(prompt, 1), "meta_info": _meta("length")})
            assert await met == prompt, "the KV is of another prompt"
        tokens = answer_of(prompt, num)
        if not body["stream"]:
            return web.json_response({"output_ids": tokens, "meta_info": _meta("length")})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for end in range(1, num + 1):
            event = {"output_ids": tokens[:end], "meta_info": _meta("length" if end == num else None)}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def _meta(finish: str | None) -> dict[str, Any]:
    return {"finish_reason": {"type": finish} if finish else None}
