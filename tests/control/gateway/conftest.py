from __future__ import annotations

from pathlib import Path

import pytest
from gateway_builders import load_text

from engine.text import ModelText


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    """The text of a small real tokenizer."""
    folder: Path = tmp_path_factory.mktemp("model")
    return load_text(folder)
