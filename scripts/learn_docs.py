"""Writes docs/learn.md from the lessons, with their figures: `python scripts/learn_docs.py`, some minutes.

Needs vl-convert-python, which draws the charts. A test compares the texts with the lessons; pictures are made anew only
by this script.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stable_diffusion.lessons import lesson as blocks  # noqa: E402
from stable_diffusion.lessons.chapters import CHAPTERS  # noqa: E402
from stable_diffusion.lessons.common import Settings  # noqa: E402
from stable_diffusion.lessons.lesson import Lesson  # noqa: E402

FIGURES = ROOT / "docs" / "learn"
WIDTH, CELL, GAP = 840, 120, 6
INTRODUCTION = """# Diffusion from the ground up

The lessons of the page "How it works", to read without starting anything. On the page, which `./webui.sh` opens, each
is computed live with the model that you choose, and answers to its controls. If all is new, begin with "A flat world".
"""


def document() -> str:
    """The whole file, without its figures."""
    return "\n".join([INTRODUCTION, *_contents(), *(line for c in CHAPTERS for line in _chapter(c))])


def _contents() -> Iterator[str]:
    for chapter in CHAPTERS:
        names = ", ".join(f"[{lesson.title}](#{_anchor(lesson.title)})" for lesson in chapter.lessons)
        yield f"- {chapter.title}: {names}"
    yield ""


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _chapter(chapter: blocks.Chapter) -> Iterator[str]:
    yield f"## {chapter.title}\n"
    for lesson in chapter.lessons:
        yield f"### {lesson.title}\n"
        yield f"{lesson.text}\n"
        for equation in lesson.equations:
            yield f"$$\n{equation}\n$$\n"
        if lesson.key == "glossary":
            yield from (f"- **{t.name}**: {t.meaning}" for t in lesson.compute(None, print, {}))
            yield ""
        elif (FIGURES / f"{lesson.key}.{_kind(lesson)}").exists():
            yield f"![{lesson.title}](learn/{lesson.key}.{_kind(lesson)})\n"
        if lesson.papers:
            yield "From: " + "; ".join(f"[{paper.title}]({paper.link})" for paper in lesson.papers) + ".\n"


def _kind(lesson: Lesson) -> str:
    return "svg" if lesson.key == "map" else "png"


def _figure(lesson: Lesson, model: Any) -> bytes | None:
    values: dict[str, Any] = {"settings": Settings()}
    values |= {each.key: each.value for each in (*lesson.asks, *lesson.views)}
    found = lesson.compute(model if lesson.needs_model else None, lambda note, fraction=None: None, values)
    shown = list(lesson.show(found, values))
    drawing = next((block for block in shown if isinstance(block, blocks.Drawing)), None)
    if drawing is not None:
        return _styled(drawing.svg).encode()
    rows = [row for block in shown if (row := _drawn(block)) is not None]
    if not rows:
        return None
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height + GAP for row in rows) - GAP), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    if sheet.width > WIDTH:
        sheet = sheet.resize((WIDTH, round(sheet.height * WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    sheet.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _drawn(block: blocks.Block) -> Image.Image | None:
    if isinstance(block, blocks.Strip):
        pictures = [Image.open(io.BytesIO(each.image)).convert("RGB") for each in block.pictures]
        size = max(CELL, min(block.width, WIDTH // max(1, len(pictures)) - GAP))
        return _beside([each.resize((size, round(size * each.height / each.width))) for each in pictures])
    if isinstance(block, blocks.Chart):
        import vl_convert

        chart = block.chart.properties(width=240, height=200).to_json()
        return Image.open(io.BytesIO(vl_convert.vegalite_to_png(chart, scale=1.5))).convert("RGB")
    if isinstance(block, blocks.Side):
        drawn = [row for column in block.columns for each in column if (row := _drawn(each)) is not None]
        return _beside(drawn) if drawn else None
    return None


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(p.width + GAP for p in pictures) - GAP, max(p.height for p in pictures)), "white")
    left = 0
    for each in pictures:
        row.paste(each, (left, 0))
        left += each.width + GAP
    return row


def _styled(svg: str) -> str:
    """The map with the page's colours, so that it can stand alone."""
    style = (
        "<style>text{font-family:sans-serif;text-anchor:middle;fill:#222}.title{font-size:15px;font-weight:600}"
        ".small{font-size:12px}rect{fill:#f8f8f7;stroke:#3b5bdb;stroke-width:1.5}"
        ".arrow{fill:none;stroke:#222;stroke-width:1.5}.faint text{opacity:.75}"
        ".faint rect,.arrow.faint{opacity:.45;stroke-dasharray:4 3}</style>"
    )
    start, _, rest = svg.partition(">")
    return f'{start} xmlns="http://www.w3.org/2000/svg" width="420">{style}{rest}'


def main() -> None:
    from stable_diffusion import StableDiffusion

    FIGURES.mkdir(exist_ok=True)
    only, model = sys.argv[1:], StableDiffusion()
    for chapter in CHAPTERS:
        for lesson in chapter.lessons:
            if lesson.key != "glossary" and (not only or lesson.key in only):
                figure = _figure(lesson, model)
                if figure is not None:
                    (FIGURES / f"{lesson.key}.{_kind(lesson)}").write_bytes(figure)
    (ROOT / "docs" / "learn.md").write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
