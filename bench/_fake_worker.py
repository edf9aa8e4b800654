"""A prefill or decode worker of a few lines for another router: it answers any prompt with a slow stream of numbers.

python bench/_fake_worker.py ROLE PORT STEP_S

The text depends on the prompt and the position alone, so that a lost, repeated or changed token shows.
"""

from __future__ import annotations

import asyncio
import json
import sys
import zlib
from typing import Any

import uvicorn

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream")]


class FakeWorker:
    """A raw ASGI app."""

    def __init__(self, role: str, step_s: float) -> None:
        self.role = role
        self.step_s = step_s
        self.num_running = 0
        self.num_tokens = 0

    def _page(self) -> str:
        """As SGLang 0.5.23 names its series."""
        labels = '{model_name="fake",engine_type="unified"}'
        values = {
            "num_running_reqs": self.num_running,
            "num_queue_reqs": 0,
            "token_usage": 0.0,
            "generation_tokens_total": self.num_tokens,
        }
        return "".join(f"sglang:{name}{labels} {value}\n" for name, value in values.items())

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
            await send(_part(self._page().encode(), more=False))
            return
        if scope["method"] != "POST":
            await self._json(send, {"status": "ok", "model_path": "fake", "data": [{"id": "fake"}]})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = json.loads(body or b"{}")
        self.num_running += 1
        try:
            await self._answer(send, asked)
        finally:
            self.num_running -= 1

    async def _answer(self, send: Any, asked: dict[str, Any]) -> None:
        if asked.get("stream") and self.role != "prefill":
            await self._stream(send, asked)
        else:
            await asyncio.sleep(self.step_s)
            await self._json(send, {"id": "fake", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]})

    async def _json(self, send: Any, value: dict[str, Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": JSON})
        await send({"type": "http.response.body", "body": json.dumps(value).encode()})

    async def _stream(self, send: Any, asked: dict[str, Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        salt = zlib.crc32(str(asked["prompt"]).encode()) % 1000
        for index in range(asked["max_tokens"]):
            await asyncio.sleep(self.step_s)
            self.num_tokens += 1
            chunk = {"id": "fake", "choices": [{"index": 0, "text": f" {salt}.{index}", "finish_reason": None}]}
            await send(_part(b"data: " + json.dumps(chunk).encode() + b"\n\n"))
        await send(_part(b"data: [DONE]\n\n", more=False))


def _part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


if __name__ == "__main__":
    app = FakeWorker(sys.argv[1], float(sys.argv[3]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", lifespan="off")  # type: ignore[arg-type]
