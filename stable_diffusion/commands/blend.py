"""blend: the frames from prompt to prompt and from seed to seed, as a strip, a film, or single files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ranks
from ..checks import MAX_SEED, Wholes
from ..errors import InputError
from ..pictures import FITS
from ..pictures.formats import WRITTEN_SUFFIXES
from ..request import GRID
from ..setting import PRIVACY
from ..text.blend import EASINGS
from .agreement import agreed, input_file
from .generation import asked_request, carried, load, load_refiner, warn_of_negative
from .options import WHERE, add_embed_inputs, add_generation_options, add_setting, number, path, reading, whole
from .output import Output, Results, means_folder
from .running import Painter

if TYPE_CHECKING:
    from PIL import Image

    from ..compare.plan import Cell
    from ..morph import Morph
    from ..record.parameters import Parameters
    from ..request import Request

DESCRIPTION = """\
Paint the frames from PROMPT to TO-PROMPT (interpolating their embeddings), and on to further ones, from seed to seed
(interpolating their noise), or both. A file that ends in .png or .jpg gets them side by side, .gif, .webp and .mp4 as
an animation (MP4 needs the package imageio-ffmpeg); a folder gets one file per frame. The same command continues what
was interrupted in a folder, or with --keep-frames.
"""


def add_to(commands: Any) -> None:
    """Add its parser."""
    blend = commands.add_parser(
        "blend",
        help="paint the frames between prompts or seeds",
        description=DESCRIPTION,
        usage="%(prog)s PROMPT [TO-PROMPT ...] [options]",
    )
    blend.set_defaults(run=paint_blend)
    groups = add_generation_options(blend, [PRIVACY])
    blend.add_argument("to_prompts", metavar="TO-PROMPT", nargs="*", help="what to paint at the next stations")
    way = blend.add_argument_group("the frames")
    way.add_argument("--to-seed", type=whole(0, MAX_SEED), metavar="N", help="the seed of the last of two stations")
    way.add_argument(
        "--seeds", type=reading(Wholes(0, MAX_SEED)), metavar="N,N,...", help="the seeds of all stations, in place of "
        "--seed",
    )  # fmt: skip
    way.add_argument(
        "--frames",
        type=whole(2, 10_000),
        default=8,
        metavar="N",
        help="number of frames from one station to the next, both included (default: 8)",
    )
    way.add_argument("--loop", action="store_true", help="return from the last station to the first")
    way.add_argument(
        "--easing",
        choices=tuple(EASINGS),
        default="linear",
        metavar="NAME",
        help="linear, or slower near stations: in (after), out (before), in-out (both) (default: linear)",
    )
    way.add_argument(
        "--share", type=number(0, 1), metavar="S", help="paint only the frame at S, from 0 (the first) to 1"
    )
    way.add_argument(
        "--fps", type=number(0.1, 50), default=8.0, metavar="N", help="frames per second of an animation (default: 8)"
    )
    way.add_argument("--keep-frames", action="store_true", help="also write the single frames of a strip or animation")
    start = blend.add_argument_group("a picture to begin from")
    start.add_argument(
        "--image", dest="picture", type=path, metavar="FILE", help="a picture from which every frame begins"
    )
    add_setting(start, "strength")
    start.add_argument(
        "--to-strength",
        type=number(0, 1),
        metavar="S",
        help="the strength of the last frame, or with --loop of the one half way: it runs from --strength to S, in "
        "whole steps",
    )
    start.add_argument(
        "--fit", choices=FITS, help="how a picture of another shape is fitted (default: such a picture is refused)"
    )
    add_embed_inputs(groups[WHERE])


def paint_blend(args: argparse.Namespace) -> list[Path]:
    """Paint all frames, save them or the file that they make, and print where."""
    source = None if args.picture is None else input_file(args.picture)
    request = asked_request(args, picture=None if source is None else source.open(), picture_file=source)
    warn_of_negative(request)
    morph = planned(args, request)
    cells = morph.order if args.share is None else list(morph.cells)
    output, joins = _output(args, request)
    sd = load(request, args.quiet)
    _check_shape(args, request, sd.default_size)
    painter = Painter(sd, load_refiner(request, args.quiet), cells[0].request, output, 0, args.quiet)
    results = painter.results = Results(output, args.quiet, joins, saves=args.keep_frames or not joins)
    _check(painter, cells)
    painter.agree({})
    there = set(_found(painter, cells, args))
    todo = [i for i in range(len(cells)) if i not in there]
    try:
        for i, picture, made in _pictures(painter, cells, todo):
            results.add(i, picture, made)
        if joins and painter.group.rank == 0:
            results.require(len(cells))
            results.add_joined(_joined(args, morph, output, results))
    except BaseException:
        results.save_apart()
        raise
    finally:
        results.gather()
        results.list_files(f"seed {morph.request.seed}")
    results.complete(len(cells))
    return results.paths


def planned(args: argparse.Namespace, request: Request) -> Morph:
    """The morph that is asked for; with --share only the one frame of it. Raises `InputError`."""
    from .. import morph

    seeds: list[int | None] = list(args.seeds or ())
    if seeds and (args.seed is not None or args.to_seed is not None):
        raise InputError("--seeds has the seeds of all stations: leave out --seed and --to-seed.")
    if args.to_seed is not None and len(args.to_prompts) > 1:
        raise InputError(f"--to-seed is the last of two stations, but there are {len(args.to_prompts) + 1}: give "
                         "--seeds N,N,... with a seed for each.")  # fmt: skip
    if len(seeds) < 2 and not args.to_prompts and args.to_seed is None and args.to_strength is None:
        raise InputError("A blend needs an end: a second prompt, --to-seed, --seeds, or --to-strength with --image.")
    if request.seed is None and not seeds:  # on all machines the same
        drawn = ranks.group().from_first("seed", lambda: secrets.randbelow(2**32))
        request = dataclasses.replace(request, seed=drawn)
    if args.to_seed is not None:
        seeds = [request.seed, args.to_seed]
    found = morph.plan(
        request, [request.prompt, *args.to_prompts], seeds, args.frames, args.loop, args.easing, args.to_strength,
        partial(agreed, args=args),
    )  # fmt: skip
    if args.share is None:
        return found
    only = morph.of_frame(found.request, found.walk.at(args.share))
    return dataclasses.replace(found, cells=(dataclasses.replace(found.cells[0], request=only),))


def _check_shape(args: argparse.Namespace, request: Request, default_size: tuple[int, int]) -> None:
    """Raise `InputError` for a picture of another shape than the frames, unless --fit says what becomes of it."""
    from ..pictures.inpainting import suitable_size

    if request.picture is None or args.fit is not None:
        return
    size = request.painted_size(default_size)
    fitting = suitable_size(request.picture.size, size)
    if any(abs(one - other) > GRID for one, other in zip(fitting, size, strict=True)):
        raise InputError(
            f"--image has {request.picture.width} x {request.picture.height} pixels, another shape than the frames' "
            f"{size[0]} x {size[1]}: give --width {fitting[0]} --height {fitting[1]}, or --fit crop, pad or stretch."
        )


def _check(painter: Painter, cells: list[Cell]) -> None:
    """Refuse early what cannot be painted: one frame of each pair of texts is begun."""
    pairs = {(cell.request.prompt, cell.request.blend_prompt): cell.request for cell in cells}
    for request in pairs.values():
        painter.take(request)
        painter.sd.generate_latents(**painter.call.arguments | request.seeds_of(0)).close()


def _output(args: argparse.Namespace, request: Request) -> tuple[Output, bool]:
    """Where single frames go, and whether they are joined in one file."""
    files = carried(request, args)
    if args.share is not None:
        return Output(args.output, False, files, args.no_record), False
    if means_folder(args.output):
        return Output(args.output, True, files, args.no_record), args.output is None

    from ..record import film

    film.check(args.output)
    name = Path(args.output)
    suffix = name.suffix if name.suffix.lower() in WRITTEN_SUFFIXES else ".png"
    return Output(str(name.with_suffix(suffix)), True, files, args.no_record), True


def _found(painter: Painter, cells: list[Cell], args: argparse.Namespace) -> list[int]:
    """The frames whose files are there already, by their records: an earlier run's, which was interrupted."""
    if args.output is None or args.share is not None or args.no_record:
        return []
    return painter.group.from_first("frames", lambda: list(_taken_up(painter, cells)))


def _taken_up(painter: Painter, cells: list[Cell]) -> Iterator[int]:
    from ..record import keys

    there = painter.output.records()
    for i, cell in enumerate(cells if there else ()):
        painter.take(cell.request)
        used = painter.sd.generate_latents(**painter.call.arguments | cell.request.seeds_of(0)).used
        made = cell.request.to_record(used, painter.call.size)
        for file, said in there.items():
            if painter.output.may_be(file, i + 1) and keys.same_picture(said, made):
                painter.results.take_up(i, file, said)
                yield i
                break


def _pictures(painter: Painter, cells: list[Cell], todo: list[int]) -> Iterator[tuple[int, Image.Image, Parameters]]:
    """The frames that are this machine's to paint; at the end it waits for the others'."""
    with contextlib.closing(painter.bar()) as bar:
        for place in painter.group.share(len(todo)):
            painter.take(cells[todo[place]].request)
            yield (todo[place], *painter.one(bar, len(todo)))
        painter.wait(bar)


def _joined(args: argparse.Namespace, morph: Morph, output: Output, results: Results) -> Path:
    """The strip or film of all frames; those that are passed again stand there again."""
    from ..pictures import arrays
    from ..record import film

    places = {cell.digest: i for i, cell in enumerate(morph.order)}
    pictures = [results.pictures[places[cell.digest]] for cell in morph.cells]
    made = results.records[0]
    strength = made.strength if morph.walk.strengths is None else morph.walk.strengths[0]
    whole = dataclasses.replace(made, strength=strength, extra=made.extra | morph.record(args.fps))
    if args.output is None:
        return output.save(arrays.grid(pictures, columns=len(pictures)), 1, whole)
    return film.save(pictures, args.output, args.fps, output.written(whole))
