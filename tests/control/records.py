"""Request records with defaults: a good, remote request of 100 prompt tokens that took 2 s."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from control.types.requests import RequestRecord

NOW = 1_000_000.0


def record(**values: Any) -> RequestRecord:
    base = RequestRecord(
        request_id="r",
        fleet_id="f",
        model_id="m",
        gateway_id="g",
        api_key_id="",
        simulated=False,
        arrival_unix_s=NOW - 10,
        attempt=0,
        priority=0,
        stream=True,
        endpoint="chat",
        rule="remote",
        reason="",
        prefill_worker="w0",
        decode_worker="w1",
        prompt_tokens=100,
        cached_tokens=0,
        output_tokens=20,
        max_tokens=64,
        status=200,
        finish_reason="stop",
        error="",
        queue_s=0.0,
        prefill_s=0.1,
        handoff_s=0.01,
        ttft_s=0.5,
        tpot_s=0.05,
        max_gap_s=0.1,
        e2e_s=2.0,
        good=True,
    )
    return replace(base, **values)
