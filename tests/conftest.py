"""Shared by all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No timed assertion anywhere: on a busy machine one example may take any time.
settings.register_profile("phaseline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("phaseline")


@pytest.fixture(autouse=True)
def main_module_stays() -> Iterator[None]:
    """Streamlit's AppTest replaces `__main__`, which processes started by multiprocessing would then try to run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
