"""Model folders for the engine's tests: tiny seeded ones made at once, and the real small model, converted once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.convert import convert_smollm2, make_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="session")
def real_folder() -> Path:
    return convert_smollm2(REPOSITORY / "data" / "run" / "models" / "SmolLM2-135M-Instruct")
