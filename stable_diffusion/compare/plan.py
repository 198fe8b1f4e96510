"""A grid as a plan: every cell with its request, checked before anything is painted, and the order to paint them in."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import prompts
from ..errors import InputError
from ..request import SETTINGS, Request
from .axes import Axis, Kind

MAX_CELLS = 10_000
MANY = 100  # cells; more are asked about before
MAX_PARTS = 8  # of a prompt matrix: 256 cells
SCRIPT, PLOT, MATRIX = "Script", "X/Y/Z plot", "Prompt matrix"
LETTERS = "XYZ"


@dataclass(frozen=True)
class Cell:
    """One picture of a grid: its place along x, y and z, and what it is painted from."""

    place: tuple[int, int, int]
    request: Request  # prepared, of one picture

    @cached_property
    def digest(self) -> str:
        """What tells it from other cells, in any grid: equal where every setting is."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(Request):
            value = getattr(self.request, field.name)
            if field.name not in ("picture", "mask", "previews", "file_format"):
                found[field.name] = value.sha256 if field.name.endswith("_file") and value is not None else value
        return hashlib.sha256(json.dumps(found, default=str, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def load(self) -> tuple[Any, ...]:
        """What is loaded for it; cells of the same are painted one after another."""
        options = {**self.request.to_load(), "refiner": self.request.refiner}
        return self.request.model, tuple(sorted(options.items(), key=str)), self.request.loras


@dataclass(frozen=True)
class Plan:
    """A grid: its axes (None where there is none), and its cells in reading order, x first, then y, then z."""

    axes: tuple[Axis | None, Axis | None, Axis | None]
    cells: tuple[Cell, ...]
    script: str = PLOT

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of values along x, y and z."""
        x, y, z = (1 if axis is None else len(axis.values) for axis in self.axes)
        return x, y, z

    @property
    def order(self) -> list[Cell]:
        """The cells in the order in which a model is loaded as rarely as can be: each once."""
        first: dict[Any, int] = {}
        for depth in (1, 2, 3):
            for i, cell in enumerate(self.cells):
                first.setdefault(cell.load[:depth], i)
        return sorted(self.cells, key=lambda cell: [first[cell.load[:depth]] for depth in (1, 2, 3)])

    @property
    def n_loads(self) -> int:
        """How often a model is loaded."""
        return len({cell.load[:2] for cell in self.cells})

    def label(self, axis: int, place: int) -> str:
        """What stands at a column, a row or a table: "Steps: 20"; "" where there is no such axis."""
        found = self.axes[axis]
        return (
            ""
            if found is None
            else f"{found.kind.title}: {found.labels[place]}"
            if found.kind.title
            else found.labels[place]
        )

    def record(self) -> dict[str, str]:
        """The entries of a grid's record, in A1111's words."""
        extra = {SCRIPT: self.script}
        for letter, axis in zip(LETTERS, self.axes, strict=True):
            if axis is not None and self.script == PLOT:
                extra |= {f"{letter} Type": axis.kind.a1111, f"{letter} Values": axis.typed}
        return extra


def plan(request: Request, axes: Sequence[Axis | None]) -> Plan:
    """The plan of a request varied along up to three axes. Raises `InputError` for a cell that cannot be painted."""
    x, y, z = (*axes, None, None, None)[:3]
    found = [axis for axis in (x, y, z) if axis is not None]
    if not found:
        raise InputError("A grid needs an axis, such as steps with the values 5-30 (+5).")
    for one, other in itertools.combinations(found, 2):
        if one.kind.name == other.kind.name and one.kind.name:
            raise InputError(f"{one.kind.title} stands on two axes: choose another setting for one of them.")
    return _planned(request, (x, y, z), PLOT)


def matrix(
    request: Request,
    at_start: bool = False,
    negative: bool = False,
    delimiter: str = ", ",
    other_seeds: bool = False,
) -> Plan:
    """The plan of a prompt matrix: "a house|snow|night" paints the house, with snow, at night, and with both.

    Half of the parts vary along x and the others along y, as in A1111 (scripts/prompt_matrix.py), whose options these
    are: parts `at_start` of the prompt, those of the `negative` prompt, another `delimiter`, and `other_seeds`, in
    which cell i has seed + i. Raises `InputError`.
    """
    name = "negative" if negative else "prompt"
    text = getattr(request, name)
    first, *parts = (part.strip() for part in _split(text))
    if not parts:
        raise InputError(f"A prompt matrix needs parts, as in 'a house|snow|night', not {text[:80]!r}.")
    if len(parts) > MAX_PARTS:
        raise InputError(
            f"A prompt matrix of {len(parts)} parts has {2 ** len(parts)} cells: {MAX_PARTS} parts at most."
        )
    half = (len(parts) + 1) // 2
    request = _with(request, name, first)

    def added(request: Request, chosen: tuple[str, ...]) -> Request:
        own = (getattr(request, name),)
        pieces = (*chosen, *own) if at_start else (*own, *chosen)
        return _with(request, name, delimiter.join(filter(None, pieces)))

    # Along x first, or at the start last, so that the parts keep their order.
    late = (3, 2) if at_start else (2, 3)
    halves = zip((parts[:half], parts[half:]), late, strict=True)
    sides = [_part_axis(side, added, i) if side else None for side, i in halves]
    found = _planned(request, (sides[0], sides[1], None), MATRIX)
    return _with_other_seeds(found) if other_seeds else found


def _with(request: Request, name: str, text: str) -> Request:
    changes: dict[str, Any] = {name: text}
    return dataclasses.replace(request, **changes)


def _with_other_seeds(plan: Plan) -> Plan:
    cells = []
    for i, cell in enumerate(plan.cells):
        seed = (cell.request.seed or 0) + i
        cells.append(dataclasses.replace(cell, request=dataclasses.replace(cell.request, seed=seed)))
    return dataclasses.replace(plan, cells=tuple(cells))


def _split(prompt: str) -> list[str]:
    """The parts of a prompt matrix: "|" in brackets and braces belongs to these."""
    depth, parts, start = 0, [], 0
    for match in re.finditer(r"\\.|[\[\](){}|]", prompt, re.DOTALL):
        if match[0] in "[({":
            depth += 1
        elif match[0] in "])}":
            depth = max(depth - 1, 0)
        elif match[0] == "|" and not depth:
            parts.append(prompt[start : match.start()])
            start = match.end()
    return [*parts, prompt[start:]]


def _part_axis(parts: Sequence[str], added: Callable[[Request, tuple[str, ...]], Request], late: int) -> Axis:
    every = [tuple(part for i, part in enumerate(parts) if n >> i & 1) for n in range(2 ** len(parts))]
    kind = Kind(
        "", "", lambda text: [], added, lambda v: ", ".join(v) or "\u2013", late=late,
    )  # fmt: skip
    return Axis(kind, "|".join(parts), tuple(every))


def _planned(request: Request, axes: tuple[Axis | None, Axis | None, Axis | None], script: str) -> Plan:
    counts = [1 if axis is None else len(axis.values) for axis in axes]
    total = counts[0] * counts[1] * counts[2]
    if total > MAX_CELLS:
        raise InputError(f"A grid of {' x '.join(map(str, counts))} has {total} cells: {MAX_CELLS} are the most.")
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    other = secrets.randbelow(2**32) if request.variation_seed is None else request.variation_seed
    base = dataclasses.replace(request, seed=seed, variation_seed=None, n_images=1, batch_size=1, combinations=False)
    cells, counting = [], set()
    for z, y, x in itertools.product(*(range(n) for n in reversed(counts))):
        place = (x, y, z)
        chosen = [(axis, axis.values[i]) for axis, i in zip(axes, place, strict=True) if axis is not None]
        try:
            found = base
            for axis, value in sorted(chosen, key=lambda pair: pair[0].kind.late):
                found = axis.kind.apply(found, value)
            if found.variation_strength and found.variation_seed is None:
                found = dataclasses.replace(found, variation_seed=other)
            elif not found.variation_strength:
                found = dataclasses.replace(found, variation_seed=None)
            counting |= {axis.kind.setting for axis, _ in chosen if _counts(axis.kind, found)}
            cells.append(Cell(place, prompts.prepared(found).of_picture(0)))
        except InputError as error:
            where = ", ".join(f"{axis.kind.title} {axis.kind.label(value)[:60]}".strip() for axis, value in chosen)
            raise InputError(f"The cell with {where}: {error}") from None
    for each in filter(None, axes):
        if each.kind.setting and each.kind.setting not in counting:
            raise InputError(f"{each.kind.title} has no effect on any cell: {_needs(each.kind.setting)}.")
    return Plan(axes, tuple(cells), script)


def _counts(kind: Kind, request: Request) -> bool:
    return kind.setting not in SETTINGS or SETTINGS[kind.setting].counts(request)


def _needs(name: str) -> str:
    each = SETTINGS[name]
    if name in ("variation_seed", "vary_all_draws"):
        return "it needs a variation strength"
    return f"it belongs to {each.group!r}, which is off"
