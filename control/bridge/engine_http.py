"""HTTP to one engine: is it there, what is it, and its tokens as they come.

Decided here: bounds on time and size, and which failure means what (`EngineAway`: nobody answers there;
`EngineRefused`: it answers, and not with tokens). Not decided here: what is asked (`control.bridge.speech`), and what
follows.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from control.bridge.speech import Asked, Chunk, Encode, Speech, SpeechError, event_of, problem_of

PROBE_LIMIT_S: Final = 2.0
#: A busy engine accepts late; one that is not there refuses at once.
CONNECT_LIMIT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 8 * 2**20
MAX_LINE_BYTES: Final = 2**20
#: Shorter than servers keep an idle connection (vLLM: 5 s), so that none closes just as it is used again.
KEEP_ALIVE_S: Final = 3.0
#: Where an engine does not say how long a request may be.
ASSUMED_CONTEXT: Final = 8192
#: Where an engine does not say how much KV it holds: it queues by itself what does not fit.
ASSUMED_KV_TOKENS: Final = 2**20
ASSUMED_BLOCK_TOKENS: Final = 16
#: SGLang's own default for `--disaggregation-bootstrap-port`.
SGLANG_BOOTSTRAP_PORT: Final = 8998
_CACHE_INFO: Final = re.compile(r"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)


class EngineAway(Exception):
    """It cannot be reached, or the connection ended before the answer did."""


class EngineRefused(Exception):
    """It answered with an error. `status`: of HTTP; 0: inside a stream."""

    def __init__(self, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What an engine says of itself."""

    model: str
    max_context: int = ASSUMED_CONTEXT
    block_tokens: int = ASSUMED_BLOCK_TOKENS
    kv_blocks: int = ASSUMED_KV_TOKENS // ASSUMED_BLOCK_TOKENS
    bootstrap_port: int = SGLANG_BOOTSTRAP_PORT


def new_session() -> aiohttp.ClientSession:
    """For all engines of a fleet."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=MAX_LINE_BYTES, trust_env=False)


class EngineHttp:
    """One engine at `url` (scheme, host, port). `encode` is for engines that answer with text only. `page_url`: of its
    metrics, if they are not at /metrics there.

    `token_file` is read anew for each call, and its secret kept nowhere.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        speech: Speech,
        url: str,
        encode: Encode,
        token_file: str = "",
        *,
        page_url: str = "",
    ) -> None:
        self.speech = speech
        self.url = url
        self.model = ""
        self._session = session
        self._encode = encode
        self._token_file = token_file
        self._page_url = page_url or f"{url}/metrics"

    async def probe(self) -> Shape:
        """Ask what it serves. Raises EngineAway."""
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                shape = self._shape(await self._get("/v1/models"), await self._metrics())
                if self.speech.is_rendezvous:
                    info = await self._get("/get_server_info")
                    port = int(info.get("disaggregation_bootstrap_port") or SGLANG_BOOTSTRAP_PORT)
                    shape = replace(shape, bootstrap_port=port)
        except TimeoutError as error:
            raise EngineAway(f"{self.url} has not answered within {PROBE_LIMIT_S:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
            raise EngineAway(f"{self.url}: {error or type(error).__name__}") from error
        self.model = shape.model
        return shape

    async def is_there(self) -> bool | None:
        """True: it answers, whatever it says. False: nobody listens there. None: no answer in time, which a busy engine
        on a busy host does not give either."""
        try:
            async with asyncio.timeout(PROBE_LIMIT_S), self._session.get(f"{self.url}/v1/models", headers=self._auth()):
                return True
        except (TimeoutError, aiohttp.ServerTimeoutError):
            return None
        except (aiohttp.ClientError, OSError):
            return False

    async def page(self) -> str:
        """Its metrics page; "" where it has none, or does not give it in time."""
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                return await self._metrics()
        except (TimeoutError, aiohttp.ClientError, OSError):
            return ""

    async def whole(self, asked: Asked) -> Chunk:
        """All of an answer at once. Raises EngineAway, EngineRefused."""
        body = self.speech.body(self.model, asked, False)
        try:
            async with self._session.post(f"{self.url}{self.speech.path}", json=body, headers=self._auth()) as answer:
                event = await self._json(answer)
            return self.speech.chunk(event, 0, self._encode)
        except SpeechError as error:
            raise EngineRefused(f"{self.url}: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineAway(f"{self.url}: {error or type(error).__name__}") from error

    async def stream(self, asked: Asked) -> AsyncIterator[Chunk]:
        """The answer as it comes; it always ends with a `finish`. Raises EngineAway, EngineRefused."""
        body = self.speech.body(self.model, asked, True)
        num_tokens, has_ended = 0, False
        try:
            async with self._session.post(f"{self.url}{self.speech.path}", json=body, headers=self._auth()) as answer:
                if answer.status != 200:
                    await self._json(answer)
                async for line in answer.content:
                    event = event_of(line)
                    if event is None or has_ended:
                        continue
                    chunk = self.speech.chunk(event, num_tokens, self._encode)
                    num_tokens += len(chunk.tokens)
                    has_ended = chunk.finish is not None
                    yield chunk
        except SpeechError as error:
            raise EngineRefused(f"{self.url}: {error}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineAway(f"{self.url}: {error or type(error).__name__}") from error
        if not has_ended:
            raise EngineAway(f"{self.url}: the stream ended before its answer did")

    # --- parts -------------------------------------------------------------------------------------------------------

    def _auth(self) -> dict[str, str]:
        if not self._token_file:
            return {}
        return {"Authorization": f"Bearer {Path(self._token_file).read_text().strip()}"}

    async def _get(self, path: str) -> Any:
        async with self._session.get(f"{self.url}{path}", headers=self._auth()) as answer:
            if answer.status != 200:
                raise ValueError(f"{path} answers {answer.status}")
            return json.loads(await answer.content.read(MAX_ANSWER_BYTES))

    async def _metrics(self) -> str:
        """Its metrics page; "" where it has none."""
        async with self._session.get(self._page_url, headers=self._auth()) as answer:
            if answer.status != 200:
                return ""
            parts, size = [], 0
            async for part in answer.content.iter_chunked(2**16):
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    return ""
                parts.append(part)
            return b"".join(parts).decode("utf-8", "replace")

    def _shape(self, models: Any, page: str) -> Shape:
        entry = models["data"][0]
        found = _CACHE_INFO.search(page)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1))) if found else {}
        block = int(labels.get("block_size", 0)) or ASSUMED_BLOCK_TOKENS
        return Shape(
            model=str(entry["id"]),
            max_context=int(entry.get("max_model_len") or ASSUMED_CONTEXT),
            block_tokens=block,
            kv_blocks=int(labels.get("num_gpu_blocks", 0) or 0) or ASSUMED_KV_TOKENS // block,
        )

    async def _json(self, answer: aiohttp.ClientResponse) -> dict[str, Any]:
        """Raises EngineRefused for anything but 200 with an object."""
        text = await answer.read()
        try:
            body = json.loads(text)
        except ValueError:
            body = text.decode("utf-8", "replace")
        if answer.status != 200:
            raise EngineRefused(problem_of(body), answer.status)
        if not isinstance(body, dict):
            raise EngineRefused(f"{self.url} answers with {type(body).__name__}, not an object", answer.status)
        return body
