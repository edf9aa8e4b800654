"""The gateway as one ASGI application: paths, admission of a request, and its record.

    POST /v1/chat/completions, /v1/completions      GET /v1/models, /v1/models/{id}, /healthz, /readyz, /metrics

Decided here: the order of checks before a request may reach a worker. Not here: any one of the checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from control.exposition.families import rendered
from control.exposition.request_totals import RequestTotals
from control.gateway import errors
from control.gateway.admission import Admission
from control.gateway.answers import model_body
from control.gateway.body import Bodies
from control.gateway.errors import GatewayError, bad_request, bad_value
from control.gateway.exchange import Exchange
from control.gateway.fleet import Fleet
from control.gateway.http import (
    Disconnected,
    Receive,
    RequestHeaders,
    Scope,
    Send,
    parse_headers,
    send_answer,
    send_error,
)
from control.gateway.job import Job
from control.gateway.metrics_page import GatewayFacts, gateway_page
from control.gateway.records import Ended, Origin, RecordLog, make_records
from control.gateway.relay import Relay
from control.gateway.schema import Ask, Endpoint, parse_ask
from control.gateway.tracing import Tracing
from control.gateway.urgency import priority_of
from control.listener import GatewayStatus
from control.types.requests import RequestRecord
from engine.blocks import block_hashes
from engine.core_types import MIN_TEMPERATURE
from engine.text import TemplateError, Text
from engine.types import SamplingParams

log = logging.getLogger(__name__)

GENERATE: Final[dict[str, Endpoint]] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
#: Longer texts are tokenized on a thread, so that they do not hold up everybody's tokens.
MAX_INLINE_CHARS: Final = 20_000
TIME_CHECK_S: Final = 0.25
#: Records are made once a second, as a plane looks.
LOOKS_PER_CATCH_UP: Final = 4
PULSE_CHECK_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """Bounds of one gateway, from the settings."""

    default_max_tokens: int
    max_body_bytes: int
    first_token_timeout_s: float
    token_gap_timeout_s: float
    client_stall_s: float = 30.0
    max_bodies_bytes: int = 256 * 2**20


class Gateway:
    """The ASGI application. `text` is set once the model folder is there; until then it is not ready."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        admission: Admission,
        records: RecordLog,
        origin: Origin,
        limits: GatewayLimits,
        tracing: Tracing | None = None,
    ) -> None:
        self.fleet = fleet
        self.admission = admission
        self.records = records
        self.text: Text | None = None
        self.text_problem = "the model's tokenizer is not loaded yet"
        self.is_stopping = False
        self._origin = origin
        self._totals = RequestTotals(origin.slo)
        records.make = self._make_records
        self._tracing = tracing
        self._samples = tracing.samples if tracing is not None else lambda: False
        self._limits = limits
        self._bodies = Bodies(limits.max_body_bytes, limits.max_bodies_bytes)
        self._started_unix_s = time.time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        send = self._polite(send)
        path: str = scope["path"]
        endpoint = GENERATE.get(path)
        if endpoint is not None and scope["method"] == "POST":
            await self._generate(endpoint, scope, receive, send)
            return
        try:
            if path == "/metrics" and scope["method"] == "GET":
                await self._metrics(scope, send)
            else:
                await self._get(path, scope["method"], send)
        except GatewayError as error:
            await send_error(send, error)

    # --- the end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Not ready any more. What comes on open connections is served, and told that it was the last there."""
        self.is_stopping = True

    def give_up(self, limit_s: float) -> None:
        """The time is over: what is left ends with an error."""
        for relay in list(self.admission.in_flight.values()):
            relay.fail(errors.stopping(limit_s))

    def status(self) -> GatewayStatus:
        """For whoever runs this process; the shared address may be answered by another one."""
        return GatewayStatus(
            problem=self.why_not_ready(),
            num_in_flight=len(self.admission.in_flight),
            is_stopping=self.is_stopping,
        )

    def _polite(self, send: Send) -> Send:
        """Every answer that begins after `stop` says that its connection closes."""

        async def told(message: dict[str, Any]) -> None:
            if self.is_stopping and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        return told

    async def watch(self) -> None:
        """End what waits for too long, and have records made of what has ended. Runs until cancelled."""
        for look in itertools.count(1):
            await asyncio.sleep(TIME_CHECK_S)
            now_s, now_unix_s = time.monotonic(), time.time()
            self.admission.review(now_s, now_unix_s)
            self._check_times(now_s, now_unix_s)
            self.fleet.look_at_moves()
            if look % LOOKS_PER_CATCH_UP == 0:
                self.records.catch_up()

    async def watch_pulses(self) -> None:
        """Leave workers that hang or are silent. Runs until cancelled."""
        while True:
            asleep_s = time.monotonic()
            await asyncio.sleep(PULSE_CHECK_S)
            late_s = time.monotonic() - asleep_s - PULSE_CHECK_S
            self.admission.lateness.note(late_s)
            if late_s >= PULSE_CHECK_S:  # we were late ourselves: first read what was said
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            self.fleet.leave_dead(time.monotonic(), self._limits.token_gap_timeout_s)

    def _check_times(self, now_s: float, now_unix_s: float) -> None:
        for relay in list(self.admission.in_flight.values()):
            relay.check_time(now_s, now_unix_s, self._limits.first_token_timeout_s)

    # --- what is only read -------------------------------------------------------------------------------------------

    async def _get(self, path: str, method: str, send: Send) -> None:
        if path in GENERATE:
            raise errors.wrong_method(method, "POST")
        answer = _READS.get(path)
        if answer is None and path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            answer = lambda gateway: gateway._one_model(name)  # noqa: E731
        if answer is None:
            raise errors.unknown_path(path)
        if method != "GET":
            raise errors.wrong_method(method, "GET")
        status, body = answer(self)
        await send_answer(send, status, msgspec.json.encode(body))

    async def _metrics(self, scope: Scope, send: Send) -> None:
        """In the format that the scraper asks for; encoded on a thread, so that no token waits for it."""
        self.records.catch_up()
        page = gateway_page(
            GatewayFacts(
                gateway_id=self._origin.gateway_id,
                started_unix_s=self._started_unix_s,
                fleet=self.fleet,
                admission=self.admission,
                records=self.records,
                totals=self._totals,
                tracing=self._tracing,
            )
        )
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"").decode("latin-1")
        body, content_type = await asyncio.to_thread(rendered, [page], accept)
        await send_answer(send, 200, body, content_type=content_type.encode())

    def _health(self) -> tuple[int, dict[str, Any]]:
        return 200, {"status": "ok"}

    def _readiness(self) -> tuple[int, dict[str, Any]]:
        problem = self.why_not_ready()
        if problem:
            return 503, {"status": "not ready", "reason": problem}
        table = self.fleet.table
        return 200, {
            "status": "ready",
            "table_version": table.version if table else 0,
            "num_serving": self.fleet.num_serving,
        }

    def _models(self) -> tuple[int, dict[str, Any]]:
        table = self.fleet.table
        return 200, {"object": "list", "data": [self._model(table.model_id)] if table else []}

    def _one_model(self, name: str) -> tuple[int, dict[str, Any]]:
        table = self.fleet.table
        if table is None or name != table.model_id:
            raise errors.unknown_model(name, table.model_id if table else "no model yet")
        return 200, self._model(name)

    def _model(self, model_id: str) -> dict[str, Any]:
        max_context = self.fleet.view().max_context
        return model_body(model_id, int(self._started_unix_s), max_context, simulated=self.fleet.simulated)

    def why_not_ready(self) -> str:
        """One line; "" when requests can be served."""
        if self.is_stopping:
            return "the gateway is stopping"
        if self.text is None:
            return self.text_problem
        if self.fleet.table is None:
            return "no routing table yet: the plane has not been reached and none is kept on disk"
        return "" if self.fleet.num_serving else "no worker takes requests"

    # --- generation --------------------------------------------------------------------------------------------------

    async def _generate(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        arrival_s, arrival_unix_s = time.monotonic(), time.time()
        seen: list[tuple[bytes, bytes]] = []
        try:
            headers = parse_headers(scope["headers"], self._samples)
            seen.append((b"x-request-id", headers.request_id.encode()))
            seen.append((b"traceparent", headers.traceparent.encode()))
            async with self._bodies.read(receive, headers.content_length) as body:
                ask = parse_ask(endpoint, body)
                job = await self._make_job(ask, headers, arrival_s, arrival_unix_s)
        except Disconnected:
            return
        except GatewayError as error:
            await send_error(send, error, seen)
            return
        except Exception:
            log.exception("a request broke before it was admitted")
            await send_error(send, errors.internal("an internal error of the gateway"), seen)
            return
        await self._serve(ask, job, arrival_unix_s, receive, send)

    async def _make_job(self, ask: Ask, headers: RequestHeaders, arrival_s: float, arrival_unix_s: float) -> Job:
        """Everything that can be wrong with a request is found here, before any worker hears of it."""
        text, table = self.text, self.fleet.table
        if text is None or table is None:
            raise errors.not_ready(self.why_not_ready())
        if ask.model != table.model_id:
            raise errors.unknown_model(ask.model, table.model_id)
        prompt = await _tokens_of(ask, text)
        deadline_s = ask.deadline_s if ask.deadline_s is not None else headers.deadline_s
        view = self.fleet.view()
        max_tokens = _max_tokens(ask.max_tokens, len(prompt), view.max_context, self._limits.default_max_tokens)
        sampling = SamplingParams(
            temperature=ask.temperature if ask.temperature >= MIN_TEMPERATURE else 0.0,
            top_p=ask.top_p,
            top_k=ask.top_k,
            seed=secrets.randbits(63) if ask.seed is None else ask.seed,
            max_tokens=max_tokens,
            stop_token_ids=() if ask.ignore_eos else text.eos_token_ids,
            ignore_eos=ask.ignore_eos,
        )
        return Job(
            request_id=headers.request_id,
            wire_id=headers.wire_id,
            prompt=prompt,
            block_hashes=block_hashes(prompt, view.block_tokens) if view.block_tokens else [],
            sampling=sampling,
            arrival_s=arrival_s,
            priority=priority_of(ask.priority, headers.priority, ask.service_tier),
            deadline_unix_s=None if deadline_s is None else arrival_unix_s + deadline_s,
            api_key_id=headers.api_key_id,
            traceparent=headers.traceparent,
            parent_span_id=headers.parent_span_id,
        )

    async def _serve(self, ask: Ask, job: Job, arrival_unix_s: float, receive: Receive, send: Send) -> None:
        text, table = self.text, self.fleet.table
        assert text is not None
        assert table is not None
        relay = Relay(job, self.fleet)
        exchange = Exchange(ask, relay, text, int(arrival_unix_s), table.model_id, self._limits.client_stall_s)
        try:
            self.admission.enter(job.wire_id, relay)
            await exchange.serve(receive, send)
        except GatewayError as error:
            relay.fail(error)
            await exchange.refuse(send, error)
        except Exception:
            log.exception("request %s broke", job.request_id)
            await exchange.abort(send)
        finally:
            ended = Ended(
                ask, relay, table.model_id, arrival_unix_s, exchange.output_tokens, time.monotonic(), exchange.error
            )
            self.admission.leave(job.wire_id, relay, ended.status)
            self.records.note(ended)

    def _make_records(self, ended: Sequence[Ended]) -> list[RequestRecord]:
        """Of requests that have ended, which are counted and traced with them."""
        records = make_records(self._origin, ended)
        for each, record in zip(ended, records, strict=True):
            self._totals.add(record)
            if self._tracing is not None:
                self._tracing.take(record, each.relay.job.parent_span_id)
        return records


_READS: Final[dict[str, Callable[[Gateway], tuple[int, dict[str, Any]]]]] = {
    "/healthz": Gateway._health,
    "/readyz": Gateway._readiness,
    "/v1/models": Gateway._models,
}


async def _tokens_of(ask: Ask, text: Text) -> list[int]:
    """The prompt's tokens. Raises GatewayError (400) for a prompt that has none, or none that the model knows."""
    if type(ask.prompt) is list:
        for at, token_id in enumerate(ask.prompt):
            if token_id >= text.vocab_size:
                raise bad_value(f"prompt[{at}]", f"a token id in 0..{text.vocab_size - 1}", token_id)
        return ask.prompt
    encode: Callable[[], list[int]]
    if ask.endpoint == "chat":
        encode = lambda: text.encode_chat(ask.messages)  # noqa: E731
        num_chars = sum([len(message["content"]) for message in ask.messages])
    else:
        plain = str(ask.prompt)
        encode = lambda: text.encode(plain)  # noqa: E731
        num_chars = len(plain)
    try:
        tokens = await asyncio.to_thread(encode) if num_chars > MAX_INLINE_CHARS else encode()
    except TemplateError as error:
        raise bad_request(str(error), param="messages") from error
    if not tokens:
        raise bad_value("prompt", "a text of at least one token", ask.prompt)
    return tokens


def _max_tokens(asked: int | None, num_prompt: int, max_context: int, default: int) -> int:
    """The bound on the answer. `max_context` 0 is unknown: no worker was ever connected, and routing will say so."""
    if not max_context:
        return asked or default
    room = max_context - num_prompt
    if room < 1:
        raise GatewayError(
            400,
            f"the prompt has {num_prompt} tokens, which leaves no room for an answer in the context of "
            f"{max_context} tokens",
            param="messages",
            code="context_length_exceeded",
        )
    if asked is None:
        return min(default, room)
    if asked > room:
        raise errors.context_exceeded(
            f"prompt {num_prompt} + max_tokens {asked} = {num_prompt + asked} tokens, over the context of "
            f"{max_context} tokens"
        )
    return asked


@contextlib.asynccontextmanager
async def running(gateway: Gateway) -> Any:
    """The gateway's own tasks, for as long as this context lasts."""
    watches = [asyncio.create_task(gateway.watch()), asyncio.create_task(gateway.watch_pulses())]
    try:
        yield gateway
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await gateway.fleet.close()
