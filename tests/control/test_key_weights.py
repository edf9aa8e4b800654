"""The files of weights and of names of API keys: read once, and wrong ones are named with their bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.errors import SettingsError
from control.settings import load_key_names, load_key_weights, load_settings


def test_weights_are_read_by_the_id_that_records_show(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    file.write_text('"3f5a0c9d1e2b" = 4\ndefault = 0.5\n')
    assert load_key_weights(load_settings(key_weights=file)) == {"3f5a0c9d1e2b": 4.0, "default": 0.5}


def test_without_a_file_all_keys_weigh_the_same() -> None:
    assert load_key_weights(load_settings()) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 0", "a must be a weight above 0 and up to 1000, got 0"),
        ("a = 1001", "got 1001"),
        ("a = true", "got True"),
        ("a = nan", "got nan"),
        ('a = "4"', "got '4'"),
        ("a = [", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "weights.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError) as problem:
        load_key_weights(load_settings(key_weights=file))
    assert str(file) in str(problem.value)
    assert words in str(problem.value)


def test_names_are_read_by_the_id_that_records_show(tmp_path: Path) -> None:
    file = tmp_path / "names.toml"
    file.write_text('"3f5a0c9d1e2b" = "nightly evaluation"\n')
    assert load_key_names(load_settings(key_names=file)) == {"3f5a0c9d1e2b": "nightly evaluation"}
    assert load_key_names(load_settings()) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = 1", "got 1"),
        ('a = ""', "a name of 1 to 64 printable characters"),
        ('a = "x\\ny"', "got"),
        ("a = [", "cannot be read"),
    ],
)
def test_names_that_cannot_be_used_are_an_error_that_names_the_file(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "names.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as problem:
        load_key_names(load_settings(key_names=file))
    assert str(file) in str(problem.value)
    assert words in str(problem.value)
