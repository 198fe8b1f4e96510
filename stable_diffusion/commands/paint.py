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
    text.set_defaults(run=generate, picture=None, strength=None, embed_inputs=False, fit="crop")
    add_generation_options(text)

    image = kinds.add_parser(
        "img2img",
        help="repaint a picture after a text",
        description="Repaint a picture after a text.",
        usage="%(prog)s PICTURE PROMPT [options]",
    )
    image.add_argument("picture", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file to start from")
    image.set_defaults(run=generate)
    how = add_generation_options(image)
    add_embed_inputs(image)
    how.add_argument(
        "--fit",
        choices=("crop", "pad", "stretch"),
        default="crop",
        help="how PICTURE comes to the size that is painted: cut to its shape, put on white, or distorted "
        "(default: crop)",
    )
    how.add_argument(
        "--strength",
        type=number(0, 1),
        metavar="S",
        help="how much may change: near 0 almost nothing, 1 everything (default: the model's, usually 0.7)",
    )


def generate(args: argparse.Namespace) -> list[Path]:
    """txt2img and img2img: paint, save, and print where."""
    generation = Generation(args)

    from ..pictures.reading import fit
    from ..record import keys
    from ..record.inputs import InputFile, record

    source = None if args.picture is None else InputFile.read(args.picture)
    picture = None if source is None else source.open()
    if picture is not None:
        generation.strength = generation.settings.strength
    output = Output(args.output, generation.several, [source] if source and args.embed_inputs else [])
    sd = generation.load()
    call = generation.call()
    if picture is not None:
        width, height = args.width or sd.default_size[0], args.height or sd.default_size[1]
        call |= {"input_image": fit(picture, width, height, args.fit), "denoising_strength": generation.strength}
    said = record(source) | keys.of_fit(args.fit)
    painter = Painter(sd, call, output, args.preview, args.quiet)
    return painter.paint(generation.seeds, args.batch_size, generation.parameters(said), args.only)
