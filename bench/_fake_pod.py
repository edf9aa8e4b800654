"""The engine of a pod that is none: answers as a vLLM server does, and has a page with what it has counted.

python bench/_fake_pod.py ROLE HOST PORT STEP_S
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from _fake_worker import FakeWorker

LABELS = 'engine="0",model_name="fake"'
VERSION = "0.32.0-fake"
#: As long as a pod has, by default, between the wish that it ends and its end.
GRACE_S = 30


class FakePod(FakeWorker):
    """A prefill server computes prompts; a decode server has them from elsewhere and computes answers."""

    def __init__(self, role: str, step_s: float) -> None:
        super().__init__(role, step_s)
        self.num_prompts = self.num_prompt_tokens = 0

    async def _answer(self, send: Any, asked: dict[str, Any]) -> None:
        self.num_prompts += 1
        self.num_prompt_tokens += len(str(asked["prompt"]).split())
        await self._stream(send, asked | ({"max_tokens": 1} if self.role == "prefill" else {}))

    async def _json(self, send: Any, value: dict[str, Any]) -> None:
        await super()._json(send, value | {"version": VERSION})

    def _page(self) -> str:
        computed = self.num_prompt_tokens if self.role == "prefill" else 0
        counted = {
            "generation_tokens_total": self.num_tokens,
            "iteration_tokens_total_count": self.num_tokens + (self.num_prompts if computed else 0),
            "request_prompt_tokens_count": self.num_prompts,
            "request_prompt_tokens_sum": self.num_prompt_tokens,
            "num_requests_running": self.num_running,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": 0.0,
        }
        sources = {"local_compute": computed, "external_kv_transfer": self.num_prompt_tokens - computed}
        lines = [f"vllm:{name}{{{LABELS}}} {value}" for name, value in counted.items()]
        lines += [
            f'vllm:prompt_tokens_by_source_total{{{LABELS},source="{source}"}} {value}'
            for source, value in sources.items()
        ]
        return "\n".join(lines) + "\n"


if __name__ == "__main__":
    role, host, port, step_s = sys.argv[1:5]
    app: Any = FakePod(role, float(step_s))
    uvicorn.run(app, host=host, port=int(port), log_level="warning", lifespan="off", timeout_graceful_shutdown=GRACE_S)
