"""txt2img and img2img: pictures from a text, or from a picture and a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..setting import BLEND, HIRES, LARGER, PICTURE, PRIVACY, SEVERAL, TILES
from .agreement import input_file
from .generation import paint, request_of
from .options import WHERE, add_embed_inputs, add_generation_options, path


def add_to(commands: Any) -> None:
    """Add both parsers."""
    text = commands.add_parser(
        "txt2img",
        help="paint a picture from a text",
        description="Paint a picture from a text.",
        usage="%(prog)s PROMPT [options]",
    )
    text.set_defaults(run=generate, picture=None, embed_inputs=False)
    add_generation_options(text, [SEVERAL, BLEND, HIRES, TILES, PRIVACY])

    image = commands.add_parser(
        "img2img",
        help="repaint a picture to match a text",
        description="Repaint a picture to match a text.",
        usage="%(prog)s PICTURE PROMPT [options]",
    )
    image.add_argument(
        "picture", type=path, metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file to start from"
    )
    image.set_defaults(run=generate)
    add_embed_inputs(add_generation_options(image, [SEVERAL, BLEND, PICTURE, LARGER, TILES, PRIVACY])[WHERE])


def generate(args: argparse.Namespace) -> list[Path]:
    """txt2img and img2img: paint, save, and print where."""
    source = None if args.picture is None else input_file(args.picture)
    return paint(args, request_of(args, picture=None if source is None else source.open(), picture_file=source))
