"""Where a run's pictures go: saved as they come, whichever machine painted them, and listed at the end."""

from __future__ import annotations

import argparse
import contextlib
import errno
import glob
import io
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ranks
from ..errors import InputError, PictureError
from ..pictures.formats import WRITTEN_SUFFIXES
from ..ranks import RankError, Sent

if TYPE_CHECKING:
    from ..record.inputs import InputFile
    from ..record.parameters import Parameters


class Output:
    """Where pictures go: a file, which is overwritten, or a folder, where each gets a new name."""

    def __init__(self, where: str | None, several: bool, carry: Sequence[InputFile] = (), no_record: bool = False):
        """Create the folder; of several machines rank 0 does, which alone writes. `carry` are files to embed.

        With `no_record` the pictures carry no parameters. Raises `InputError` for a file type that is not written or
        cannot embed files, and where nothing can be written.
        """
        if carry and no_record:
            raise InputError("--embed-inputs writes into the pictures what --no-record keeps out: give one of them.")
        path = Path("outputs", date.today().isoformat()) if where is None else Path(where)
        self.several = several
        self.into_folder = means_folder(where)
        if not self.into_folder and path.suffix.lower() not in WRITTEN_SUFFIXES:
            raise InputError(
                f"--output {where!r} should end in {', '.join(WRITTEN_SUFFIXES)}, or in a slash to mean a folder."
            )
        if carry and not self.into_folder and path.suffix.lower() != ".png":
            raise InputError(f"--embed-inputs needs a PNG; --output {where!r} should end in .png.")
        self.path = path
        self.carry = carry
        self.no_record = no_record
        self.folder = path if self.into_folder else path.parent
        why = cannot_write(self.folder) if ranks.group().rank == 0 else None
        if why:
            raise InputError(f"{str(self.folder)!r} cannot be written to ({why}): choose another place with --output.")

    @property
    def suffix(self) -> str:
        """The suffix of the files."""
        return ".png" if self.into_folder else self.path.suffix

    def save(self, picture: Any, number: int, parameters: Parameters) -> Path:
        """Save picture `number` (from 1) of the run, or its bytes from `picture_files.encoded`, and return where."""
        from ..record import picture_files

        written = self.written(parameters)
        if self.into_folder:
            return picture_files.save_new_picture(picture, self.folder, written, carry=self.carry)
        return picture_files.save_picture(picture, self._file(number), written, self.carry)

    def written(self, parameters: Parameters) -> Parameters | None:
        """The parameters, or None where pictures are to carry none."""
        return None if self.no_record else parameters

    def records(self) -> dict[Path, Parameters]:
        """The records of the pictures that are in its folder already; of its own names, if it is a file."""
        from ..record import picture_files

        pattern = "*" if self.into_folder else f"{glob.escape(self.path.stem)}-*{self.path.suffix}"
        found = {}
        for path in sorted(self.folder.glob(pattern)):
            with contextlib.suppress(PictureError, OSError):
                if path.suffix.lower() in WRITTEN_SUFFIXES and (said := picture_files.read_parameters(path)):
                    found[path] = said
        return found

    def may_be(self, path: Path, number: int) -> bool:
        """Whether picture `number` (from 1) may be in this file."""
        return self.into_folder or path == self._file(number)

    def preview(self, number: int, seed: int) -> Path:
        """The preview's file, next to the one that picture `number` will get."""
        from ..record import picture_files

        name = picture_files.free_path(self.folder, seed) if self.into_folder else self._file(number)
        return name.with_name(f"{name.stem}.preview.png")

    def _file(self, number: int) -> Path:
        return self.path.with_stem(f"{self.path.stem}-{number}") if self.several else self.path


def cannot_write(folder: Path) -> str | None:
    """Why no file can be created in a folder, which is created if it is missing; better told before painting."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None if os.access(folder, os.W_OK) else os.strerror(errno.EACCES)


def means_folder(where: str | None) -> bool:
    """Whether --output means a folder; None means today's."""
    return where is None or where.endswith(("/", "\\")) or Path(where).is_dir() or not Path(where).suffix


class Results:
    """Saves a run's pictures. On several machines rank 0 does, and the others send it theirs.

    They send files as they will be written, so that encoding is shared as well, or PNG if they are to be joined.
    `saves` says whether each becomes a file of its own.
    """

    def __init__(self, output: Output, quiet: bool, joins: bool = False, saves: bool = True):
        self.pictures: dict[int, Any] = {}  # those to join, by number from 0
        self.records: dict[int, Parameters] = {}  # of all
        self.problems: list[str] = []
        self._output = output
        self._quiet = quiet
        self._joins, self._saves = joins, saves
        self._group = ranks.group()
        self._lines: dict[int, str] = {}
        self._paths: dict[int, Path] = {}
        self._numbers: set[int] = set()

    @property
    def paths(self) -> list[Path]:
        """The files so far, in the order of the pictures."""
        return [path for _, path in sorted(self._paths.items())]

    def add(self, number: int, picture: Any, made: Parameters) -> Path | None:
        """Save picture `number` (from 0) of this rank and return its path, if any; or send it to rank 0."""
        if self._group.rank == 0:
            self._keep(number, picture, made)
            return self._paths.get(number)
        from ..record import picture_files

        suffix, carry = (".png", ()) if self._joins else (self._output.suffix, self._output.carry)
        data = picture_files.encoded(picture, suffix, self._output.written(made), carry)
        self._group.send(number, {"record": made.to_text()}, data)
        return None

    def report(self, problem: Exception) -> None:
        """Say that pictures of this rank are missing; the others are not lost."""
        self._group.send(-1, {"problem": f"{self._group.name(self._group.rank)}: {problem}"}, b"")

    def gather(self) -> None:
        """Save what has arrived from other ranks."""
        for sent in self._group.arrived():
            self._take(sent)

    def wait(self) -> Iterator[None]:
        """Save what arrives until all other ranks are done, and yield now and then for a progress bar."""
        for _ in self._group.wait_for_others():
            self.gather()
            yield

    def list_files(self, note: str = "") -> None:
        """Print the files, in order; `note` replaces the seeds."""
        for number, path in sorted(self._paths.items()):
            print(path if self._quiet else f"{path}  ({note or self._lines[number]})")

    def complete(self, n: int) -> None:
        """Say on stdout that all `n` pictures of all machines are there, if there are several: `mlx.launch` does not.

        Raises `RankError` if other ranks could not paint theirs.
        """
        if self._group.size == 1 or self._group.rank:
            return
        self.require(n)
        print(f"complete: {n} picture{'s' * (n > 1)} of {self._group.size} machines")

    def require(self, n: int) -> None:
        """Raise `RankError` unless all `n` pictures are there."""
        if self.problems:
            raise RankError(" ".join(self.problems))
        if len(self._numbers) != n:
            raise RankError(f"{n - len(self._numbers)} of {n} pictures are missing.")

    def take_up(self, number: int, path: Path, made: Parameters) -> None:
        """Take picture `number` (from 0) from a file that is there already."""
        from ..pictures.reading import open_picture

        if self._joins:
            self.pictures[number] = open_picture(path)
        self.records[number] = made
        self._paths[number], self._lines[number] = path, f"seed {made.seed}"
        self._numbers.add(number)

    def save_apart(self) -> None:
        """Save the pictures that were to be joined as files of their own, so that they are not lost."""
        for number, picture in sorted(self.pictures.items()):
            if number not in self._paths:
                self._paths[number] = self._output.save(picture, number + 1, self.records[number])

    def add_joined(self, path: Path) -> None:
        """List a file that was made of all pictures."""
        if not self._saves:
            self._paths.clear()  # those that were taken up
        self._paths[max(self._paths, default=-1) + 1] = path

    def _take(self, sent: Sent) -> None:
        from PIL import Image

        from ..record.parameters import Parameters

        if problem := sent.said.get("problem"):
            self.problems.append(problem)
            return
        picture: Any = sent.data
        if self._joins:
            with Image.open(io.BytesIO(sent.data)) as image:
                picture = image.convert("RGB")
        self._keep(sent.number, picture, Parameters.from_text(sent.said["record"]))

    def _keep(self, number: int, picture: Any, made: Parameters) -> None:
        if self._joins:
            self.pictures[number] = picture
        self.records[number] = made
        if self._saves:
            self._paths[number] = self._output.save(picture, number + 1, made)
            self._lines[number] = f"seed {made.seed}"
        self._numbers.add(number)


def say(args: argparse.Namespace, text: str, last: bool) -> None:
    """Show progress in one line of a terminal, unless --quiet."""
    if not args.quiet and sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
