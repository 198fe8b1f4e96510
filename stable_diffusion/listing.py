"""Files by name: which of a folder's count, what they are called where two share a name, and which a name means.

Needs no MLX.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # endings that a name may leave out


def is_hidden(name: str) -> bool:
    """Whether a file is hidden: macOS's companions (`._NAME` on exFAT and SMB), .DS_Store, half-written files."""
    return name.startswith(".")


def is_companion(name: str) -> bool:
    """Whether macOS wrote a file beside others for its own use."""
    return name.startswith("._") or name == ".DS_Store"


def visible(folder: str | os.PathLike) -> list[Path]:
    """The entries of a folder that are not hidden, by name. Raises OSError."""
    return sorted(Path(folder, name) for name in os.listdir(folder) if not is_hidden(name))


def walk(folder: str | os.PathLike) -> Iterator[Path]:
    """The visible files in a folder and below, by name; a link that leads back up is followed once.

    Warns of folders that may not be read.
    """
    seen: set[str] = set()
    for root, below, names in os.walk(Path(folder), onerror=_unreadable, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not is_hidden(name))
        yield from (Path(root, name) for name in sorted(names) if not is_hidden(name))


def _unreadable(error: OSError) -> None:
    if isinstance(error, PermissionError):
        message = f"{str(error.filename)!r} cannot be read ({error.strerror}), so its files are missing."
        warnings.warn(message, stacklevel=3)


def is_weights(path: Path) -> bool:
    """Whether a name ends as weights' files do."""
    return path.suffix.lower() in WEIGHTS


def named(found: Iterable[tuple[str, Path]], taken: Collection[str] = ()) -> dict[str, Path]:
    """A name of its own for each file or folder, of (usual name, path) pairs, in their order.

    Those that share a usual name, or have one that is `taken`, get as much of their folder in front as tells them
    apart, and their ending where no folder does. One that is found twice by the same name counts once.
    """
    groups: defaultdict[str, dict[str, Path]] = defaultdict(dict)  # usual name -> real path -> path
    for usual, path in found:
        groups[usual].setdefault(os.path.realpath(path), path)
    names: dict[str, Path] = {}
    for usual, group in groups.items():
        paths = list(group.values())
        if len(paths) == 1 and usual not in taken:
            names[usual] = paths[0]
        else:
            names |= zip(_told_apart(usual, paths, {*taken, *groups, *names}), paths, strict=True)
    return names


def _told_apart(usual: str, paths: list[Path], taken: Collection[str]) -> list[str]:
    """The shortest ends of the paths, longer than the usual name, that all differ."""
    drop = not usual.lower().endswith(WEIGHTS)
    n_parts, most = usual.count("/") + 1, max(len(Path(os.path.abspath(path)).parts) for path in paths)
    ways = [(n, drop) for n in range(n_parts + 1, most)] + [(n, False) for n in range(n_parts, most)]
    for n, without_ending in ways:
        names = ["/".join(_address(Path(os.path.abspath(path)), without_ending)[-n:]) for path in paths]
        if len(set(names)) == len(names) and not set(names) & set(taken):
            return names
    return [path.as_posix() for path in paths]


def matches(name: str, known: Mapping[str, Path]) -> list[str]:
    """Those of the `known` names that a name may mean: several where it is ambiguous, none where nothing fits.

    In this order, each with exact case first: the name itself; the end of a path, with its ending or without; and
    A1111's folder_stem.
    """
    cases: tuple[Callable[[str], str], ...] = (str, str.casefold)
    for fits in (_is_name, _is_end, _is_joined):
        for same in cases:
            found = [each for each, path in known.items() if fits(same(name), same(each), same(os.path.abspath(path)))]
            if found:
                return list({os.path.realpath(known[each]): each for each in reversed(found)}.values())[::-1]
    return []


def ambiguous(title: str, name: str, names: Iterable[str]) -> str:
    """What to say of a name that several files have."""
    return f"The {title} {name!r} may be any of {', '.join(sorted(names))}: write one of these names in full."


def _is_name(name: str, known: str, path: str) -> bool:
    return name == known


def _is_end(name: str, known: str, path: str) -> bool:
    parts = Path(name).parts
    ends = (_address(Path(path), without_ending)[-len(parts) :] for without_ending in (False, True))
    return bool(parts) and not Path(name).is_absolute() and parts in ends


def _is_joined(name: str, known: str, path: str) -> bool:
    """Old versions of A1111 recorded a checkpoint's folders and its stem, with underscores between."""
    parts = _address(Path(path), True)
    ends = "_".join(parts).endswith(f"_{name}")
    return ends and any("_".join(parts[-n:]) == name for n in range(2, len(parts)))


def _address(path: Path, without_ending: bool) -> tuple[str, ...]:
    return (path.with_suffix("") if without_ending and is_weights(path) else path).parts
