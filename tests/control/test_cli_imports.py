"""What `phaseline` loads before it knows the verb: not the gateway, nor the database, nor what one verb alone needs."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    *("control.gateway.app", "control.history.store", "sqlalchemy", "ray", "torch", "streamlit"),
    *("aiohttp", "pyarrow", "numpy", "pandas", "fastapi"),
)


def test_a_verb_loads_only_what_it_needs() -> None:
    code = f"import sys, control.cli.main; print(*[each for each in {HEAVY!r} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
