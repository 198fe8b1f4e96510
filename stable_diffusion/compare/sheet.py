"""A grid as one picture with captions, and as a table of settings. Needs no MLX."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..record.parameters import Parameters
from .plan import Cell, Plan

GAP = 4  # pixels between cells
MAX_SIDE, MAX_PIXELS = 16_384, 100_000_000  # of the sheet; larger grids are made of smaller pictures
PAPER, INK, EMPTY = "white", "black", "#e9ecef"
MAX_LINES = 4  # of a caption
# Fonts with more letters than the one inside Pillow, which has Latin ones only.
FONTS = (
    "/System/Library/Fonts/Supplemental/Arial Unicode.ttf", "/Library/Fonts/Arial Unicode.ttf",
    "/usr/share/fonts/truetype/noto/NotoSansCJK-Regular.ttc", "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
)  # fmt: skip

Look = Callable[[Cell], Image.Image | None]  # a cell's picture; None where there is none


def draw(plan: Plan, look: Look, captions: bool = True) -> Image.Image:
    """All cells on one sheet: columns along x, rows along y, a table below the other for each z, with `captions`.

    Pictures may differ in size; those that are missing stay grey.
    """
    nx, ny, nz = plan.shape
    box = _box(plan, look)
    font = _font(max(12, min(32, box[0] // 14)))
    line = round(font.size * 1.3)
    columns = [_wrapped(plan.label(0, x), box[0], font) for x in range(nx)]
    x_axis, y_axis, z_axis = plan.axes if captions else (None, None, None)
    left = min(box[0], 24 * round(font.size * 0.6)) if y_axis is not None else 0
    rows = [_wrapped(plan.label(1, y), left - GAP, font) if left else [] for y in range(ny)]
    above = max(map(len, columns)) * line + GAP if x_axis is not None else 0
    titles = [_wrapped(plan.label(2, z), left + nx * box[0], font) for z in range(nz)]
    title = max(map(len, titles)) * line + GAP if z_axis is not None else 0
    width, table = left + nx * (box[0] + GAP) + GAP, title + above + ny * (box[1] + GAP) + GAP
    sheet = Image.new("RGB", (width, nz * table), PAPER)
    pen = ImageDraw.Draw(sheet)
    for z in range(nz):
        top = z * table
        if title:
            _write(pen, titles[z], (GAP, top, width - GAP, top + title), font, line)
        for x in range(nx if above else 0):
            at = left + GAP + x * (box[0] + GAP)
            _write(pen, columns[x], (at, top + title, at + box[0], top + title + above), font, line)
        for y in range(ny if left else 0):
            at = top + title + above + y * (box[1] + GAP)
            _write(pen, rows[y], (0, at, left, at + box[1]), font, line)
    for cell in plan.cells:
        x, y, z = cell.place
        corner = left + GAP + x * (box[0] + GAP), z * table + title + above + y * (box[1] + GAP)
        picture = look(cell)
        if picture is None:
            pen.rectangle((*corner, corner[0] + box[0] - 1, corner[1] + box[1] - 1), fill=EMPTY)
            continue
        picture = picture.convert("RGB")
        picture.thumbnail(box, Image.Resampling.LANCZOS)
        sheet.paste(picture, (corner[0] + (box[0] - picture.width) // 2, corner[1] + (box[1] - picture.height) // 2))
    return sheet


def _box(plan: Plan, look: Look) -> tuple[int, int]:
    """The size of a cell, in which every picture fits: its own, or smaller if the sheet would become too large."""
    found = [picture.size for cell in plan.cells if (picture := look(cell)) is not None] or [(256, 256)]
    width, height = max(w for w, _ in found), max(h for _, h in found)
    nx, ny, nz = plan.shape
    sides = (nx + (plan.axes[1] is not None)) * width, (ny + 1) * nz * height
    share = min(1.0, MAX_SIDE / max(sides), (MAX_PIXELS / (sides[0] * sides[1])) ** 0.5)
    return max(8, int(width * share)), max(8, int(height * share))


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    for path in FONTS:
        if Path(path).is_file():
            try:
                return ImageFont.truetype(path, size)
            except OSError:
                continue
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont), "Pillow has its own font since 10.1"
    return found


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """A caption in lines of at most `width` pixels, cut after MAX_LINES."""
    lines: list[str] = []
    line = ""
    for word in text[:400].split():
        while word:
            together = f"{line} {word}".strip()
            if font.getlength(together) <= width:
                line, word = together, ""
            elif line:
                lines.append(line)
                line = ""
            else:  # a word that is too long alone
                n = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= width), 1)
                lines.append(word[:n])
                word = word[n:]
    lines += [line] if line else []
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1][:-1] + "\u2026"]
    return lines


def _write(
    pen: ImageDraw.ImageDraw, lines: list[str], box: tuple[int, int, int, int], font: ImageFont.FreeTypeFont, line: int
) -> None:
    """Lines in the middle of a box."""
    top = box[1] + (box[3] - box[1] - len(lines) * line) // 2
    for i, text in enumerate(lines):
        at = (box[0] + box[2]) / 2 - font.getlength(text) / 2
        pen.text((at, top + i * line), text, fill=INK, font=font)


def record(plan: Plan, first: Parameters | None) -> Parameters | None:
    """The record of a grid: that of its first picture, and its axes in A1111's words."""
    if first is None:
        return None
    return dataclasses.replace(first, extra=first.extra | plan.record())


def table(plan: Plan, said: Iterable[tuple[Cell, str, Parameters]]) -> str:
    """CSV, a line for each finished cell: its file, its place along the axes, and all of its settings."""
    rows = []
    for cell, file, made in said:
        row: dict[str, Any] = {"file": file}
        for letter, axis, place in zip("xyz", plan.axes, cell.place, strict=True):
            if axis is not None:
                row[f"{letter}: {axis.kind.title or 'parts'}"] = axis.labels[place]
        row |= {
            "Prompt": made.prompt, "Negative prompt": made.negative, "Steps": made.steps, "Sampler": made.sampler,
            "Schedule type": made.schedule, "CFG scale": made.cfg, "Seed": made.seed, "Size": made.size,
            "Model hash": made.model_hash, "Model": made.model, "Denoising strength": made.strength,
        }  # fmt: skip
        rows.append({key: "" if value is None else str(value) for key, value in (row | made.extra).items()})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
