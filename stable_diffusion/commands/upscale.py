"""upscale: pictures made larger, one by one or whole folders."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError, PictureError, StableDiffusionError
from ..listing import walk
from ..pictures.formats import BY_KEY, WRITTEN, WRITTEN_SUFFIXES, format_of
from ..upscaling.settings import DEFAULT, KEYS, MAX_FACTOR, Upscaling, read_size
from ..upscaling.upscalers import FOLDER, NONE, VARIABLE
from .options import add_debug, number, path, reading_of
from .output import cannot_write, means_folder
from .running import Report

OUTPUT = "outputs/upscaled"
BAR = "{desc}{percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def add_to(commands: Any) -> None:
    """Add its parser."""
    command = commands.add_parser(
        "upscale",
        help="enlarge pictures",
        description="Enlarge pictures and folders of pictures. Results get the names of their sources; one that is "
        "there already is not made again, so the same command goes on after an interruption.",
        usage="%(prog)s PICTURE-OR-FOLDER... [options]",
    )
    command.add_argument("pictures", type=path, nargs="*", metavar="PICTURE-OR-FOLDER", help="what to enlarge")
    how = command.add_argument_group("how")
    size = how.add_mutually_exclusive_group()
    size.add_argument("--by", type=number(0, MAX_FACTOR), metavar="F", help="the factor (default: the upscaler's)")
    size.add_argument(
        "--to", type=reading_of(read_size), metavar="WxH", help="the size to cover, in the picture's own proportions"
    )
    how.add_argument("--crop", action="store_true", help="with --to, cut off what is beyond that size")
    how.add_argument(
        "--upscaler",
        default=DEFAULT,
        metavar="NAME",
        help=f"a name that --list shows: a file in {FOLDER}/, in a folder of ${VARIABLE} or of A1111 or ComfyUI, or a "
        f"file (default: {DEFAULT}, which comes along)",
    )
    how.add_argument("--second", default=NONE, metavar="NAME", help="another upscaler to mix in")
    how.add_argument(
        "--visibility", type=number(0, 1), metavar="S", help="how much of --second shows, from 0 to 1 (default: 0.5)"
    )
    how.add_argument("--list", action="store_true", help="list the upscalers that there are")
    where = command.add_argument_group("output")
    where.add_argument(
        "--output",
        type=path,
        metavar="FILE-OR-FOLDER",
        help=f"a file, overwritten if it exists, or a folder, where nothing is overwritten (default: {OUTPUT}/)",
    )
    where.add_argument(
        "--format",
        choices=[each.key for each in WRITTEN],
        default="png",
        metavar="NAME",
        help="of the files in a folder: png, jpeg or webp (default: png)",
    )
    where.add_argument("--quiet", action="store_true", help="print only the file names")
    add_debug(command)
    command.set_defaults(run=upscale)


def upscale(args: argparse.Namespace) -> None:
    """Enlarge, save, and print where."""
    if args.list:
        _list()
        return
    settings = _settings(args)
    sources = list(_sources(args.pictures))
    batch = _Batch(settings, _Targets(args, sources), args.quiet)
    batch.run(sources)


def _settings(args: argparse.Namespace) -> Upscaling:
    visibility = args.visibility
    if visibility is None:
        visibility = 0.0 if args.second.casefold() == NONE.casefold() else 0.5
    factor = args.by if args.by is not None or args.to is not None else _own_scale(args.upscaler)
    return Upscaling(args.upscaler, factor, args.to, args.crop, args.second, visibility)


def _own_scale(name: str) -> float:
    from ..upscaling import upscalers

    return float(upscalers.find(name).scale or 2)


def _list() -> None:
    from ..upscaling import upscalers

    for each in upscalers.all():
        about = f"x{each.scale} {each.architecture}" if each.scale else each.problem
        print(f"{each.name:<32} {about}".rstrip())


def _sources(names: list[str]) -> Iterator[tuple[Path, Path]]:
    """The pictures, each with what its result is called within a folder. Raises `InputError`."""
    if not names:
        raise InputError("Name at least one picture or folder to enlarge (--list lists the upscalers).")
    for name in names:
        source = Path(name)
        if not source.is_dir():
            yield source, Path(source.name)
            continue
        found = [each for each in walk(source) if format_of(each) is not None]
        if not found:
            raise InputError(f"The folder {name!r} holds no pictures.")
        yield from ((each, each.relative_to(source)) for each in found)


class _Targets:
    """Where results go: one file, or names of their sources in a folder."""

    def __init__(self, args: argparse.Namespace, sources: list[tuple[Path, Path]]):
        """Raises `InputError` for an output that cannot be."""
        where = args.output or f"{OUTPUT}/"
        self.path = Path(where)
        self.single = not means_folder(where)
        self._suffix = BY_KEY[args.format].suffix
        self._sources = {source.resolve() for source, _ in sources}
        self._taken: set[Path] = set()
        if self.single and len(sources) > 1:
            raise InputError(f"--output {where!r} is one file, and there are {len(sources)} pictures: name a folder.")
        if self.single and self.path.suffix.lower() not in WRITTEN_SUFFIXES:
            raise InputError(f"--output {where!r} should end in {', '.join(WRITTEN_SUFFIXES)}, or mean a folder.")
        folder = self.path.parent if self.single else self.path
        if why := cannot_write(folder):
            raise InputError(f"{str(folder)!r} cannot be written to ({why}): choose another place with --output.")

    def of(self, inner: Path, size: tuple[int, int], said: dict[str, str]) -> tuple[Path, bool]:
        """The file for a result of this size that says this, and whether it is there already."""
        if self.single:
            return self.path, False
        count = 0
        while True:
            count += 1
            stem = inner.stem if count == 1 else f"{inner.stem}-{count}"
            target = self.path / inner.with_name(stem + self._suffix)
            if target in self._taken or target.resolve() in self._sources:
                continue
            there = target.exists()
            if not there or _is_result(target, size, said):
                self._taken.add(target)
                return target, there


def _is_result(target: Path, size: tuple[int, int], said: dict[str, str]) -> bool:
    from PIL import Image

    from ..record import picture_files

    try:
        with Image.open(target) as image:
            if image.size != size:
                return False
        found = picture_files.read_parameters(target)
    except (PictureError, OSError):
        return False
    return found is not None and {key: found.extra[key] for key in KEYS if key in found.extra} == said


class _Batch:
    """Enlarges picture after picture; one that cannot be used does not stop the others."""

    def __init__(self, settings: Upscaling, targets: _Targets, quiet: bool):
        self.settings = settings
        self.said = settings.record()
        self.targets = targets
        self.quiet = quiet
        self._upscale: Any = None

    def run(self, sources: list[tuple[Path, Path]]) -> None:
        """Raises the error of a single picture, and one that sums up those of several."""
        failed: list[str] = []
        for i, (source, inner) in enumerate(sources, 1):
            title = f"{i} of {len(sources)}  {source.name}  " if len(sources) > 1 else ""
            try:
                target, there = self._one(source, inner, title)
            except (StableDiffusionError, OSError) as error:
                full = isinstance(error, OSError) and error.errno in FULL
                if len(sources) == 1 or full or not isinstance(error, (PictureError, InputError, OSError)):
                    raise
                failed.append(str(source))
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            print(target if self.quiet or not there else f"{target}  (there already)", flush=True)
        if failed:
            raise StableDiffusionError(f"{len(failed)} of {len(sources)} pictures could not be enlarged.")

    def _one(self, source: Path, inner: Path, title: str) -> tuple[Path, bool]:
        from ..pictures.reading import open_picture
        from ..record import picture_files

        picture = open_picture(source, under=None)
        record = picture_files.read_record(source)
        target, there = self.targets.of(inner, self.settings.result_size(picture.size), self.said)
        if there:
            return target, True
        result = self._enlarged(picture, title)
        picture_files.save_picture(result, target, self.settings.recorded(record.parameters if record else None))
        return target, False

    def _enlarged(self, picture: Any, title: str) -> Any:
        from tqdm import tqdm

        from ..upscaling.enlarging import Upscale

        if self._upscale is None:
            report = Report(self.quiet)
            report(f"Loading {self.settings.upscaler}")
            self._upscale = Upscale(self.settings)
            report.end()
        with tqdm(total=0, bar_format=BAR, desc=title, disable=self.quiet, leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return self._upscale(picture, progress)
