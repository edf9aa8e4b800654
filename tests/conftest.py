"""Shared by all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def main_module_stays() -> Iterator[None]:
    """Streamlit's AppTest replaces `__main__`, which processes started by multiprocessing would then try to run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
