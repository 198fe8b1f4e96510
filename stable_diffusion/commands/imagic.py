"""imagic: change a picture by a text, and keep the rest of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .. import catalogue
from ..errors import InputError
from .generation import load
from .options import add_debug, number, path, whole
from .output import Output, cannot_write

SUFFIX = ".safetensors"
AMOUNT = 1.2
TEXT_STEPS, UNET_STEPS = 40, 60


def add_to(commands: Any) -> None:
    """Add its parser."""
    command = commands.add_parser(
        "imagic",
        help="change a picture by a text, and keep the rest of it",
        description="Tune the model on one picture until a text between what it shows and TEXT paints it (Kawar et al. "
        "2023), then paint that text: a minute or two for the embedded model on a CPU. What was tuned can be kept, and "
        "painted with other amounts in seconds.",
        usage="%(prog)s PICTURE TEXT [options]\n       %(prog)s FILE.safetensors [options]",
    )
    command.add_argument("picture", type=path, metavar="PICTURE", help="a picture, or a file of --keep")
    command.add_argument(
        "text", nargs="?", metavar="TEXT", help="what the picture is to show, all of it: 'a red house, with a rainbow'"
    )
    command.add_argument(
        "--amount",
        type=number(0, 2),
        nargs="+",
        default=[AMOUNT],
        metavar="A",
        help=f"0 is the picture, 1 the text, more insists on it; several give several pictures (default: {AMOUNT})",
    )
    command.add_argument("--keep", type=path, metavar="FILE", help="save what was tuned in this .safetensors file")
    command.add_argument("--output", type=path, metavar="FILE-OR-FOLDER", help="as for txt2img")
    how = command.add_argument_group("how")
    how.add_argument("--steps", type=whole(1, 1000), default=20, metavar="N", help="steps of painting (default: 20)")
    how.add_argument("--cfg", type=number(0, 100), default=4.0, metavar="W", help="guidance (default: 4)")
    how.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="of tuning and painting")
    how.add_argument(
        "--text-steps",
        type=whole(0, 10_000),
        default=TEXT_STEPS,
        metavar="N",
        help=f"steps that optimise the text (default: {TEXT_STEPS})",
    )
    how.add_argument(
        "--unet-steps",
        type=whole(0, 10_000),
        default=UNET_STEPS,
        metavar="N",
        help=f"steps that tune the U-Net (default: {UNET_STEPS})",
    )
    how.add_argument("--width", type=whole(8, 8192), metavar="N", help="pixels (default: the model's)")
    how.add_argument("--height", type=whole(8, 8192), metavar="N", help="pixels (default: the model's)")
    how.add_argument("--model", metavar="NAME", help=f"as for txt2img (default: {catalogue.DEFAULT})")
    how.add_argument("--vae", type=path, metavar="FILE", help="as for txt2img")
    command.add_argument("--quiet", action="store_true", help="print only the file names")
    add_debug(command)
    command.set_defaults(run=imagic)


def imagic(args: argparse.Namespace) -> list[Path]:
    """Tune or read what was tuned, paint, save, and print where."""
    kept = args.picture.lower().endswith(SUFFIX)
    if kept and (args.text or args.keep):
        raise InputError("A file of --keep has its text, and is kept already: leave out TEXT and --keep.")
    if not kept and not args.text:
        raise InputError("Say what the picture is to show: stable-diffusion imagic PICTURE TEXT.")
    if args.keep and (not args.keep.lower().endswith(SUFFIX) or cannot_write(Path(args.keep).parent)):
        raise InputError(f"--keep {args.keep!r} should end in {SUFFIX}, in a folder that can be written to.")
    output = Output(args.output, several=len(args.amount) > 1)

    from ..pictures.reading import open_picture
    from ..request import Request
    from ..training.imagic import Settings, Tuned, tune

    tuned = Tuned.load(args.picture) if kept else None
    picture = None if kept else open_picture(args.picture)
    model = args.model or (tuned.model if tuned else catalogue.DEFAULT)
    sd = load(Request(model=model, vae=args.vae, float16=False), args.quiet)
    if tuned is None:
        settings = Settings(text_steps=args.text_steps, unet_steps=args.unet_steps, seed=args.seed)
        tuned = tune(sd, picture, args.text, settings, _Bar(args.quiet), args.width, args.height)
        if args.keep:
            tuned.save(args.keep)
    paths = []
    for i, amount in enumerate(args.amount, 1):
        found = tuned.paint(sd, amount, args.steps, args.cfg, seed=args.seed)
        paths.append(output.save(found.image, i, found.parameters))
        print(paths[-1], flush=True)
    return paths


class _Bar:
    """Progress on a terminal."""

    def __init__(self, quiet: bool):
        self.shown = not quiet and sys.stderr.isatty()

    def __call__(self, what: str, done: float) -> None:
        if self.shown:
            print(f"\r\033[K{what} {done:4.0%}", end="\n" if done >= 1 else "", file=sys.stderr, flush=True)
