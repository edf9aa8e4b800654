"""Is a Hugging Face folder whole? Nothing here imports torch: `up` asks before it starts anything.

Decided here: which files a folder must hold. Not here: what they must say (`engine.model_config`, `engine.loader`).
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import MissingFileError
from engine.model_config import read_model_config

TOKENIZER = "tokenizer.json"


def check_model_folder(folder: Path) -> None:
    """Raises ModelFolderError, one line, naming the folder and what is missing or cannot be served."""
    read_model_config(folder)
    if not (folder / TOKENIZER).is_file():
        raise MissingFileError(f"model folder {folder}: no {TOKENIZER}")
    weight_files(folder)


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: one, or numbered shards."""
    if not folder.is_dir():
        raise MissingFileError(f"model folder {folder} does not exist")
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("phaseline-"))
    if not files:
        raise MissingFileError(f"model folder {folder}: no *.safetensors file; expected model.safetensors")
    for path in files:
        if "-of-" in path.stem and path.stem.rsplit("-of-", 1)[1].isdigit():
            wanted = int(path.stem.rsplit("-of-", 1)[1])
            if len(files) != wanted:
                raise MissingFileError(f"model folder {folder}: {len(files)} of {wanted} safetensors shards are there")
            break
    return files
