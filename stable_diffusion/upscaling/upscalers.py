"""Upscalers by name, for page, command line and API alike: without weights, the embedded ones, files in folders.

Of files only headers are read. Needs no MLX.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..catalogue import folders_beside
from ..errors import CheckpointError, CheckpointNotFoundError
from ..listing import ambiguous, matches, named, walk
from ..places import expanded, folders_in, home, packaged

NONE = "None"  # A1111's name for no upscaler: other programs expect it first in the list
RESAMPLING, NETWORK = "resampling", "network"
FOLDER, VARIABLE = "upscalers", "STABLE_DIFFUSION_UPSCALERS"
# Of A1111 and Forge, and of ComfyUI.
PROGRAMS_FOLDERS = ("ESRGAN", "RealESRGAN", "SwinIR", "BSRGAN", "DAT", "HAT", "upscale_models")
SUFFIXES = (".pth", ".safetensors", ".pt", ".ckpt", ".bin")
# A1111's names for files that it downloads itself, which clients and pictures use.
ALIASES = {
    "ESRGAN_4x": "ESRGAN",
    "R-ESRGAN 4x+": "RealESRGAN_x4plus",
    "R-ESRGAN 4x+ Anime6B": "RealESRGAN_x4plus_anime_6B",
    "R-ESRGAN 2x+": "RealESRGAN_x2plus",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
    "R-ESRGAN General 4xV3": "realesr-general-x4v3",
    "R-ESRGAN General WDN 4xV3": "realesr-general-wdn-x4v3",
}


@dataclass(frozen=True)
class Upscaler:
    """One entry of the table.

    `kind` is "resampling", which makes any size at once with Pillow's filter `filter`, or "network", whose file is
    `path`; its `scale` and `architecture` are known unless `problem` says why it cannot be used.
    """

    name: str
    kind: str
    filter: str = "LANCZOS"  # as Pillow names it
    path: Path | None = None
    architecture: str = ""
    scale: int | None = None
    problem: str = ""

    @property
    def takes_time(self) -> bool:
        """Whether a network is computed."""
        return self.kind != RESAMPLING


# "None" leaves the network out, so only the last step of every upscaler is left: Lanczos to the wanted size.
BUILT_IN = (
    Upscaler(NONE, RESAMPLING),
    Upscaler("Lanczos", RESAMPLING, "LANCZOS"),
    Upscaler("Bicubic", RESAMPLING, "BICUBIC"),
    Upscaler("Nearest", RESAMPLING, "NEAREST"),
)


def folders() -> list[Path]:
    """Where files are looked for: upscalers/ in `home()`, those $STABLE_DIFFUSION_UPSCALERS names, other programs'."""
    return [home() / FOLDER, *folders_in(VARIABLE), *folders_beside(*PROGRAMS_FOLDERS)]


def all() -> list[Upscaler]:
    """Every upscaler to choose from, "None" first, then the others without weights, the embedded ones, and files."""
    files = named(_found(), taken=[upscaler.name for upscaler in BUILT_IN])
    return [*BUILT_IN, *(_of_file(name, path) for name, path in files.items())]


def find(name: str, names_only: bool = False) -> Upscaler:
    """The upscaler that a name means, in any case, with its ending and folders or without; or a file's path.

    `names_only` takes no paths. Raises `CheckpointNotFoundError`: with the nearest names where nothing fits, with all
    where several do.
    """
    wanted = name.strip()
    same = wanted.casefold()
    if upscaler := next((each for each in BUILT_IN if each.name.casefold() == same), None):
        return upscaler
    path = expanded(wanted)
    if wanted and not names_only and path.is_file():
        return _of_file(path.stem, path)
    files = named(_found())
    alias = next((stem for each, stem in ALIASES.items() if each.casefold() == same), "")
    found = matches(wanted, files) or matches(alias, files)
    if len(found) == 1:
        return _of_file(found[0], files[found[0]])
    if found:
        raise CheckpointNotFoundError(ambiguous("upscaler", wanted, found))
    folded = {each.casefold(): each for each in [*(upscaler.name for upscaler in BUILT_IN), *files]}
    near = [folded[each] for each in difflib.get_close_matches(same, folded, 3)]
    hint = f"Near it: {', '.join(near)}." if near else f"There are {', '.join(folded.values())}."
    raise CheckpointNotFoundError(
        f"There is no upscaler {name!r}. {hint} Files are looked for in {home() / FOLDER} (${VARIABLE} names further "
        f"folders)."
    )


def _found() -> Iterator[tuple[str, Path]]:
    """The usual names and paths of all files."""
    for folder in (packaged("upscaling", "weights"), *folders()):
        for path in walk(folder):
            if path.suffix.lower() in SUFFIXES and path.stem.strip():
                yield path.stem, path


def _of_file(name: str, path: Path) -> Upscaler:
    try:
        stat = path.stat()
        architecture, scale, problem = _described(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        architecture, scale, problem = "", None, error.strerror or str(error)
    return Upscaler(name, NETWORK, path=path, architecture=architecture, scale=scale, problem=problem)


@lru_cache(maxsize=1024)
def _described(path: Path, size: int, mtime_ns: int) -> tuple[str, int | None, str]:
    """Architecture, scale and problem of a file; cached."""
    from .files import describe_file  # here, since it imports numpy

    try:
        found = describe_file(path)
    except CheckpointError as error:
        return "", None, str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
    return found.architecture, found.scale, ""
