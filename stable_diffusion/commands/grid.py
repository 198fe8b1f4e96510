"""grid: the same picture with one to three settings varied, as single files and as one sheet."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import atomic
from ..errors import InputError, StableDiffusionError
from ..setting import HIRES, PICTURE, SEVERAL
from .generation import asked_request, load, load_refiner
from .options import WHERE, add_generation_options, path
from .output import Output
from .running import Painter

if TYPE_CHECKING:
    from PIL import Image

    from ..compare.plan import Cell, Plan
    from ..record.parameters import Parameters

MANIFEST, SHEET, TABLE = "grid.json", "grid.png", "grid.csv"
REDRAW = 20.0  # seconds at least between two drawings of the sheet
DESCRIPTION = """\
Paint PROMPT with one to three settings varied: along the columns (--x), the rows (--y), and in tables of their own
(--z). The folder --output gets a file for each cell, the sheet grid.png with captions, and grid.csv with all settings.
Repeat the command to resume a grid that was interrupted.

  --x "steps=5-30 (+5)"                        5, 10, 15, 20, 25, 30
  --y "cfg=1-9 [5]"                            5 values from 1 to 9
  --z "sampler=Euler,DPM++ 2M Karras"          a list; quotes keep "a, b" together
  --x "style=*"                                all that there are
  --x "prompt_sr=red,blue,green"               red in the prompt, then blue and green in its place
  --matrix                                     "a house|snow|night" with and without each part
"""


def add_to(commands: Any) -> None:
    """Add its parser."""
    grid = commands.add_parser(
        "grid",
        help="paint a grid with one to three settings varied",
        description=DESCRIPTION,
        epilog="What can be varied: `grid --list` lists it.",
        usage='%(prog)s PROMPT --x "SETTING=VALUES" [options]',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = add_generation_options(grid, [SEVERAL, HIRES, PICTURE])
    axes = grid.add_argument_group("the axes")
    for name, where in (("x", "columns"), ("y", "rows"), ("z", "tables")):
        axes.add_argument(f"--{name}", metavar="SETTING=VALUES", help=f"what varies along the {where}")
    axes.add_argument("--matrix", action="store_true", help="a prompt matrix, from the parts of the prompt")
    axes.add_argument("--list", action=_List, help="list what can be varied, with examples, and exit")
    axes.add_argument("--yes", action="store_true", help="do not ask before a large grid")
    groups[PICTURE].add_argument("--picture", type=path, metavar="FILE", help="a picture to start from, in every cell")
    groups[WHERE].add_argument("--force", action="store_true", help="continue in a folder that holds another grid")
    grid.set_defaults(run=paint_grid)


class _List(argparse.Action):
    """Prints the axes, and exits."""

    def __init__(self, option_strings: Any, dest: str, **more: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, *others: Any) -> None:
        from ..compare.axes import kinds

        width = max(map(len, kinds()))
        for name, kind in kinds().items():
            print(f"{name.ljust(width)}  {kind.title}{f', such as {kind.example}' if kind.example else ''}")
        parser.exit()


def paint_grid(args: argparse.Namespace) -> list[Path]:
    """Paint the cells that are not there yet, then write the sheet and the table, and print where."""
    from ..compare import axes
    from ..compare import plan as planning
    from ..record.inputs import InputFile

    if args.matrix and (args.x or args.y or args.z):
        raise InputError("--matrix makes the axes itself: leave out --x, --y and --z.")
    source = None if args.picture is None else InputFile.read(args.picture)
    request = asked_request(args, picture=None if source is None else source.open(), picture_file=source)
    if request.n_images > 1 or request.combinations:
        raise InputError("A cell has one picture: leave out --n-images and --combinations, or vary the seed.")
    folder = Folder(args.output)
    request = folder.resumed(request, args.force)
    if args.matrix:
        plan = planning.matrix(request)
    else:
        plan = planning.plan(request, [None if text is None else axes.read(text) for text in (args.x, args.y, args.z)])
    folder.begin(plan, args.force)
    todo = [cell for cell in plan.order if not folder.has(cell)]
    _announce(plan, todo, args)
    failures: list[str] = []
    try:
        for cell, problem in _paint(plan, todo, folder, args.quiet):
            if problem:
                failures.append(problem)
                print(f"note: {_where(plan, cell)}: {problem}", file=sys.stderr)
    finally:
        if made := folder.finish(plan):
            print(made)
    if failures:
        raise StableDiffusionError(
            f"{len(failures)} of {len(plan.cells)} cells could not be painted; the first said: {failures[0]}"
        )
    return [folder.path / name for name in (SHEET, TABLE)]


def _announce(plan: Plan, todo: list[Cell], args: argparse.Namespace) -> None:
    """Say how much there is to paint; ask before very much."""
    from ..compare.plan import MANY

    loads = f", in which {plan.n_loads} models are loaded" if plan.n_loads > 1 else ""
    words = f"{len(todo)} of {len(plan.cells)} pictures to paint{loads}"
    if len(todo) > MANY and not args.yes:
        if not sys.stdin.isatty():
            raise InputError(f"{words}: give --yes to paint that many.")
        print(f"{words}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if input().strip().lower() not in ("y", "yes"):
            raise InputError("Nothing was painted.")
    elif not args.quiet:
        print(words, file=sys.stderr)


def _paint(plan: Plan, todo: list[Cell], folder: Folder, quiet: bool) -> Any:
    """Paint and save cell after cell; yields each with what went wrong, or ""."""
    sd: Any = None
    refiner: Any = None
    loaded: tuple[Any, ...] = ()
    bar = _Bar(len(todo), quiet)
    try:
        for cell in todo:
            problem = ""
            try:
                if sd is None or loaded[:2] != cell.load[:2]:
                    sd = refiner = None  # before the next one, so that there is room for it
                    sd, refiner = load(cell.request, quiet), load_refiner(cell.request, quiet)
                elif loaded[2:] != cell.load[2:]:
                    sd.set_loras(list(cell.request.loras))
                loaded = cell.load
                folder.save(cell, *Painter(sd, refiner, cell.request, folder.output, 0, quiet).one(bar, 1))
                bar.next_cell()
                folder.redraw(plan)
            except (StableDiffusionError, MemoryError) as error:
                problem = " ".join(str(error).split()) or type(error).__name__
            yield cell, problem
    finally:
        bar.close()


class _Bar:
    """A progress bar over cells, whose steps may differ in number; told of steps as `Painter.run` does."""

    def __init__(self, n_cells: int, quiet: bool):
        from tqdm import tqdm

        self.total = self.n = self._cell = 0
        text = "{desc}{percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left"
        self._bar = tqdm(total=n_cells, bar_format=text, disable=quiet, leave=True)

    def update(self, n: int) -> None:
        """Some steps are done."""
        self.n += n
        self._set(min(self.n / max(self.total, 1), 1.0))

    def next_cell(self) -> None:
        """A cell is done."""
        self._cell, self.n = self._cell + 1, 0
        self._set(0.0)

    def close(self) -> None:
        """Finish the line."""
        self._bar.close()

    def _set(self, share: float) -> None:
        self._bar.n = self._cell + share
        self._bar.refresh()


def _where(plan: Plan, cell: Cell) -> str:
    return ", ".join(filter(None, (plan.label(axis, place) for axis, place in enumerate(cell.place))))


class Folder:
    """The folder of a grid: its cells' files, and which cell each is, so that a grid can be resumed."""

    def __init__(self, where: str | None):
        """Create the folder. Raises `InputError` without a name, and where nothing can be written."""
        if where is None:
            raise InputError("A grid needs a folder for its files: --output FOLDER.")
        if Path(where).suffix and not Path(where).is_dir() and not where.endswith(("/", "\\")):
            raise InputError(f"--output {where!r} should be a folder, since a grid has a file for each cell.")
        self.path = Path(where)
        self.output = Output(f"{where}/", several=True)
        self._files: dict[str, str] = {}
        self._said: dict[str, Any] = {}
        self._drawn = time.monotonic()

    def resumed(self, request: Any, force: bool) -> Any:
        """The request with the seeds that were drawn when the grid in the folder was begun."""
        try:
            self._said = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            files = self._said["cells"]
            self._files = {str(digest): str(name) for digest, name in files.items()}
            seeds = {name: self._said[name] for name in ("seed", "variation_seed") if isinstance(self._said[name], int)}
        except FileNotFoundError:
            return request
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not force:
                raise InputError(
                    f"{str(self.path / MANIFEST)!r} cannot be read ({error}): --force begins the grid anew."
                ) from None
            return request
        seeds = {name: seed for name, seed in seeds.items() if getattr(request, name) is None}
        return dataclasses.replace(request, **seeds)

    def begin(self, plan: Plan, force: bool) -> None:
        """Take the folder for this plan. Raises `InputError` if it holds a grid of which no cell is in this one."""
        mine = {cell.digest for cell in plan.cells}
        if self._files and not mine & set(self._files) and not force:
            raise InputError(f"{str(self.path)!r} holds another grid: choose another folder, or give --force.")
        self._seeds = {name: getattr(plan.cells[0].request, name) for name in ("seed", "variation_seed")}
        if any(axis is not None and axis.kind.name == "seed" for axis in plan.axes):
            self._seeds["seed"] = None
        if not self._files:
            self._write()

    def has(self, cell: Cell) -> bool:
        """Whether a cell's file is there."""
        return self._parameters(cell) is not None

    def save(self, cell: Cell, picture: Image.Image, made: Parameters) -> None:
        """Save a cell."""
        saved = self.output.save(picture, 1, made)
        self._files[cell.digest] = saved.name
        self._write()

    def redraw(self, plan: Plan) -> None:
        """Write the sheet with what there is, now and then."""
        if time.monotonic() - self._drawn > REDRAW:
            self.finish(plan)
            self._drawn = time.monotonic()

    def finish(self, plan: Plan) -> Path | None:
        """Write the sheet and the table with what there is; None if that is nothing."""
        from ..compare import sheet
        from ..record import picture_files

        found = [(cell, made) for cell in plan.cells if (made := self._parameters(cell)) is not None]
        if not found:
            return None
        whole = sheet.draw(plan, self._picture)
        picture_files.save_picture(whole, self.path / SHEET, sheet.record(plan, found[0][1]))
        rows = [(cell, self._files[cell.digest], made) for cell, made in found]
        atomic.write_whole(self.path / TABLE, sheet.table(plan, rows))
        return self.path / SHEET

    def _parameters(self, cell: Cell) -> Parameters | None:
        from ..record import picture_files

        name = self._files.get(cell.digest)
        if name is None or Path(name).name != name:
            return None
        with contextlib.suppress(StableDiffusionError, OSError):
            return picture_files.read_parameters(self.path / name)
        return None

    def _picture(self, cell: Cell) -> Image.Image | None:
        from ..record.inputs import InputFile

        if self._parameters(cell) is None:
            return None
        with contextlib.suppress(StableDiffusionError, OSError):
            return InputFile.read(self.path / self._files[cell.digest]).open()
        return None

    def _write(self) -> None:
        text = json.dumps({**self._seeds, "cells": self._files}, indent=1)
        atomic.write_whole(self.path / MANIFEST, text)
