"""invert and reconstruct: the noise that a picture comes from, and the picture again, or an edited one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import catalogue
from ..errors import InputError
from .generation import load
from .options import add_debug, number, path, whole
from .output import Output, cannot_write, say

SUFFIX = ".safetensors"


def add_to(commands: Any) -> None:
    """Add both parsers."""
    there = commands.add_parser(
        "invert",
        help="find the noise that a picture comes from",
        description="Run DDIM backwards (Song et al. 2021): from PICTURE, which CAPTION describes, to the noise that "
        "the model paints it from. `reconstruct` paints it again, or with another text a variation of it.",
        usage="%(prog)s PICTURE CAPTION --output FILE.safetensors [options]",
    )
    there.add_argument("picture", type=path, metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file")
    there.add_argument("caption", metavar="CAPTION", help="what it shows, as a prompt, in quotes")
    there.add_argument("--output", type=path, required=True, metavar="FILE", help="the noise: a .safetensors file")
    there.add_argument("--steps", type=whole(1, 1000), default=50, metavar="N", help="steps of DDIM (default: 50)")
    there.add_argument(
        "--corrections",
        type=whole(0, 10),
        default=0,
        metavar="N",
        help="solve each step by N more calls of the network, so that the picture comes back exactly (default: 0)",
    )
    there.add_argument("--width", type=whole(8, 8192), metavar="N", help="pixels (default: the model's)")
    there.add_argument("--height", type=whole(8, 8192), metavar="N", help="pixels (default: the model's)")
    there.add_argument("--model", default=catalogue.DEFAULT, metavar="NAME", help="as for txt2img")
    _add_common(there)
    there.set_defaults(run=invert)

    back = commands.add_parser(
        "reconstruct",
        help="paint a picture from its noise, as it was or with another text",
        description="Paint a picture from what `invert` found, with the same model and steps: without PROMPT the "
        "picture as it was, with PROMPT a variation whose composition stays.",
        usage="%(prog)s FILE.safetensors [PROMPT] [options]",
    )
    back.add_argument("noise", type=path, metavar="FILE", help="a file that `invert` wrote")
    back.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to paint instead of the caption")
    back.add_argument(
        "--cfg", type=number(0, 100), default=1.0, metavar="W", help="guidance; 1 is none, as in invert (default: 1)"
    )
    back.add_argument("--model", metavar="NAME", help="as for txt2img (default: the one of invert)")
    back.add_argument("--output", type=path, metavar="FILE-OR-FOLDER", help="as for txt2img")
    _add_common(back)
    back.set_defaults(run=reconstruct)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--vae", type=path, metavar="FILE", help="as for txt2img")
    command.add_argument("--quiet", action="store_true", help="print only the file names")
    add_debug(command)


def invert(args: argparse.Namespace) -> Path:
    """invert: find the noise, save it, and print where."""
    target = Path(args.output)
    if target.suffix.lower() != SUFFIX:
        raise InputError(f"--output {args.output!r} should end in {SUFFIX}.")
    if why := cannot_write(target.parent):
        raise InputError(f"{str(target.parent)!r} cannot be written to ({why}): choose another place with --output.")

    import numpy as np

    from ..model_io.noise_file import NoiseFile
    from ..pictures.reading import open_picture

    picture = open_picture(args.picture)
    sd = _loaded(args.model, args)
    latents: Any = None
    for step in sd.invert(picture, args.caption, args.steps, args.corrections, args.width, args.height):
        latents = np.array(step.latents)
        say(args, f"step {step.index} of {step.total}", step.index == step.total)
    NoiseFile(latents, args.caption, args.model, args.steps).save(target)
    print(target)
    return target


def reconstruct(args: argparse.Namespace) -> list[Path]:
    """reconstruct: paint from the noise, save, and print where."""
    from ..model_io.noise_file import NoiseFile

    noise = NoiseFile.load(args.noise)
    output = Output(args.output, several=False)
    sd = _loaded(args.model or noise.model, args)
    height, width = (side * sd.downscale for side in noise.latents.shape[1:3])
    pictures = sd.generate(
        args.prompt or noise.text,
        latents=noise.latents,
        sampler="ddim",
        num_steps=noise.steps,
        cfg_weight=args.cfg,
        width=width,
        height=height,
        seed=0,
    )
    paths = [output.save(each.image, number, each.parameters) for number, each in enumerate(pictures, 1)]
    print(*paths, sep="\n")
    return paths


def _loaded(model: str, args: argparse.Namespace) -> Any:
    from ..request import Request

    return load(Request(model=model, vae=args.vae), args.quiet)
