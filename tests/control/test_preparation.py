"""A model that cannot be served is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.errors import SettingsError
from control.preparation import needs_model
from control.settings import Settings

CONFIG = """{"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 8,
"rms_norm_eps": 1e-5, "rope_theta": 1e4, "eos_token_id": 0}"""
FILES = {"config.json": CONFIG, "tokenizer.json": "{}", "model.safetensors": ""}


def model(folder: Path, files: dict[str, str]) -> Settings:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return Settings(model=str(folder), worker_kind="cpu", run_dir=folder.parent)


def test_a_whole_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert needs_model(model(tmp_path / "m", FILES)) is False


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_with_a_missing_file_is_refused_by_the_name_of_the_file(tmp_path: Path, missing: str) -> None:
    files = {name: text for name, text in FILES.items() if name != missing}
    with pytest.raises(SettingsError, match="setting model: .*" + ("safetensors" if "safe" in missing else missing)):
        needs_model(model(tmp_path / "m", files))


def test_a_model_of_another_family_is_refused_with_what_is_served(tmp_path: Path) -> None:
    files = {**FILES, "config.json": '{"architectures": ["GPT2LMHeadModel"]}'}
    with pytest.raises(SettingsError, match=r"GPT2LMHeadModel.*expected LlamaForCausalLM"):
        needs_model(model(tmp_path / "m", files))
