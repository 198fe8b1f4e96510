"""LoRAs and embeddings on this disk: names -> files. Needs no MLX."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import CheckpointNotFoundError
from ..listing import ambiguous, matches, named, walk
from ..places import expanded, folders_in, home

LORAS, EMBEDDINGS = "loras", "embeddings"
VARIABLES = {LORAS: "STABLE_DIFFUSION_LORAS", EMBEDDINGS: "STABLE_DIFFUSION_EMBEDDINGS"}
TITLES = {LORAS: "LoRA", EMBEDDINGS: "embedding"}
SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")
# In a folder that is one LoRA, as diffusers and peft write it.
FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def folders(kind: str) -> list[Path]:
    """Where a kind is looked for: loras/ or embeddings/ in `home()`, and the folders that its variable names."""
    return [home() / kind, *folders_in(VARIABLES[kind])]


def listed(kind: str, where: Iterable[str | os.PathLike] | None = None) -> dict[str, Path]:
    """Every file of a kind by name: the file's without its ending, or that of a folder as peft and diffusers write it.

    Files that share a name have their folder in front.
    """
    return {name: _file(path) for name, path in named(_found(kind, where)).items()}


def shared(kind: str, where: Iterable[str | os.PathLike] | None = None) -> dict[str, list[str]]:
    """Names that several files have, and what each of these is listed as."""
    found = list(_found(kind, where))
    names = named(found)
    usual = {path: name for name, path in found}
    several: dict[str, list[str]] = {}
    for name, path in names.items():
        if usual[path] not in names:
            several.setdefault(usual[path], []).append(name)
    return several


def matching(kind: str, name: str, where: Iterable[str | os.PathLike] | None = None, digits: str = "") -> list[str]:
    """The listed names that a name may mean; where that is several, those of the hash that begins with `digits`."""
    files = named(_found(kind, where))
    found = matches(name, files) or matches(name.replace("\\", "/"), files)
    same = [each for each in found if len(found) > 1 and digits and has_hash(_file(files[each]), digits)]
    return same[:1] or found


def find(
    kind: str,
    source: str | os.PathLike,
    where: Iterable[str | os.PathLike] | None = None,
    names_only: bool = False,
    digits: str = "",
) -> Path:
    """The file that a path or a name stands for: in any case, with its ending and folders or without.

    `names_only` takes no paths; `digits`, the beginning of a hash, picks among files of one name. Raises
    `CheckpointNotFoundError`: with the nearest names and the folders that were searched where nothing fits, with all
    where several do.
    """
    name = os.fspath(source)
    path = expanded(name)
    if name and not names_only and (path.is_file() or _is_adapter(path)):
        return _file(path)
    searched = folders(kind) if where is None else [Path(folder) for folder in where]
    found = matching(kind, name, searched, digits)
    known = listed(kind, searched)
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise CheckpointNotFoundError(ambiguous(TITLES[kind], name, found))
    if name and not names_only and path.is_dir():
        raise CheckpointNotFoundError(f"The folder {str(path)!r} holds none of {', '.join(FOLDER_FILES)}.")
    near = difflib.get_close_matches(name, known, 3)
    hint = f"Near it: {', '.join(near)}. " if near else ""
    raise CheckpointNotFoundError(
        f"There is no {TITLES[kind]} {name!r}. {hint}Looked for in {', '.join(map(str, searched))} "
        f"(${VARIABLES[kind]} names further folders)."
    )


def find_hash(kind: str, digits: str) -> Path | None:
    """The file of a hash that begins with `digits`, whatever its name; reads all files of the kind."""
    return next((path for path in listed(kind).values() if has_hash(path, digits)), None) if digits else None


def name_of(kind: str, path: Path, where: Iterable[str | os.PathLike] | None = None) -> str:
    """What a file is listed as, or would be if it were in one of the folders."""
    real = os.path.realpath(path)
    names = (name for name, file in listed(kind, where).items() if file == path or os.path.realpath(file) == real)
    return next(names, _usual_name(path))


def has_hash(path: Path, digits: str) -> bool:
    """Whether a hash that was recorded, in full or its beginning, may be a file's."""
    try:
        own = short_hash(path) if digits else ""
    except OSError:
        return False
    return bool(own) and (own.startswith(digits.lower()) or digits.lower().startswith(own))


def short_hash(path: Path) -> str:
    """The first twelve hex digits of a file's sha256, without a safetensors header, as A1111 has it for LoRAs."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix.lower() == ".safetensors":
            end = 8 + int.from_bytes(file.read(8), "little")
            file.seek(min(end, os.fstat(file.fileno()).st_size))  # a damaged one says anything
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:12]


def _found(kind: str, where: Iterable[str | os.PathLike] | None) -> Iterator[tuple[str, Path]]:
    """The usual names and paths of all files, or of the folders that are one LoRA each."""
    for folder in folders(kind) if where is None else map(Path, where):
        for path in walk(folder):
            if path.name in FOLDER_FILES and path.parent != folder:
                if path == _file(path.parent):
                    yield path.parent.name, path.parent
            elif path.suffix.lower() in SUFFIXES and path.stem.strip():
                yield path.stem, path


def _usual_name(path: Path) -> str:
    return path.resolve().parent.name if path.name in FOLDER_FILES else path.stem


def _is_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FOLDER_FILES)


def _file(path: Path) -> Path:
    """A file itself; of a folder that is one LoRA, its file."""
    return next((file for name in FOLDER_FILES if (file := path / name).is_file()), path)
