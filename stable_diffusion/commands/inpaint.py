"""inpaint and outpaint: a part of a picture painted anew, and a picture gone on with beyond its edges."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .generation import Generation
from .options import add_embed_inputs, add_generation_options, number, whole
from .running import Output, Painter

if TYPE_CHECKING:
    from PIL import Image

    from ..pictures.inpainting import Inpainting
    from ..record.inputs import InputFile

# From noise, a part becomes what the text says; beyond an edge, the smeared colours say where the horizon lies.
STRENGTH, STRENGTH_BEYOND = 1.0, 0.8
MASK_BLUR, PADDING = 4.0, 32
SIDES = ("left", "right", "top", "bottom")


def add_to(kinds: Any) -> None:
    """Add the parsers of both."""
    inside = kinds.add_parser(
        "inpaint",
        help="repaint a part of a picture",
        description="Repaint the part of a picture that is white in a mask. All else stays as it is, but for a soft "
        "edge around the white; the result has the picture's size, whatever the size that is painted.",
        usage="%(prog)s PICTURE MASK PROMPT [options]",
    )
    _add_picture(inside)
    inside.add_argument(
        "mask",
        metavar="MASK",
        help="a picture that is white where to repaint, black or transparent elsewhere; stretched to PICTURE's size",
    )
    how = add_generation_options(inside)
    add_embed_inputs(inside)
    _add_how(how, "the white", STRENGTH)
    how.add_argument(
        "--only-masked",
        action="store_true",
        help="see and paint the surroundings of the white alone, at the model's full size: more detail in small parts",
    )
    how.add_argument(
        "--padding",
        type=whole(0, 4096),
        default=PADDING,
        metavar="N",
        help=f"with --only-masked, how many pixels around the white to see (default: {PADDING})",
    )
    how.add_argument("--invert", action="store_true", help="keep the white, and repaint the rest")
    inside.set_defaults(run=inpaint)

    beyond = kinds.add_parser(
        "outpaint",
        help="go on with a picture beyond its edges",
        description="Add pixels at a picture's sides, and paint there what goes on.",
        usage="%(prog)s PICTURE PROMPT --left N [options]",
    )
    _add_picture(beyond)
    how = add_generation_options(beyond)
    add_embed_inputs(beyond)
    _add_how(how, "what is added", STRENGTH_BEYOND)
    sides = beyond.add_argument_group("where to go on")
    for side in SIDES:
        sides.add_argument(
            f"--{side}", type=whole(0, 8192), default=0, metavar="N", help=f"pixels to add at the {side} (default: 0)"
        )
    beyond.set_defaults(run=outpaint, only_masked=False, padding=PADDING, invert=False)


def _add_picture(command: argparse.ArgumentParser) -> None:
    command.add_argument("picture", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file")


def _add_how(how: argparse._ArgumentGroup, part: str, strength: float) -> None:
    how.add_argument(
        "--strength",
        type=number(0, 1),
        default=strength,
        metavar="S",
        help=f"how far {part} leaves what it begins from; 1: all the way, from noise (default: {strength:g})",
    )
    how.add_argument(
        "--masked-content",
        choices=("original", "noise", "fill"),
        default="original",
        help=f"what {part} begins from at a strength below 1: what is there, noise, or the colours around "
        "(default: original)",
    )
    how.add_argument(
        "--mask-blur",
        type=number(0, 256),
        default=MASK_BLUR,
        metavar="N",
        help=f"how softly new and old meet, in pixels of the picture (default: {MASK_BLUR:g})",
    )


def inpaint(args: argparse.Namespace) -> list[Path]:
    """inpaint: repaint, save, and print where."""
    from ..pictures.inpainting import to_mask
    from ..record.inputs import InputFile, record

    source, mask_file = InputFile.read(args.picture), InputFile.read(args.mask)
    picture = source.open()
    mask = to_mask(mask_file.open(under="black"), picture.size, args.invert)
    return _paint(args, (picture, mask), [source, mask_file], record(source, mask_file))


def outpaint(args: argparse.Namespace) -> list[Path]:
    """outpaint: extend, save, and print where."""
    from ..pictures.inpainting import outpaint as extended
    from ..record import keys
    from ..record.inputs import InputFile, record

    source = InputFile.read(args.picture)
    added = {side: getattr(args, side) for side in SIDES}
    return _paint(args, extended(source.open(), **added), [source], record(source) | keys.of_outpainting(**added))


def _paint(
    args: argparse.Namespace,
    pictures: tuple[Image.Image, Image.Image],
    files: list[InputFile],
    recorded: dict[str, str],
) -> list[Path]:
    """Paint the white of (picture, mask), where an inverted mask has been turned already."""
    from ..pictures.inpainting import Inpainting
    from ..record import keys

    generation = Generation(args)
    generation.strength = args.strength
    output = Output(args.output, generation.several, files if args.embed_inputs else [])
    sd = generation.load()
    size = _size(args, pictures[0].size, sd.default_size)
    job = Inpainting(*pictures, *size, args.mask_blur, args.only_masked, args.padding)
    call = generation.call(
        input_image=job.picture,
        mask_image=job.mask,
        masked_content=args.masked_content,
        denoising_strength=args.strength,
    )
    used = keys.of_inpainting(args.masked_content, args.mask_blur, args.only_masked, args.padding, args.invert)
    parameters = generation.parameters(recorded | used)
    painter = Painter(sd, call | {"width": size[0], "height": size[1]}, output, args.preview, args.quiet)
    painter.finish = lambda painted: _finished(job, painted)
    return painter.paint(generation.seeds, args.batch_size, parameters, args.only)


def _size(args: argparse.Namespace, size: tuple[int, int], default_size: tuple[int, int]) -> tuple[int, int]:
    """The size to paint at: as asked for, or in the model's area; a whole picture in its own shape."""
    from ..pictures.inpainting import suitable_size

    if args.width and args.height:
        return args.width, args.height
    width, height = default_size if args.only_masked else suitable_size(size, default_size)
    if args.width:
        return args.width, max(round(args.width * height / width / 8), 1) * 8
    if args.height:
        return max(round(args.height * width / height / 8), 1) * 8, args.height
    return width, height


def _finished(job: Inpainting, painted: Any) -> Image.Image:
    from ..pictures import arrays

    return job.finish(arrays.to_picture(painted))
