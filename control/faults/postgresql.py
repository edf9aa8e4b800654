"""Restarts the PostgreSQL server that keeps a deployment's history, when its data folder is ours. Effects."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from control.errors import CommandRefused

#: A link or folder of the run folder: the server's data folder. `phaseline` neither makes nor needs it otherwise.
DATA_NAME: Final = "postgresql"
LIMIT_S: Final = 60


def restart_postgresql(run_dir: Path) -> str:
    """At once, as a crash does it (`immediate`), then up again. Raises CommandRefused where that is not ours to do."""
    data = run_dir / DATA_NAME
    control = shutil.which("pg_ctl") or next(iter(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))), None)
    if control is None or not (data / "postmaster.pid").is_file():
        raise CommandRefused(
            f"{data} is not the data folder of a running PostgreSQL that we may restart; link it there",
            field="restart_postgresql",
        )
    command = [control, "-D", str(data.resolve()), "-m", "immediate", "-w", "-l", str(data.resolve() / "restart.log")]
    user = data.stat().st_uid if os.geteuid() == 0 else None  # the server refuses to run as root
    # The server is no process of the deployment: what marks those must not reach it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
    done = subprocess.run(
        [*command, "restart"],
        user=user,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise CommandRefused(
            f"pg_ctl restart: {(done.stderr or done.stdout).strip()[-200:]}", field="restart_postgresql"
        )
    return f"restarted in {data}"
