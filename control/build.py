"""Which code a process runs, in one short word: equal words, equal code. Pure but for reading our own files."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
from pathlib import Path

#: What a worker stands on besides our own code.
STANDS_ON = ("ray", "torch", "msgspec", "numpy", "tokenizers")


@functools.cache
def build_id() -> str:
    """Changes with any of our source files, with Python, and with the installed version of what a worker stands on."""
    digest = hashlib.sha256(sys.version.encode())
    root = Path(__file__).resolve().parents[1]
    for package in ("control", "engine"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    for name in STANDS_ON:
        digest.update(f"{name} {_version(name)}".encode())
    return digest.hexdigest()[:12]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
