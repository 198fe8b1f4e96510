"""txt2img and img2img: pictures from a text, or from a picture and a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .generation import Generation
from .options import add_embed_inputs, add_generation_options, number
from .running import Output, Painter


def add_to(kinds: Any) -> None:
    """Add the parsers of both."""
    text = kinds.add_parser(
        "txt2img",
        help="paint a picture from a text",
        description="Paint a picture from a text.",
        usage="%(prog)s PROMPT [options]",
    )
    text.set_defaults(run=generate, picture=None, strength=None, embed_inputs=False)
    add_generation_options(text)

    image = kinds.add_parser(
        "img2img",
        help="repaint a picture after a text",
        description="Repaint a picture after a text. The picture is cropped to the size that is painted.",
        usage="%(prog)s PICTURE PROMPT [options]",
    )
    image.add_argument("picture", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file to start from")
    image.set_defaults(run=generate)
    how = add_generation_options(image)
    add_embed_inputs(image)
    how.add_argument(
        "--strength",
        type=number(0, 1),
        metavar="S",
        help="how much may change: near 0 almost nothing, 1 everything (default: the model's, usually 0.7)",
    )


def generate(args: argparse.Namespace) -> list[Path]:
    """txt2img and img2img: paint, save, and print where."""
    generation = Generation(args)

    from ..provenance import InputFile, record

    source = None if args.picture is None else InputFile.read(args.picture)
    call = generation.call()
    if source is not None:
        generation.strength = generation.settings.strength
        call |= {"input_image": source.open(), "denoising_strength": generation.strength}
    output = Output(args.output, args.n_images > 1, [source] if source and args.embed_inputs else [])
    sd = generation.load()
    parameters = generation.parameters(sd, record(source))
    painter = Painter(sd, call, output, args.preview, args.quiet)
    return painter.paint(generation.seeds, args.batch_size, parameters)
