"""Traces of requests to an OpenTelemetry collector, by OTLP/HTTP, from a thread of their own.

Decided here: which requests are traced (those whose client says so; of the others a share), and what happens when the
collector is slow or away: records wait in a bounded queue, the oldest gives way, and everything lost is counted. A
request costs the event loop one append. Not decided here: what a span says (`control.gateway.spans`).
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Literal

from control.types.requests import RequestRecord

if TYPE_CHECKING:  # loaded by the thread, and only where there is a collector
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource

_log = logging.getLogger("phaseline.tracing")
Outcome = Literal["exported", "failed", "dropped"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("exported", "failed", "dropped")
MAX_WAITING: Final = 2048
MAX_BATCH: Final = 128
#: Records wait for company so long.
GATHER_S: Final = 0.5
EXPORT_LIMIT_S: Final = 5.0
CLOSE_LIMIT_S: Final = 3.0
_PATH: Final = "/v1/traces"


def traces_url(endpoint: str) -> str:
    """`http://collector:4318` means its `/v1/traces`; a path that is given stays."""
    scheme, _, rest = endpoint.rstrip("/").partition("://")
    return f"{scheme}://{rest}" if "/" in rest else f"{scheme}://{rest}{_PATH}"


class Tracing:
    """One gateway's. `take` is for the event loop, everything else is the thread's."""

    def __init__(self, endpoint: str, sample_share: float, about: dict[str, str]) -> None:
        """`about`: the resource, `service.name` and so on."""
        self.requests: Counter[Outcome] = Counter()  # traced requests by what became of their spans
        self._sample_share = sample_share
        self._url = traces_url(endpoint)
        self._about = about
        self._waiting: deque[tuple[RequestRecord, str]] = deque()
        self._wake = threading.Event()
        self._is_closing = False
        self._was_away = False
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def samples(self) -> bool:
        """Whether to trace a request whose client does not say."""
        return random.random() < self._sample_share

    def take(self, record: RequestRecord, parent_span_id: str) -> None:
        """A request has ended. Waits for nothing."""
        if not int(record.traceparent[53:] or "0", 16) & 1:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.requests["dropped"] += 1
        self._waiting.append((record, parent_span_id))
        self._wake.set()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Send what waits, but not for long. Blocks: not for the event loop."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(CLOSE_LIMIT_S)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # once when it goes and comes is enough: below
        exporter = OTLPSpanExporter(endpoint=self._url, timeout=EXPORT_LIMIT_S)
        resource = Resource.create(self._about)
        while not (self._is_closing and not self._waiting):
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                self._send(exporter, resource)
        exporter.shutdown()  # type: ignore[no-untyped-call]

    def _send(self, exporter: OTLPSpanExporter, resource: Resource) -> None:
        """One batch, tried by the exporter itself until its time is over."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        from control.gateway.spans import spans_of

        if not self._is_closing and len(self._waiting) < MAX_BATCH:
            threading.Event().wait(GATHER_S)
        batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
        spans = [span for record, parent in batch for span in spans_of(record, parent, resource)]
        is_sent = exporter.export(spans) is SpanExportResult.SUCCESS
        self.requests["exported" if is_sent else "failed"] += len(batch)
        if is_sent == self._was_away:
            self._was_away = not is_sent
            _log.warning("the collector at %s %s", self._url, "is back" if is_sent else "takes no traces")
