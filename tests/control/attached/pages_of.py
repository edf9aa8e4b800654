"""Recorded pages, and the shape of the model that was served when they were recorded."""

from __future__ import annotations

from pathlib import Path

from control.fleets.attached.dialects import VLLM, read_page
from control.fleets.attached.engine_page import EnginePage
from engine.types import ModelConfig
from engine.work import ModelWork

PAGES = Path(__file__).with_name("pages")
TINY = ModelWork(
    ModelConfig(
        model_id="tiny",
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_q_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_context=8192,
        tie_word_embeddings=True,
    )
)


def text_of(name: str) -> str:
    """`prefill-1`, `prefill-2`, `decode-1`, `decode-2`."""
    return (PAGES / f"vllm-0.32.0-{name}.txt").read_text()


def page_of(name: str) -> EnginePage:
    return read_page(text_of(name), VLLM)
