from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_builders import load_text
from link_builders import FakePlane

from engine.text import ModelText


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    """The text of a small real tokenizer."""
    folder: Path = tmp_path_factory.mktemp("model")
    return load_text(folder)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "service_token").write_text("service-secret\n")
    return tmp_path


@pytest.fixture
async def plane() -> AsyncIterator[FakePlane]:
    fake = FakePlane()
    yield fake
    await fake.stop()
