"""What is done once per run folder before a worker starts: the model folder, and the CPU's measured ceiling.

Decided here: whether each is needed. Each runs as a process of its own, since both use torch and all cores for a while,
and neither may run beside a worker. Not here: how (`engine.convert`, `engine.calibrate`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event

from control.components import log_path, shared_environment
from control.deployment import Say
from control.errors import FleetError, SettingsError
from control.fleets.ray_head import join_address
from control.processes import ProcessId, end_processes, last_line, spawn
from control.settings import Settings
from engine.calibrate import calibrate, load
from engine.errors import EngineError, ModelFolderError
from engine.model_folder import check_model_folder

CONVERTIBLE = "smollm2-135m-instruct"
POLL_S = 0.1


def prepare(settings: Settings, say: Say, stop: Event) -> None:
    """Make what is missing, one stage after the other; returns early when `stop` is set.

    Raises SettingsError when the model can be neither found nor made, FleetError when a stage fails.
    """
    if needs_model(settings) and not stop.is_set():
        folder = settings.model_dir.resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        say(f"converting {settings.model} (once, about half a minute)")
        run_stage("convert", [sys.executable, "-m", "engine.convert", str(folder)], settings, stop)
    if settings.fleet_kind == "ray" and settings.worker_kind != "paced" and not stop.is_set():
        say(f"model {settings.model_id} at {settings.model_dir}")
    if needs_calibration(settings) and not stop.is_set():
        say("measuring this CPU, all cores together (once)")
        say(measure(settings))


def needs_model(settings: Settings) -> bool:
    """Raises SettingsError when the setting names neither a folder nor a model that we can make."""
    uses_model = settings.fleet_kind == "ray" and settings.worker_kind != "paced"
    if not uses_model:
        return False
    if (settings.model_dir / "config.json").is_file():
        _check(settings.model_dir)
        return False
    if settings.model == CONVERTIBLE:
        return True
    raise SettingsError(
        f"setting model: {settings.model!r} is neither a folder with a config.json nor {CONVERTIBLE}",
        field="model",
        value=settings.model,
    )


def _check(folder: Path) -> None:
    """Raises SettingsError before anything is started; a worker would only find it out after a minute."""
    try:
        check_model_folder(folder)
    except ModelFolderError as error:
        raise SettingsError(f"setting model: {error}", field="model", value=str(folder)) from error


def needs_calibration(settings: Settings) -> bool:
    """Only CPU workers on this machine: a joined cluster's hosts are not ours to load."""
    is_cpu = settings.fleet_kind == "ray" and settings.worker_kind in ("auto", "cpu")
    return is_cpu and not join_address(settings) and load(settings.run_dir) is None


def measure(settings: Settings) -> str:
    """Calibrate and say the result; a CPU that cannot be measured has no ceiling on the screens, and works."""
    try:
        found = calibrate(settings.run_dir)
    except EngineError as error:
        return f"{error}; utilization has no ceiling to show"
    return (
        f"CPU measured: {found.flops / 1e9:.0f} GFLOP/s, {found.bytes_per_s / 1e9:.1f} GB/s ({found.num_cores} cores)"
    )


def run_stage(name: str, command: list[str], settings: Settings, stop: Event) -> None:
    """Run one process to its end; ended early when `stop` is set. Raises FleetError quoting its last line."""
    log = log_path(settings, name)
    root, child = spawn(command, shared_environment(settings), log, Path.cwd())
    try:
        while child.poll() is None and not stop.is_set():
            stop.wait(POLL_S)
    finally:
        _end(root, child)
    if child.returncode and not stop.is_set():
        raise FleetError(f"{name} failed: {last_line(log)} [{log}]")


def _end(root: ProcessId, child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        end_processes([root], 5.0)
        child.wait()
