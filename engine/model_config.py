"""config.json of a Hugging Face folder -> ModelConfig. Says exactly what is wrong with one that cannot be served.

Nothing here imports torch: the control plane sizes models with it. What is *not* decided here: whether the weights fit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from engine.errors import ConfigValueError, MissingFileError, UnsupportedModelError
from engine.types import ModelConfig

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")

#: Inclusive bounds of every whole number that is read.
_INT_BOUNDS: dict[str, tuple[int, int]] = {
    "vocab_size": (1, 4_194_304),
    "hidden_size": (1, 65_536),
    "intermediate_size": (1, 524_288),
    "num_hidden_layers": (1, 1_024),
    "num_attention_heads": (1, 1_024),
    "num_key_value_heads": (1, 1_024),
    "head_dim": (2, 1_024),
    "max_position_embeddings": (1, 16_777_216),
}


def read_model_config(folder: Path, model_id: str | None = None) -> ModelConfig:
    """Read `folder`/config.json (and the end-of-text ids of generation_config.json, when it is there).

    `model_id` is the folder's name unless given. Raises MissingFileError, ConfigValueError, UnsupportedModelError.
    """
    raw = _read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    return parse_model_config(raw, model_id or folder.resolve().name, generation)


def parse_model_config(raw: dict[str, Any], model_id: str, generation: dict[str, Any] | None = None) -> ModelConfig:
    """Check every field that the decoder uses, and refuse what it does not compute."""
    _refuse_unsupported(raw)
    num_q_heads = _int(raw, "num_attention_heads")
    hidden_size = _int(raw, "hidden_size")
    num_kv_heads = _int(raw, "num_key_value_heads", num_q_heads)
    head_dim = _int(raw, "head_dim", hidden_size // num_q_heads)
    if num_q_heads % num_kv_heads:
        raise ConfigValueError(
            f"config.json: num_attention_heads {num_q_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    if head_dim % 2:
        raise ConfigValueError(f"config.json: head_dim {head_dim} is odd; rotary embedding needs an even one")
    rope_theta, rope_scaling = _rope(raw)
    return ModelConfig(
        model_id=model_id,
        vocab_size=_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_int(raw, "intermediate_size"),
        num_layers=_int(raw, "num_hidden_layers"),
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context=_int(raw, "max_position_embeddings", 2_048),
        rope_theta=rope_theta,
        rms_norm_eps=_positive(raw, "rms_norm_eps", 1e-5, "config.json"),
        tie_word_embeddings=_bool(raw, "tie_word_embeddings", False),
        rope_scaling=rope_scaling,
        attention_bias=_bool(raw, "attention_bias", False),
        bos_token_id=_token_ids(raw, "bos_token_id")[0] if raw.get("bos_token_id") is not None else None,
        eos_token_ids=_eos(raw, generation or {}),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"model folder {path.parent}: {path.name} is missing")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigValueError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list) or not set(architectures) & set(SUPPORTED_ARCHITECTURES):
        wanted_names = ", ".join(SUPPORTED_ARCHITECTURES)
        raise UnsupportedModelError(
            f"config.json: architectures {architectures!r} is not supported; expected {wanted_names}"
        )
    for field, wanted in (("hidden_act", "silu"), ("mlp_bias", False), ("quantization_config", None)):
        value = raw.get(field, wanted)
        if value != wanted:
            shown = "a quantized model" if field == "quantization_config" else repr(value)
            raise UnsupportedModelError(f"config.json: {field} {shown} is not supported; expected {wanted!r}")


def _rope(raw: dict[str, Any]) -> tuple[float, dict[str, float | str] | None]:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ConfigValueError(f"config.json: rope parameters {rope!r} are not an object")
    theta = _positive(rope if "rope_theta" in rope else raw, "rope_theta", 10_000.0, "config.json")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise UnsupportedModelError(
            f"config.json: rope_type {rope_type!r} is not supported; expected {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
    if rope_type == "default":
        return theta, None
    scaling: dict[str, float | str] = {"rope_type": rope_type, "factor": _positive(rope, "factor", None, "rope")}
    if rope_type == "llama3":
        for field in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            scaling[field] = _positive(rope, field, None, "rope")
        if scaling["low_freq_factor"] == scaling["high_freq_factor"]:
            raise ConfigValueError(f"rope: low_freq_factor and high_freq_factor are both {scaling['low_freq_factor']}")
    return theta, scaling


def _int(raw: dict[str, Any], field: str, default: int | None = None) -> int:
    low, high = _INT_BOUNDS[field]
    value = raw.get(field)
    if value is None:
        value = default
    if value is None:
        raise ConfigValueError(f"config.json: {field} is missing; expected a whole number in {low}..{high}")
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigValueError(f"config.json: {field} is {value!r}; expected a whole number in {low}..{high}")
    return value


def _positive(raw: dict[str, Any], field: str, default: float | None, where: str) -> float:
    value = raw.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ConfigValueError(f"{where}: {field} is {value!r}; expected a finite number above 0")
    return float(value)


def _bool(raw: dict[str, Any], field: str, default: bool) -> bool:
    value = raw.get(field, default)
    if not isinstance(value, bool):
        raise ConfigValueError(f"config.json: {field} is {value!r}; expected true or false")
    return value


def _token_ids(raw: dict[str, Any], field: str) -> tuple[int, ...]:
    value = raw.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    high = _int(raw, "vocab_size") - 1 if "vocab_size" in raw else _INT_BOUNDS["vocab_size"][1]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id <= high:
            raise ConfigValueError(f"config.json: {field} is {value!r}; expected token ids in 0..{high}")
    return tuple(ids)


def _eos(raw: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    """All ids that end a text: generation_config.json may name more than config.json does."""
    merged = {"vocab_size": raw["vocab_size"], "eos_token_id": generation.get("eos_token_id")}
    return tuple(dict.fromkeys(_token_ids(raw, "eos_token_id") + _token_ids(merged, "eos_token_id")))
