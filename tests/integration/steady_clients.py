"""Clients that stream completions without a break and without a retry, and keep what did not go as it should."""

from __future__ import annotations

import json
import threading
from types import TracebackType

import httpx

LIMIT_S = 120.0


class SteadyClients:
    """Threads, each with connections of its own. The same prompt must always get the same text (seed and position)."""

    def __init__(self, url: str, model: str, *, num_clients: int = 4, max_tokens: int = 60, **fields: object) -> None:
        """`fields`: of every request, over those below."""
        self.failures: list[str] = []
        self.num_served = 0
        self._url = f"{url}/v1/completions"
        self._model = model
        self._max_tokens = max_tokens
        self._fields = fields
        self._texts: dict[int, str] = {}
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(num_clients)]

    def __enter__(self) -> SteadyClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client_number: int) -> None:
        with httpx.Client(timeout=LIMIT_S, trust_env=False) as client:
            number = client_number
            while not self._ends.is_set():
                number += len(self._threads)
                self._note(number % 16, self._one(client, number % 16))

    def _one(self, client: httpx.Client, number: int) -> tuple[str, str]:
        """(text, problem) of one streamed answer."""
        body = {
            "model": self._model,
            "prompt": [3 + (number * 7 + at * at) % 200 for at in range(40 + 10 * number)],
            "max_tokens": self._max_tokens,
            "seed": number,
            "ignore_eos": True,
            "stream": True,
            **self._fields,
        }
        parts: list[str] = []
        last = ""
        try:
            with client.stream("POST", self._url, json=body) as answer:
                for line in answer.iter_lines():
                    if not line:
                        continue
                    last = line.removeprefix("data: ")
                    if answer.status_code == 200 and last != "[DONE]":
                        event = json.loads(last)
                        if "error" in event:
                            return "", last
                        parts += [choice["text"] for choice in event["choices"]]
        except httpx.HTTPError as error:
            return "".join(parts), repr(error)
        return "".join(parts), "" if last == "[DONE]" else f"{answer.status_code}: {last[:300]}"

    def _note(self, number: int, outcome: tuple[str, str]) -> None:
        text, problem = outcome
        with self._lock:
            if not problem and self._texts.setdefault(number, text) != text:
                problem = f"answer {number} changed"
            if problem:
                self.failures.append(problem)
            else:
                self.num_served += 1
