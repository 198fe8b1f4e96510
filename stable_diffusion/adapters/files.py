"""Where adapters lie on this disk: names -> files. Needs no MLX."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import CheckpointNotFoundError
from ..listing import walk
from ..places import expanded, folders_in, home

LORAS, EMBEDDINGS = "loras", "embeddings"
VARIABLES = {LORAS: "STABLE_DIFFUSION_LORAS", EMBEDDINGS: "STABLE_DIFFUSION_EMBEDDINGS"}
TITLES = {LORAS: "LoRA", EMBEDDINGS: "embedding"}
SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")
# What a folder that is itself one LoRA holds, as peft and diffusers write it.
FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def folders(kind: str) -> list[Path]:
    """Where a kind is looked for: loras/ or embeddings/ beside the program, and the folders that its variable names."""
    return [home() / kind, *folders_in(VARIABLES[kind])]


def listed(kind: str, where: Iterable[str | os.PathLike] | None = None) -> dict[str, Path]:
    """Every file of a kind by its name, the file name without its ending; of two alike the first one found counts."""
    found: dict[str, Path] = {}
    for folder in folders(kind) if where is None else map(Path, where):
        for path in _files(folder):
            found.setdefault(path.stem, path)
    return found


def find(
    kind: str, source: str | os.PathLike, where: Iterable[str | os.PathLike] | None = None, names_only: bool = False
) -> Path:
    """The file that a name (in any case, with its ending or without) or, unless `names_only`, a path stands for.

    Raises `CheckpointNotFoundError` with the nearest names and the folders that were searched.
    """
    name = os.fspath(source)
    path = expanded(name)
    if path.is_file() and not names_only:
        return path
    if path.is_dir() and not names_only:
        return _in_folder(path)
    searched = folders(kind) if where is None else [Path(folder) for folder in where]
    known = listed(kind, searched)
    for same in (str, str.lower):
        for key, file in known.items():
            if same(name) in (same(key), same(file.name)):
                return file
    near = difflib.get_close_matches(name, known, 3)
    hint = f"Near it: {', '.join(near)}. " if near else ""
    raise CheckpointNotFoundError(
        f"There is no {TITLES[kind]} {name!r}. {hint}Looked for in {', '.join(map(str, searched))} "
        f"(${VARIABLES[kind]} names further folders)."
    )


def short_hash(path: Path) -> str:
    """The first twelve hex digits of a file's sha256 as A1111 has it for a LoRA: a safetensors header is left out."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix.lower() == ".safetensors":
            file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:12]


def _files(folder: Path) -> Sequence[Path]:
    return [path for path in walk(folder) if path.suffix.lower() in SUFFIXES and path.stem.strip()]


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointNotFoundError(f"The folder {str(folder)!r} holds none of {', '.join(FOLDER_FILES)}.")
