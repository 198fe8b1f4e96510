"""inpaint and outpaint: repaint a part of a picture, and extend a picture beyond its edges."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..setting import BLEND, MASK, PRIVACY, SEVERAL, SIDES, WHITE
from .agreement import input_file
from .generation import paint, request_of
from .options import WHERE, add_embed_inputs, add_generation_options, add_setting, path

# Inside, noise becomes what the text says; beyond an edge, the smeared colours show where the horizon is.
STRENGTH, STRENGTH_BEYOND = 1.0, 0.8
BEYOND = ("left", "right", "top", "bottom")


def add_to(commands: Any) -> None:
    """Add both parsers."""
    inside = commands.add_parser(
        "inpaint",
        help="repaint a part of a picture",
        description="Repaint the part of a picture that is white in a mask. Everything else stays as it is, but for "
        "a soft edge around the white; the result has the picture's size, whatever size is painted.",
        usage="%(prog)s PICTURE MASK PROMPT [options]",
    )
    _add_picture(inside)
    inside.add_argument(
        "mask",
        type=path,
        metavar="MASK",
        help="a picture, white where to repaint, black or transparent elsewhere; stretched to PICTURE's size",
    )
    _add_options(inside, STRENGTH, MASK, WHITE)
    inside.set_defaults(run=inpaint)

    beyond = commands.add_parser(
        "outpaint",
        help="extend a picture beyond its edges",
        description="Add pixels at a picture's sides, and fill them in to match.",
        usage="%(prog)s PICTURE PROMPT --left N [options]",
    )
    _add_picture(beyond)
    _add_options(beyond, STRENGTH_BEYOND, MASK, SIDES)
    beyond.set_defaults(run=outpaint)


def _add_picture(command: argparse.ArgumentParser) -> None:
    command.add_argument("picture", type=path, metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file")


def _add_options(command: argparse.ArgumentParser, strength: float, *groups: str) -> None:
    added = add_generation_options(command, [SEVERAL, BLEND, PRIVACY, *groups])
    add_setting(added[MASK], "strength", strength)
    add_embed_inputs(added[WHERE])


def inpaint(args: argparse.Namespace) -> list[Path]:
    """inpaint: repaint, save, and print where."""
    from ..pictures.inpainting import to_mask

    source, mask_file = input_file(args.picture), input_file(args.mask)
    picture, mask = source.open(), mask_file.open(under="black")
    to_mask(mask, picture.size, args.invert)  # refuses one that leaves nothing to repaint, before anything is loaded
    return paint(args, request_of(args, picture=picture, mask=mask, picture_file=source, mask_file=mask_file))


def outpaint(args: argparse.Namespace) -> list[Path]:
    """outpaint: extend, save, and print where."""
    from ..pictures.inpainting import outpaint as extended

    source = input_file(args.picture)
    picture, mask = extended(source.open(), **{side: getattr(args, side) for side in BEYOND})
    return paint(args, request_of(args, picture=picture, mask=mask, picture_file=source))
