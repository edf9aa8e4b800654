"""Model folders: what is read, what is shared, and what each broken folder is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.convert import make_tiny_model
from engine.errors import ConfigValueError, EngineError, MissingFileError, UnsupportedModelError, WeightShapeError
from engine.loader import load_weights, packed_path, pair_rotary, weights_digest
from engine.model_config import parse_model_config, read_model_config


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(tiny_folder, copy)
    return copy


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_config_is_read_with_all_end_tokens(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    config = read_model_config(folder)
    assert (config.model_id, config.num_layers, config.num_q_heads, config.num_kv_heads) == ("model", 2, 4, 2)
    assert config.eos_token_ids == (2, 0)


def test_rope_is_read_in_both_spellings() -> None:
    old = json.loads('{"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}}')
    new = json.loads('{"rope_parameters": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}}')
    base = {"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    base |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    configs = [parse_model_config({**base, **rope}, "m") for rope in (old, new)]
    assert configs[0] == configs[1]
    assert configs[0].rope_theta == 5.0
    assert configs[0].rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedModelError, "GPT2LMHeadModel"),
        ({"architectures": None}, UnsupportedModelError, "LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, UnsupportedModelError, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, UnsupportedModelError, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, ConfigValueError, "low_freq_factor"),
        ({"num_hidden_layers": 0}, ConfigValueError, r"num_hidden_layers is 0; .* 1\.\.1024"),
        ({"hidden_size": "64"}, ConfigValueError, "hidden_size is '64'"),
        ({"vocab_size": None}, ConfigValueError, "vocab_size is missing"),
        ({"num_key_value_heads": 3}, ConfigValueError, "not a multiple of num_key_value_heads 3"),
        ({"rms_norm_eps": float("nan")}, ConfigValueError, "rms_norm_eps is nan"),
        ({"eos_token_id": 10**6}, ConfigValueError, "eos_token_id"),
        ({"tie_word_embeddings": "yes"}, ConfigValueError, "tie_word_embeddings"),
    ],
)
def test_a_bad_config_names_field_and_bound(
    folder: Path, changes: dict[str, Any], error: type[EngineError], message: str
) -> None:
    _edit(folder, **changes)
    with pytest.raises(error, match=message) as caught:
        read_model_config(folder)
    assert "\n" not in str(caught.value)
    assert not caught.value.retry_helps


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigValueError, match=r"config\.json"):
        read_model_config(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for packed in folder.glob("phaseline-*"):
        packed.unlink()
    with pytest.raises(MissingFileError, match="safetensors" if "safe" in name else name):
        load_weights(folder, read_model_config(folder))


def test_a_weight_of_another_shape_is_named(folder: Path, tmp_path: Path) -> None:
    _edit(folder, intermediate_size=160)
    with pytest.raises(WeightShapeError, match=r"gate_proj\.weight has shape \(128, 64\); .*\(160, 64\)"):
        load_weights(folder, read_model_config(folder), cache_dir=tmp_path / "cache")


def test_a_file_cut_short_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightShapeError, match="cut short"):
        load_weights(folder, read_model_config(folder), cache_dir=tmp_path / "cache")


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightShapeError, match="not a safetensors file"):
        weights_digest(folder)


def test_packed_weights_are_the_folders_values(folder: Path) -> None:
    weights = load_weights(folder, read_model_config(folder))
    source = load_file(folder / "model.safetensors")
    layer, at = weights.layers[1], "model.layers.1"
    assert torch.equal(layer.down_FE.t(), source[f"{at}.mlp.down_proj.weight"])
    assert torch.equal(layer.gate_up_EF.t()[:128], source[f"{at}.mlp.gate_proj.weight"])
    assert torch.equal(layer.qkv_EY.t()[:64], pair_rotary(source[f"{at}.self_attn.q_proj.weight"], 16))
    assert torch.equal(weights.head_VE, source["lm_head.weight"])


def test_rotary_halves_become_neighbours() -> None:
    assert pair_rotary(torch.arange(8)[:, None], 4).squeeze(1).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_weights_are_views_of_one_shared_map(folder: Path) -> None:
    config = read_model_config(folder)
    weights = load_weights(folder, config)
    path = packed_path(folder, torch.float32)
    assert path.is_file()
    with Path("/proc/self/maps").open() as maps:
        assert any(str(path.resolve()) in line for line in maps)
    storages = {weights.embed_VE.untyped_storage().data_ptr(), weights.layers[0].qkv_EY.untyped_storage().data_ptr()}
    assert len(storages) == 1


def test_the_digest_follows_the_values(tmp_path: Path) -> None:
    first, again, other = (make_tiny_model(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert weights_digest(first) == weights_digest(again)
    assert weights_digest(first) != weights_digest(other)


def test_a_missing_shard_is_noticed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(MissingFileError, match="1 of 2"):
        weights_digest(folder)
