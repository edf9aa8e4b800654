"""A real HTTP server that answers as the plane does, with values of the test: the CLI talks to it over the wire."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter

from control.types.api import Problem


def dumped(value: Any) -> bytes:
    if isinstance(value, bytes):  # a file
        return value
    return (
        TypeAdapter(type(value)).dump_json(value) if not isinstance(value, (dict, list)) else json.dumps(value).encode()
    )


class PlaneServer:
    """Answers `(method, path)` with a value, or with a Problem and its status. Keeps what was asked."""

    def __init__(self, answers: Mapping[tuple[str, str], Any]) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0]
                outer.asked.append((self.command, self.path, json.loads(body) if body else None))
                answer = answers.get((self.command, path))
                if answer is None:
                    answer = Problem(title="Not found", status=404, detail=f"no {path}", type="urn:phaseline:NotFound")
                if isinstance(answer, list) and answer and callable(answer[0]):
                    answer = answer[0]()
                data = dumped(answer)
                self.send_response(answer.status if isinstance(answer, Problem) else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _serve

            def log_message(self, *_arguments: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> PlaneServer:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
