"""The fleet's secret: what gateways, the plane and workers show each other on the wire (`wire.Hello.token`).

Decided here: where it lies (`<run_dir>/secrets/fleet_token`, 0600, so that `control.auth.read_token(run_dir, "fleet")`
reads it too) and that it is made once. Not here: who checks it (`engine.connection`).
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from control.errors import SettingsError


def fleet_token(run_dir: Path) -> str:
    """The secret of this run folder, made at first use. Raises SettingsError, one line, when it cannot be."""
    folder = run_dir / "secrets"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ensure_secret(folder / "fleet_token")
    except OSError as error:
        raise SettingsError(f"cannot use the fleet token in {folder}: {error.strerror}", field="run_dir") from error


def ensure_secret(path: Path) -> str:
    """The secret in `path`; two processes that make it at the same time end with the same one."""
    if not path.exists():
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(32))
        try:
            os.link(scratch, path)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    return path.read_text().strip()
