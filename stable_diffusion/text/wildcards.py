"""Wildcards: the lines of text and YAML files by name, as the extension sd-dynamic-prompts has them. Needs no MLX.

`__colour__` stands for the lines of wildcards/colour.txt, `__animals/cat__` for those of animals/cat.txt or for the
list under `animals: cat:` in any YAML or JSON file; `*` stands for any characters, slashes included.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..listing import walk
from ..places import folders_in, home, of_other_programs

FOLDER, VARIABLE = "wildcards", "STABLE_DIFFUSION_WILDCARDS"
OF_A1111 = ("extensions/sd-dynamic-prompts/wildcards", "extensions/stable-diffusion-webui-wildcards/wildcards")
MAX_BYTES = 64 << 20  # of one file
_WEIGHTED = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::(.*)", re.DOTALL)

Weighted = tuple[float, str]


def folders() -> list[Path]:
    """Where wildcards are: wildcards/ in `home()`, the folders of $STABLE_DIFFUSION_WILDCARDS, A1111's extensions'."""
    of_others = (folder / below for folder in of_other_programs() for below in OF_A1111)
    return [home() / FOLDER, *folders_in(VARIABLE), *(folder for folder in of_others if folder.is_dir())]


class Wildcards:
    """The wildcards of some folders (None: `folders()`); the files are listed at the first use, and read when named."""

    def __init__(self, where: Iterable[str | os.PathLike] | None = None):
        self._where = None if where is None else [Path(folder) for folder in where]
        self._found: dict[str, list[Path | list[Weighted]]] | None = None
        self._lines: dict[str, list[Weighted]] = {}

    def names(self) -> list[str]:
        """All names, sorted. Raises `InputError` for a YAML or JSON file that cannot be read."""
        return sorted(self._listed())

    def count(self, name: str) -> int:
        """How many lines a listed name has."""
        return sum(len(_text_lines(each) if isinstance(each, Path) else each) for each in self._listed()[name])

    def lines(self, name: str) -> list[Weighted]:
        """The lines of all files that a name or pattern stands for, each once with its weight.

        Raises `InputError` if there are none, with the nearest names, and for files that cannot be read.
        """
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def _read(self, name: str) -> list[Weighted]:
        wanted = re.sub(r"[\\/]+", "/", name).strip("/")
        listed = self._listed()
        names: list[str] = []
        for pattern in (wanted, f"**/{wanted}"):
            for same in (str, str.casefold):
                names = names or [each for each in listed if fnmatchcase(same(each), same(pattern))]
        found: dict[str, float] = {}
        for each in names:
            for source in listed[each]:
                for weight, line in _text_lines(source) if isinstance(source, Path) else source:
                    found.setdefault(line, weight)
        if found:
            if not any(found.values()):
                raise InputError(f"All lines of the wildcard __{name}__ have the weight 0: nothing can be drawn.")
            return [(weight, line) for line, weight in found.items()]
        if names:
            raise InputError(f"The wildcard __{name}__ has no lines.")
        near = difflib.get_close_matches(wanted, listed, 3)
        hint = f"Near it: {', '.join(near)}. " if near else ""
        raise InputError(
            f"There is no wildcard __{name}__. {hint}Looked for in {', '.join(map(str, self._folders()))} (${VARIABLE} "
            "names further folders). --no-dynamic-prompts takes the prompt as it is typed."
        )

    def _folders(self) -> list[Path]:
        return folders() if self._where is None else self._where

    def _listed(self) -> dict[str, list[Path | list[Weighted]]]:
        if self._found is None:
            self._found = {}
            for folder in self._folders():
                for path in walk(folder):
                    for name, source in _collections(path, folder):
                        self._found.setdefault(name, []).append(source)
        return self._found


def _collections(path: Path, folder: Path) -> Iterator[tuple[str, Path | list[Weighted]]]:
    """The names that a file gives, with its path, or with their lines."""
    suffix = path.suffix.lower()
    inner = path.relative_to(folder)
    if suffix == ".txt":
        yield inner.with_suffix("").as_posix(), path
    elif suffix in (".yaml", ".yml", ".json"):
        prefix = "" if inner.parent == Path() else f"{inner.parent.as_posix()}/"
        values = _structured(path)
        if isinstance(values, dict):
            yield from ((f"{prefix}{name}", lines) for name, lines in _lists(values, path, ""))
        elif isinstance(values, list):
            yield f"{prefix}{path.stem}", _items(values, path, path.stem)


def _text_lines(path: Path) -> list[Weighted]:
    """The lines of a text file, but for empty ones and comments."""
    lines = (line.strip() for line in _decoded(path).splitlines())
    return [_weighted(line) for line in lines if line and not line.startswith("#")]


def _weighted(line: str) -> Weighted:
    match = _WEIGHTED.fullmatch(line)
    return (float(match[1]), match[2].strip()) if match else (1.0, line)


def _structured(path: Path) -> Any:
    text = _decoded(path)
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        import yaml  # here, since it takes its time

        return yaml.safe_load(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The wildcards in {str(path)!r} cannot be read: {_in_one_line(error)}") from None
    except Exception as error:  # yaml's own
        raise InputError(f"The wildcards in {str(path)!r} are no YAML: {_in_one_line(error)}") from None


def _lists(values: Mapping[Any, Any], path: Path, prefix: str, depth: int = 0) -> Iterator[tuple[str, list[Weighted]]]:
    if depth > 50:
        raise InputError(f"The wildcards in {str(path)!r} are nested more than 50 deep.")
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _lists(value, path, f"{name}/", depth + 1)
        elif value is not None:
            yield name, _items(value if isinstance(value, list) else [value], path, name)


def _items(values: list[Any], path: Path, name: str) -> list[Weighted]:
    """The entries of a list: texts, "2::text", or {text: ..., weight: ...}."""
    found: list[Weighted] = []
    for value in values:
        if isinstance(value, dict):
            text, weight = value.get("text", value.get("content")), value.get("weight", 1)
            if not isinstance(text, str) or isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise InputError(f"{str(path)!r}, {name}: {str(value)[:80]} should be like {{text: red, weight: 2}}.")
            found.append((max(float(weight), 0.0), text))
        elif isinstance(value, (str, int, float)) and str(value).strip():
            found.append(_weighted(str(value).strip()))
        elif value is not None and value != "":
            raise InputError(f"{str(path)!r}, {name}: {str(value)[:80]} should be a text.")
    return found


def _decoded(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"The wildcards in {str(path)!r} have more than {MAX_BYTES >> 20} MB.")
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"The wildcards in {str(path)!r} cannot be read: {error.strerror or error}") from None


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
