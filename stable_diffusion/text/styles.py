"""Styles: pieces of prompts by name in a styles.csv, as A1111 has them (modules/styles.py). Needs no MLX.

A style with {prompt} in it has the prompt put there; another is appended after a comma. The same holds for its
negative prompt. Several styles are applied in the order in which they are named.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import atomic
from ..errors import InputError
from ..places import folders_in, home, of_other_programs

FILE, VARIABLE = "styles.csv", "STABLE_DIFFUSION_STYLES"
COLUMNS = ("name", "prompt", "negative_prompt")
_OLD_COLUMNS = {"text": "prompt", "negative_text": "negative_prompt"}  # of early versions of A1111
PLACE = "{prompt}"
MAX_BYTES = 16 << 20
MAX_STYLES = 100  # for one prompt
MAX_NAME = 200


@dataclass(frozen=True)
class Style:
    """A named piece of a prompt, and of a negative one."""

    name: str
    prompt: str = ""
    negative: str = ""
    path: Path = field(default=Path(FILE), compare=False)  # the file that it is in


def own_file() -> Path:
    """The file that is edited here: styles.csv in `home()`."""
    return home() / FILE


def files() -> list[Path]:
    """The files of styles: `own_file()`, those of $STABLE_DIFFUSION_STYLES, and A1111's own."""
    others = (folder / FILE for folder in of_other_programs())
    return list(dict.fromkeys([own_file(), *folders_in(VARIABLE), *(path for path in others if path.is_file())]))


def listed(paths: Iterable[str | os.PathLike] | None = None) -> dict[str, Style]:
    """All styles by name, of the files that there are; the first of a name counts. Raises `InputError` as `read`."""
    found: dict[str, Style] = {}
    for path in files() if paths is None else map(Path, paths):
        if path.exists():
            for style in read(path):
                found.setdefault(style.name, style)
    return found


def read(path: str | os.PathLike) -> list[Style]:
    """The styles in a file. Raises `InputError`, with the line, for one that is not such a table."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"The styles in {str(path)!r} have more than {MAX_BYTES >> 20} MB.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{str(path)!r}, line {line}: the styles are not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise InputError(f"The styles in {str(path)!r} cannot be read: {error.strerror or error}") from None
    return _parsed(text, path)


def _parsed(text: str, path: Path) -> list[Style]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    found = []
    begins = 1
    try:
        for row in reader:
            where = f"{str(path)!r}, line {begins}"
            begins = reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = [_OLD_COLUMNS.get(cell.strip(), cell.strip()) for cell in row]
                if not {"name", "prompt"} <= set(columns):
                    raise InputError(
                        f"{where}: styles begin with a line {','.join(COLUMNS)}, not {','.join(row)[:80]!r}."
                    )
                continue
            if len(row) > len(columns):
                raise InputError(
                    f"{where}: {len(row)} columns, but the first line names {len(columns)}; a text with commas in it "
                    'stands in "quotes".'
                )
            values = dict(zip(columns, row, strict=False))
            if name := values["name"].strip():
                found.append(Style(name, values.get("prompt", ""), values.get("negative_prompt", ""), path))
    except csv.Error as error:
        raise InputError(
            f"{str(path)!r}, line {begins}: the styles cannot be read ({error}); a text that begins with a quote "
            "needs one at its end, and quotes within are doubled."
        ) from None
    return found


def find(names: Sequence[str], known: dict[str, Style] | None = None) -> list[Style]:
    """The styles of these names. Raises `InputError` for one that is not there, with the nearest names."""
    if len(names) > MAX_STYLES:
        raise InputError(f"{len(names)} styles are more than {MAX_STYLES}.")
    if not names:
        return []
    known = listed() if known is None else known
    found = []
    for name in names:
        same = [each for each in known if each.casefold() == name.strip().casefold()]
        style = known.get(name) or (known[same[0]] if same else None)
        if style is None:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"Near it: {', '.join(near)}." if near else f"There are {', '.join(sorted(known)[:20]) or 'none'}."
            raise InputError(f"There is no style {name[:MAX_NAME]!r}. {hint} Styles are read from {own_file()}.")
        found.append(style)
    return found


def apply(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[str, str]:
    """Prompt and negative prompt with the styles applied, one after another."""
    for style in styles:
        prompt, negative = _merged(style.prompt, prompt), _merged(style.negative, negative)
    return prompt, negative


def _merged(style: str, prompt: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(filter(None, (prompt.strip(), style.strip())))


def save(style: Style, path: Path | None = None, replaces: str = "") -> None:
    """Write a style to a file (None: `own_file()`), in the place of the one of its name, or of the name `replaces`.

    Raises `InputError` for an empty name and for a file that cannot be read, and OSError.
    """
    name = style.name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(f"{name[:MAX_NAME]!r} is not a name for a style: use 1 to {MAX_NAME} characters.")
    path = own_file() if path is None else path
    before = read(path) if path.exists() else []
    style = Style(name, style.prompt, style.negative, path)
    gone = {name, replaces or name}
    place = next((i for i, each in enumerate(before) if each.name == (replaces or name)), len(before))
    kept = [each for each in before[:place] if each.name not in gone]
    _write(path, [*kept, style, *(each for each in before[place:] if each.name not in gone)])


def delete(name: str, path: Path | None = None) -> None:
    """Take a style out of a file. Raises `InputError` for a file that cannot be read, and OSError."""
    path = own_file() if path is None else path
    if path.exists():
        _write(path, [each for each in read(path) if each.name != name])


def _write(path: Path, styles: Iterable[Style]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((each.name, each.prompt, each.negative) for each in styles)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_whole(path, "\ufeff" + buffer.getvalue())
