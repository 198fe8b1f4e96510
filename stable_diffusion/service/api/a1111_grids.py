"""A1111's scripts "X/Y/Z plot" and "Prompt matrix": from their arguments to a plan, and what is answered of a grid.

The arguments are those of A1111's scripts/xyz_grid.py and prompt_matrix.py, in their order. An axis is a number in the
list that /sdapi/v1/script-info gives, or a name of it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...compare import axes, plan, sheet
from ...errors import InputError
from ...pictures.formats import BY_KEY
from ...record import picture_files
from ...record.parameters import Parameters
from ...request import Request
from ..jobs import Comparison
from . import models, painting
from .errors import ApiError
from .painting import Finished

PLOT, MATRIX = plan.PLOT.lower(), plan.MATRIX.lower()
NOTHING, TEXT, PICTURE = "Nothing", 1, 2
# A1111's axes in its order, and whether it has them for texts, for pictures or for both.
_AXES = (
    (NOTHING, 3), ("Seed", 3), ("Var. seed", 3), ("Var. strength", 3), ("Steps", 3), ("Hires steps", TEXT),
    ("CFG Scale", 3), ("Image CFG Scale", PICTURE), ("Prompt S/R", 3), ("Prompt order", 3), ("Sampler", 3),
    ("Hires sampler", TEXT), ("Checkpoint name", 3), ("Negative Guidance minimum sigma", 3), ("Sigma Churn", 3),
    ("Sigma min", 3), ("Sigma max", 3), ("Sigma noise", 3), ("Schedule type", 3), ("Schedule min sigma", 3),
    ("Schedule max sigma", 3), ("Schedule rho", 3), ("Beta schedule alpha", 3), ("Beta schedule beta", 3), ("Eta", 3),
    ("Clip skip", 3), ("Denoising", 3), ("Initial noise multiplier", 3), ("Extra noise", 3), ("Hires upscaler", TEXT),
    ("Cond. Image Mask Weight", PICTURE), ("VAE", 3), ("Styles", 3), ("UniPC Order", 3), ("Face restore", 3),
    ("Token merging ratio", 3), ("Token merging ratio high-res", 3), ("Always discard next-to-last sigma", 3),
    ("SGM noise multiplier", 3), ("Refiner checkpoint", 3), ("Refiner switch at", 3), ("RNG source", 3),
    ("FP8 mode", 3), ("Size", 3),
)  # fmt: skip
_PLOT_FLAGS = ("Draw legend", "Include Sub Images", "Include Sub Grids", "Keep -1 for seeds")
_VARYING = ("Vary seeds for X", "Vary seeds for Y", "Vary seeds for Z")
_MODELS = ("model", "refiner")


@dataclass(frozen=True)
class Grid:
    """A plan, and what is answered of it: captions on the sheet, a sheet for each z, the single pictures."""

    plan: plan.Plan
    legend: bool = True
    tables: bool = False
    cells: bool = True


def read(found: Mapping[str, Any], request: Request, with_picture: bool) -> Grid | None:
    """The grid that a payload's script asks for, None without one. Raises ApiError and InputError."""
    name, args = found.get("script_name", "").strip().lower(), found.get("script_args", [])
    if name not in (PLOT, MATRIX):
        return None
    if request.n_images > 1:
        raise ApiError(422, f"script_name = {name!r} paints one picture a cell: n_iter and batch_size should be 1.")
    grid = _plot(args, request, with_picture) if name == PLOT else _matrix(args, request)
    if len(grid.plan.cells) > painting.MAX_IMAGES:
        count = len(grid.plan.cells)
        raise ApiError(422, f"A grid of {count} cells is more than {painting.MAX_IMAGES}, the most for one request.")
    for cell in grid.plan.cells:
        painting.check(cell.request)
    return grid


def names(with_picture: bool) -> list[str]:
    """The axes that can be named by their number."""
    return [name for name, where in _AXES if where & (PICTURE if with_picture else TEXT)]


def _plot(args: Sequence[Any], request: Request, with_picture: bool) -> Grid:
    if not 13 <= len(args) <= 19:
        raise ApiError(
            422,
            f"script_args of {plan.PLOT} has {len(args)} entries. These are wanted: type, values and chosen values of "
            "X, Y and Z; the legend, sub images, sub grids and -1 for seeds as booleans; the margin.",
        )
    legend, lone, tables, keep_seeds = (_flag(name, value) for name, value in zip(_PLOT_FLAGS, args[9:13], strict=True))
    rest = list(args[13:])
    varying = rest[:3] if len(rest) >= 4 else []
    for name, value in zip(("Keep -1 for seeds", *_VARYING), (keep_seeds, *varying), strict=False):
        if _flag(name, value):
            raise ApiError(422, f"script_args: {name!r} is not supported; vary the axis Seed instead.")
    after_margin = rest[len(varying) + 1 :]
    typed = bool(after_margin) and _flag("Use text inputs instead of dropdowns", after_margin[0])
    found = [_axis("XYZ"[i], args[3 * i : 3 * i + 3], with_picture, typed) for i in range(3)]
    return Grid(plan.plan(request, found), legend, tables, lone)


def _axis(letter: str, args: Sequence[Any], with_picture: bool, as_text: bool) -> axes.Axis | None:
    known, (kind, typed, chosen) = names(with_picture), args
    if isinstance(kind, str) and not kind.strip().isdecimal():
        name = kind.strip()
    elif isinstance(kind, bool) or not isinstance(kind, int | str) or not 0 <= int(kind) < len(known):
        raise ApiError(422, f"script_args: {letter} type {reprlib.repr(kind)} is no number in script-info's list.")
    else:
        name = known[int(kind)]
    if name.lower() == NOTHING.lower():
        return None
    if name.lower() == "denoising" and not with_picture:
        name = "hires_strength"
    try:
        found = axes.find(name)
    except InputError as error:
        raise ApiError(422, f"script_args: {letter} type {error}") from None
    if isinstance(chosen, list) and chosen and not as_text and found.options is not None:
        entries = [str(each) for each in chosen]
    elif found.name in _MODELS:
        entries = next(csv.reader([str(typed or "")], skipinitialspace=True), [])
    else:
        return axes.of_kind(found, str(typed or "").strip())
    if found.name in _MODELS:
        entries = [each if each.strip().lower() in ("", "none") else models.find(each).name for each in entries]
    return axes.of_kind(found, _listed(["None" if each == "Automatic" else each for each in entries]))


def _listed(entries: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(entries)
    return buffer.getvalue()


def _flag(name: str, value: Any) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False, "none": False, "": False}.get(str(value).lower())
    if found is None:
        raise ApiError(422, f"script_args: {name} = {reprlib.repr(value)} should be true or false.")
    return found


def _matrix(args: Sequence[Any], request: Request) -> Grid:
    at_start, other_seeds, prompt, delimiter = [*args, None, None, None, None][:4]
    if prompt not in (None, "positive", "negative") or delimiter not in (None, "comma", "space"):
        raise ApiError(
            422,
            f"script_args of {plan.MATRIX} should be: at the start, different seeds (both true or false), "
            "'positive' or 'negative', 'comma' or 'space', a margin.",
        )
    found = plan.matrix(
        request,
        at_start=_flag("Put variable parts at start of prompt", at_start),
        negative=prompt == "negative",
        delimiter=" " if delimiter == "space" else ", ",
        other_seeds=_flag("Use different seed for each picture", other_seeds),
    )
    return Grid(found)


# --- What is answered


def answer(job: Comparison, grid: Grid) -> tuple[list[bytes], list[Finished]]:
    """The sheet and, if asked for, a sheet for each z; and the finished cells in reading order.

    Raises ApiError if no cell was finished.
    """
    found: dict[str, Finished] = {}
    for cell in job.plan.cells:
        picture = job.picture_of(cell)
        finished = None if picture is None else painting.read(picture)
        if finished is not None:
            found[cell.digest] = finished
    if not found:
        raise ApiError(500, next(iter(job.problems.values()), "No cell of the grid was finished."))
    pictures = {digest: Image.open(io.BytesIO(each.data)) for digest, each in found.items()}
    sheets = [grid.plan, *_tables(grid.plan)] if grid.tables else [grid.plan]
    cells = [found[cell.digest] for cell in job.plan.cells if cell.digest in found]
    first = Parameters.from_text(cells[0].text) if cells[0].text else None
    suffix = BY_KEY[job.request.file_format].suffix
    return [
        picture_files.encoded(
            sheet.draw(each, lambda cell: pictures.get(cell.digest), grid.legend), suffix, sheet.record(each, first)
        )
        for each in sheets
    ], cells


def _tables(whole: plan.Plan) -> list[plan.Plan]:
    """A plan for each value along z, with x and y alone."""
    x, y, _ = whole.axes
    return [
        dataclasses.replace(
            whole,
            axes=(x, y, None),
            cells=tuple(dataclasses.replace(c, place=(*c.place[:2], 0)) for c in whole.cells if c.place[2] == z),
        )
        for z in range(whole.shape[2])
    ]


def described() -> list[dict[str, Any]]:
    """The arguments of both scripts, as /sdapi/v1/script-info lists them."""
    return [
        {"name": name, "is_alwayson": False, "is_img2img": with_picture, "args": args}
        for with_picture in (False, True)
        for name, args in ((MATRIX, _MATRIX_ARGS), (PLOT, _plot_args(with_picture)))
    ]


def _arg(label: str, value: Any, choices: Sequence[str] | None = None, most: int | None = None) -> dict[str, Any]:
    low = None if most is None else 0
    return {"label": label, "value": value, "minimum": low, "maximum": most, "step": most and 2, "choices": choices}


_MARGIN = _arg("Grid margins (px)", 0, most=500)
_MATRIX_ARGS = [
    _arg("Put variable parts at start of prompt", False),
    _arg("Use different seed for each picture", False),
    _arg("Select prompt", "positive", ("positive", "negative")),
    _arg("Select joining char", "comma", ("comma", "space")),
    _MARGIN,
]


def _plot_args(with_picture: bool) -> list[dict[str, Any]]:
    known = names(with_picture)
    each = [
        [
            _arg(f"{letter} type", known[letter == "X"], known),
            _arg(f"{letter} values", ""),
            _arg(f"{letter} values", []),
        ]
        for letter in "XYZ"
    ]
    flags = [_arg(name, name == _PLOT_FLAGS[0]) for name in (*_PLOT_FLAGS, *_VARYING)]
    return [
        *(arg for axis in each for arg in axis),
        *flags,
        _MARGIN,
        _arg("Use text inputs instead of dropdowns", False),
    ]
