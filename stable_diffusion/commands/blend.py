"""blend: the frames between two prompts or seeds, as a strip, a GIF, an MP4, or single files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import MAX_SEED
from ..errors import InputError
from ..pictures.formats import WRITTEN_SUFFIXES
from ..setting import PRIVACY
from .generation import load, load_refiner, request_of
from .options import add_generation_options, number, whole
from .output import Output, Results, means_folder
from .running import Painter

if TYPE_CHECKING:
    from ..record.parameters import Parameters
    from ..record.used import Used
    from ..text.blend import Frame

DESCRIPTION = """\
Paint the frames between PROMPT and TO-PROMPT (interpolating their embeddings), between --seed and --to-seed
(interpolating their noise), or both. A file that ends in .png, .jpg or .webp gets them side by side, .gif and .mp4 as
an animation (MP4 needs the package imageio-ffmpeg); a folder gets one file per frame.
"""


def add_to(commands: Any) -> None:
    """Add its parser."""
    blend = commands.add_parser(
        "blend",
        help="paint the frames between two prompts or seeds",
        description=DESCRIPTION,
        usage="%(prog)s PROMPT [TO-PROMPT] [options]",
    )
    blend.set_defaults(run=paint_blend)
    add_generation_options(blend, [PRIVACY])
    blend.add_argument("to_prompt", metavar="TO-PROMPT", nargs="?", help="what to paint in the last frame")
    way = blend.add_argument_group("the frames")
    way.add_argument("--to-seed", type=whole(0, MAX_SEED), metavar="N", help="the seed of the last frame")
    way.add_argument(
        "--frames",
        type=whole(2, 10_000),
        default=8,
        metavar="N",
        help="number of frames, both ends included (default: 8)",
    )
    way.add_argument(
        "--share", type=number(0, 1), metavar="S", help="paint only the frame at S, from 0 (the first) to 1"
    )
    way.add_argument(
        "--fps", type=number(0.1, 50), default=8.0, metavar="N", help="frames per second of an animation (default: 8)"
    )
    way.add_argument("--keep-frames", action="store_true", help="also write the single frames of a strip or animation")


def paint_blend(args: argparse.Namespace) -> list[Path]:
    """Paint all frames, save them or the file that they make, and print where."""
    if args.to_prompt is None and args.to_seed is None:
        raise InputError("A blend needs an end: a second prompt, or --to-seed.")
    request = request_of(args).of_picture(0)
    seed = request.seeds_of(0)["seed"]

    from ..record import keys
    from ..text.blend import Frame, frames

    last = request.prompt
    if args.to_prompt is not None:
        of_end = argparse.Namespace(**{**vars(args), "prompt": args.to_prompt, "seed": seed, "quiet": True})
        last = request_of(of_end).of_picture(0).prompt
    ends = (request.prompt, last)
    if args.share is None:
        way = list(frames(*ends, args.frames, seed, args.to_seed))
    else:
        way = [Frame(0, 1, args.share, *ends, seed, args.to_seed)]
    output, joins = _output(args)
    sd = load(request, args.quiet)
    painter = Painter(sd, load_refiner(request, args.quiet), request, output, 0, args.quiet)
    results = painter.results = Results(output, args.quiet, joins, saves=args.keep_frames or not joins)
    middle = way[len(way) // 2].arguments
    sd.generate_latents(**painter.call.arguments | middle)  # refuses early what cannot be blended
    painter.agree(middle)
    try:
        for frame, picture, used in _pictures(painter, way):
            frame_request = dataclasses.replace(request, prompt=frame.first_text)
            made = frame_request.to_record(used, picture.size)
            made.extra |= keys.of_frame(frame)
            results.add(frame.index, picture, made)
        if joins and painter.group.rank == 0:
            results.require(len(way))
            pictures = [picture for _, picture in sorted(results.pictures.items())]
            whole = request.to_record(used, pictures[0].size)
            whole.extra |= keys.of_blend(way[0], args.fps)
            results.add_joined(_joined(args, output, pictures, whole))
    finally:
        results.gather()
        results.list_files(f"seed {seed}")
    results.complete(len(way))
    return results.paths


def _output(args: argparse.Namespace) -> tuple[Output, bool]:
    """Where single frames go, and whether they are joined in one file."""
    if args.share is not None:
        return Output(args.output, several=False, no_record=args.no_record), False
    if means_folder(args.output):
        return Output(args.output, several=True, no_record=args.no_record), args.output is None

    from ..record import film

    film.check(args.output)
    path = Path(args.output)
    suffix = path.suffix if path.suffix.lower() in WRITTEN_SUFFIXES else ".png"
    return Output(str(path.with_suffix(suffix)), several=True, no_record=args.no_record), True


def _pictures(painter: Painter, way: Sequence[Frame]) -> Iterator[tuple[Frame, Any, Used]]:
    """The frames that are this machine's to paint; at the end it waits for the others'."""
    from ..pictures import arrays

    with contextlib.closing(painter.bar()) as bar:
        for place in painter.group.share(len(way)):
            pictures, used = painter.run(way[place].arguments, bar, len(way))
            yield way[place], arrays.to_picture(pictures[0]), used
        painter.wait(bar)


def _joined(args: argparse.Namespace, output: Output, pictures: Sequence[Any], parameters: Parameters) -> Path:
    from ..pictures import arrays
    from ..record import film

    if args.output is None:
        return output.save(arrays.grid(pictures, columns=len(pictures)), 1, parameters)
    return film.save(pictures, args.output, args.fps, output.written(parameters))
