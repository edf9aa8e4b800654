"""Folders that engine.convert makes: whole or absent, readable by the tokenizers library and by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.convert import main, make_tiny_model
from engine.errors import ConversionError
from engine.model_config import read_model_config


def test_a_tiny_folder_is_complete(tiny_folder: Path) -> None:
    names = {path.name for path in tiny_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "assistant" in json.loads((tiny_folder / "tokenizer_config.json").read_text())["chat_template"]


def test_the_tiny_tokenizer_round_trips_any_text(tiny_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
    text = "Grüße, 世界!\n\t<|im_start|> 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.get_vocab_size() == read_model_config(tiny_folder).vocab_size


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    first, second = (make_tiny_model(tmp_path / name, 5) for name in "ab")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "a", 1)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_tiny_model(folder, 2) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_other_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="is not empty"):
        make_tiny_model(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]


def test_no_half_made_folder_is_left_behind(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.lock", "a"]


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_the_command_states_its_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.integration
def test_the_real_folder_holds_model_tokenizer_and_chat_template(real_folder: Path) -> None:
    config = read_model_config(real_folder)
    assert (config.num_layers, config.num_q_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert config.eos_token_ids == (2,)
    assert "im_start" in json.loads((real_folder / "tokenizer_config.json").read_text())["chat_template"]
    assert Tokenizer.from_file(str(real_folder / "tokenizer.json")).encode("Paris").ids
