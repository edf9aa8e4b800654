"""`python -m tests.control.gateway.otlp_receiver PORT`: a collector that prints each span as a JSON line."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def told(request: ExportTraceServiceRequest) -> list[dict[str, object]]:
    return [
        {
            "name": span.name,
            "trace": span.trace_id.hex(),
            "span": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "begin": span.start_time_unix_nano,
            "end": span.end_time_unix_nano,
            "events": [event.name for event in span.events],
            "attributes": [each.key for each in span.attributes],
            "service": [e.value.string_value for e in found.resource.attributes if e.key == "service.name"],
        }
        for found in request.resource_spans
        for scope in found.scope_spans
        for span in scope.spans
    ]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for span in told(ExportTraceServiceRequest.FromString(body)) if self.path == "/v1/traces" else []:
            print(json.dumps(span), flush=True)
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    server.serve_forever()
