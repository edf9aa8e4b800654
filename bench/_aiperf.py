"""NVIDIA's aiperf as the load: one open-loop run (Poisson, chat, greedy, streamed), its raw export as our outcomes.

Decided here: its settings, and what of its export is text, a gap, a failure. Its arrivals, prompts and lengths follow
from its seed, so two runs of the same size ask the same; a request is known by what it asks.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

from _vllm_environment import AIPERF_BINARY, MODEL
from control.traffic.client import Outcome

SEED = 11
PROMPT_TOKENS = (160, 80)  # mean, standard deviation
OUTPUT_TOKENS = (24, 8)
#: Beyond the seconds of the plan: its processes start, and the last answers come.
SLACK_S = 120.0


def aiperf(url: str, model: str, rate_rps: float, num_planned: int, num_sent: int) -> list[Outcome]:
    """The first `num_sent` requests of a plan. Raises SystemExit with its last words when it fails."""
    with tempfile.TemporaryDirectory(prefix="phaseline-aiperf-") as folder:
        command = [AIPERF_BINARY, "profile", "--model", model, "--url", url, "--endpoint-type", "chat", "--streaming",
                   "--tokenizer", MODEL, "--request-rate", rate_rps, "--arrival-pattern", "poisson",
                   "--random-seed", SEED, "--num-dataset-entries", num_planned, "--request-count", num_sent,
                   "--dataset-sampling-strategy", "sequential",
                   "--synthetic-input-tokens-mean", PROMPT_TOKENS[0],
                   "--synthetic-input-tokens-stddev", PROMPT_TOKENS[1],
                   "--output-tokens-mean", OUTPUT_TOKENS[0], "--output-tokens-stddev", OUTPUT_TOKENS[1],
                   "--extra-inputs", "temperature:0", "ignore_eos:true", "--use-server-token-count",
                   "--no-gpu-telemetry", "--no-server-metrics", "--workers-max", 1, "--record-processors", 1,
                   "--export-level", "raw", "--artifact-dir", folder, "--ui", "none"]  # fmt: skip
        ended = subprocess.run(
            list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=num_sent / rate_rps + SLACK_S
        )
        raw = Path(folder) / "profile_export_raw.jsonl"
        if ended.returncode or not raw.exists():
            raise SystemExit(f"aiperf ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-2000:]}")
        outcomes = [outcome_of(json.loads(line)) for line in raw.read_text().splitlines()]
    missing = num_sent - len(outcomes)
    return sorted(outcomes, key=lambda each: each.index) + [
        Outcome(index=-1 - each, error="aiperf has no record of it") for each in range(missing)
    ]


def outcome_of(record: dict[str, Any]) -> Outcome:
    """One line of profile_export_raw.jsonl."""
    asked = json.dumps([record["payload"][name] for name in ("messages", "max_completion_tokens")])
    told = Outcome(index=zlib.crc32(asked.encode()), status=record["status"] or 0)
    told.error = json.dumps(record["error"])[:300] if record.get("error") else ""
    begun_ns, last_s, has_ended = record["start_perf_ns"], None, False
    for response in record.get("responses") or ():
        now_s = (response["perf_ns"] - begun_ns) / 1e9
        for value in (each["value"] for each in response.get("packets", ()) if each["name"] == "data"):
            if value == "[DONE]":
                has_ended = True
            elif _take(told, json.loads(value), now_s, last_s):
                last_s = now_s
    told.e2e_s = last_s
    if not told.error and not has_ended:
        told.error = "the stream ended without [DONE]"
    return told


def _take(told: Outcome, chunk: dict[str, Any], now_s: float, last_s: float | None) -> bool:
    """True when it has given text."""
    if chunk.get("error"):
        told.error = json.dumps(chunk["error"])[:300]
    usage = chunk.get("usage")
    if usage:
        told.prompt_tokens, told.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    has_text = False
    for choice in chunk.get("choices", ()):
        told.finish = choice.get("finish_reason") or told.finish
        text = choice["delta"].get("content")
        if text:
            told.text += text
            has_text = True
    if has_text and told.ttft_s is None:
        told.ttft_s = now_s
    elif has_text and last_s is not None:
        told.gaps_s.append(now_s - last_s)
    return has_text
