"""again: regenerate a picture from its own metadata, and compare the two."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PictureError
from ..pictures.formats import WRITTEN_SUFFIXES
from .options import add_debug, path
from .output import means_folder

if TYPE_CHECKING:
    from PIL import Image

    from ..record.inputs import InputFile
    from ..record.parameters import Parameters

DESCRIPTION = """\
Regenerate a picture from its own metadata, and say whether every pixel is the same, as it is with the same model,
version and kind of machine. Its input files are looked for by name and sha256 inside the picture, next to it, in the
current folder and in outputs/. Pictures of AUTOMATIC1111's web UI work too, but their noise differs, so the result is
only similar.
"""


def add_to(commands: Any) -> None:
    """Add its parser."""
    again = commands.add_parser(
        "again",
        help="regenerate a picture from its own metadata",
        description=DESCRIPTION,
        usage="%(prog)s PICTURE [options]",
    )
    again.set_defaults(run=paint_again)
    again.add_argument(
        "source", type=path, metavar="PICTURE", help="a picture that carries its parameters (`info` shows them)"
    )
    again.add_argument(
        "--output", type=path, metavar="FILE-OR-FOLDER", help="as for the command that made it (default: outputs/)"
    )
    again.add_argument("--show", action="store_true", help="print the command, and generate nothing")
    again.add_argument("--picture", type=path, metavar="FILE", help="its input picture")
    again.add_argument("--mask", type=path, metavar="FILE", help="its mask")
    again.add_argument("--model", metavar="NAME", help="use this model instead of the recorded one")
    again.add_argument("--refiner", metavar="NAME", help="use this refiner instead of the recorded one")
    again.add_argument("--vae", type=path, metavar="FILE", help="its VAE, if that is not found by name")
    again.add_argument(
        "--lora",
        action="append",
        default=[],
        type=path,
        metavar="FILE",
        help="the file of a recorded LoRA, by its name; repeatable",
    )
    again.add_argument("--force", action="store_true", help="continue where a file differs or the record is incomplete")
    again.add_argument("--quiet", action="store_true", help="print only the file name")
    add_debug(again)


def paint_again(args: argparse.Namespace) -> list[Path]:
    """Regenerate the picture, print where it is, and say whether it is the same."""
    from ..record import picture_files
    from ..record.film import FILMS
    from ..record.inputs import InputFile
    from .replay import plan_of

    parameters = picture_files.read_parameters(args.source)
    if parameters is None:
        raise PictureError(f"{args.source!r} carries no parameters that say how it was made.")
    original = InputFile.read(args.source)  # the new picture may take its place
    plan = plan_of(args, parameters)
    for note in plan.notes:
        _say(f"note: {note}", args.quiet)
    if args.show:
        print(shlex.join(["python", "-m", "stable_diffusion", *plan.argv]))
        return []
    made = plan.arguments()
    made.output, made.quiet = args.output, args.quiet
    suffix = Path(args.source).suffix.lower()
    if args.output is None and plan.command == "blend" and suffix in FILMS:  # for which no new names are made up
        made.output = f"outputs/{Path(args.source).stem}-again{suffix}"
    if not means_folder(made.output) and Path(made.output).suffix.lower() != ".png":
        made.embed_inputs = False  # which only PNG can
    paths = made.run(made)
    _say(verdict(original, paths[-1], parameters), args.quiet)
    return paths


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print("".join(c if c.isprintable() else "\ufffd" for c in text), file=sys.stderr)


# --- Comparing


def verdict(original: InputFile, path: Path, parameters: Parameters) -> str:
    """Say whether the picture at `path` equals the original pixel for pixel, and what may be the reason if not."""
    import numpy as np

    from .. import backend
    from ..record import keys

    differing = largest = total = 0
    for one, other in _side_by_side(original, path):
        if one.size != other.size:
            return f"Not the same: {one.width}x{one.height} pixels, now {other.width}x{other.height}."
        difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max(axis=-1)
        differing += int((difference > 0).sum())
        largest = max(largest, int(difference.max()))
        total += difference.size
    if not differing:
        return "The same picture, pixel for pixel."
    version = parameters.extra.get(keys.VERSION)
    why = f" It was made by {version}, now by {backend.version()}." if version != backend.version() else ""
    return f"Not quite the same: {differing} of {total} pixels differ, by {largest} of 255 at most.{why}"


def _side_by_side(original: InputFile, path: Path) -> Iterator[tuple[Image.Image, Image.Image]]:
    """The frames of both, RGB; a new PNG is first saved in a lossy original's format."""
    import io

    from PIL import Image, ImageSequence

    from ..record import picture_files
    from ..record.inputs import InputFile

    def frames(file: InputFile) -> Iterator[Image.Image]:
        file.open()  # refuses what is too large or damaged
        with Image.open(io.BytesIO(file.data)) as picture:
            if getattr(picture, "n_frames", 1) == 1:
                yield file.open()
                return
            for frame in ImageSequence.Iterator(picture):
                yield frame.convert("RGB")

    with tempfile.TemporaryDirectory() as folder:
        suffix = Path(original.name).suffix.lower()
        if path.suffix.lower() == ".png" and suffix in WRITTEN_SUFFIXES and suffix != ".png":
            path = picture_files.save_picture(InputFile.read(path).open(), Path(folder, f"again{suffix}"))
        yield from zip(frames(original), frames(InputFile.read(path)), strict=False)
