"""vLLM production-stack's router (0.1.12) as its dynamic config makes it: what /health tells, and whether it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.errors import FleetError
from control.fleets.attached.steering.router_file import read_router_file

YAML = """\
# who may touch this: the platform team
service_discovery: static
routing_logic: roundrobin        # not by prefix
callbacks: null
prefill_model_labels: "prefill"
decode_model_labels: "decode"
static_model_labels: "prefill,decode,decode"
static_models:
  tiny:
    static_backends:
      - http://10.0.0.1:8000     # rack 7
      - http://10.0.0.2:8000
      - "http://10.0.0.3:8000"   # rack 8
    static_model_type: completion
"""


@dataclass(slots=True)
class FakeStackRouter:
    """`obeys` False: it reads nothing anew. `loses_labels`: as 0.1.12 in a split logic, what it reads ends serving."""

    path: Path
    obeys: bool = True
    serves: bool = True
    loses_labels: bool = False
    seen: str = ""
    url: str = ""

    @property
    def text(self) -> str:
        return self.path.read_text()

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/health":
            return 200, {"status": "healthy", "dynamic_config": self._in_force()}
        if path == "/v1/completions" and self.serves:
            return 200, {"choices": [{"text": "!"}]}
        return 503, {"detail": "PREFILL_SERVICE_UNAVAILABLE: No prefill endpoints discovered"}

    def _in_force(self) -> dict[str, str | None]:
        text = self.text
        if self.obeys and text != self.seen:
            self.serves = self.serves and not (self.loses_labels and self.seen)
            self.seen = text
        try:
            return read_router_file(self.seen or text, is_json=self.path.suffix == ".json").in_force
        except FleetError:
            return {}
