"""edit: paint a picture by one text, and the same picture by another."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

from .. import catalogue
from ..errors import InputError
from .generation import load
from .invert import SUFFIX
from .options import add_debug, number, path, whole
from .output import Output, say

CROSS, LAYOUT = 0.8, 0.4


def add_to(commands: Any) -> None:
    """Add its parser."""
    command = commands.add_parser(
        "edit",
        help="paint a picture by one text, and the same picture by another",
        description="Paint a picture by the text BEFORE, and again by AFTER, whose attention follows the first "
        "picture's, so that its composition stays (prompt-to-prompt, Hertz et al. 2022). BEFORE may be a file of "
        "`invert`: then a picture of your own is edited.",
        usage="%(prog)s BEFORE AFTER [options]",
    )
    command.add_argument("before", metavar="BEFORE", help="what the first picture shows, or a file of `invert`")
    command.add_argument("after", metavar="AFTER", help="the same text with some words changed, added or left out")
    command.add_argument(
        "--cross",
        type=number(0, 1),
        default=CROSS,
        metavar="SHARE",
        help=f"of the steps in which words act where they did: less for another shape (default: {CROSS})",
    )
    command.add_argument(
        "--layout",
        type=number(0, 1),
        default=LAYOUT,
        metavar="SHARE",
        help=f"of the steps in which places belong together as they did (default: {LAYOUT})",
    )
    command.add_argument(
        "--weigh",
        type=_weight,
        action="append",
        default=[],
        metavar="WORD=N",
        help="weigh the attention of a word of AFTER: 2 doubles it, 0 takes it away",
    )
    command.add_argument(
        "--output", type=path, metavar="FILE-OR-FOLDER", help="as for txt2img; both pictures are saved"
    )
    how = command.add_argument_group("how")
    how.add_argument("--negative", metavar="TEXT", help="as for txt2img")
    how.add_argument("--seed", type=whole(0, 2**64 - 1), metavar="N", help="as for txt2img")
    how.add_argument("--steps", type=whole(1, 1000), metavar="N", help="as for txt2img; with a file, those of `invert`")
    how.add_argument("--cfg", type=number(0, 100), metavar="W", help="as for txt2img")
    how.add_argument("--sampler", metavar="NAME", help="as for txt2img; with a file it is ddim")
    how.add_argument("--width", type=whole(8, 8192), metavar="N", help="as for txt2img")
    how.add_argument("--height", type=whole(8, 8192), metavar="N", help="as for txt2img")
    how.add_argument("--model", metavar="NAME", help="as for txt2img")
    how.add_argument("--vae", type=path, metavar="FILE", help="as for txt2img")
    command.add_argument("--quiet", action="store_true", help="print only the file names")
    add_debug(command)
    command.set_defaults(run=edit)


def edit(args: argparse.Namespace) -> list[Path]:
    """Paint both, save them, and print where."""
    output = Output(args.output, several=True)
    noise: Any = None
    if args.before.lower().endswith(SUFFIX):
        given = [name for name in ("seed", "steps", "sampler", "width", "height") if getattr(args, name) is not None]
        if given:
            raise InputError(f"Leave out {', '.join(f'--{name}' for name in given)}: a file of `invert` says this.")

        from ..model_io.noise_file import NoiseFile

        noise = NoiseFile.load(args.before)
    model = args.model or (noise.model if noise else catalogue.DEFAULT)

    from ..pictures.arrays import to_picture
    from ..prompt_edit import PromptEdit
    from ..record import keys
    from ..record.parameters import Parameters
    from ..request import Request
    from ..sampler import a1111_name, sampler_by_name

    how = PromptEdit(args.cross, args.layout, dict(args.weigh))
    sd = load(Request(model=model, vae=args.vae), args.quiet)
    usual = catalogue.find(model).defaults
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    settings = {"seed": seed, "cfg_weight": usual.cfg if args.cfg is None else args.cfg, "negative_text": args.negative}
    if noise is None:
        settings |= {"num_steps": args.steps or usual.steps, "sampler": args.sampler or usual.sampler}
        settings |= {"width": args.width, "height": args.height}
    else:
        height, width = (side * sd.downscale for side in noise.latents.shape[1:3])
        settings |= {"num_steps": noise.steps, "sampler": "ddim", "latents": noise.latents}
        settings |= {"width": width, "height": height}
    texts = (noise.text if noise else args.before, args.after)
    steps: Any = ()
    for steps in sd.edit(*texts, how, **settings):
        say(args, f"step {steps[0].index} of {steps[0].total}", steps[0].index == steps[0].total)
    name, schedule = a1111_name(sampler_by_name(settings["sampler"]))
    paths = []
    for i, (text, step) in enumerate(zip(texts, steps, strict=True), 1):
        picture = to_picture(sd.decode(step.latents)[0])
        said: dict[str, str] = {} if i == 1 else {
            keys.EDITED: texts[0], "Cross-attention": f"{args.cross:g}", "Self-attention": f"{args.layout:g}"
        }  # fmt: skip
        parameters = Parameters(
            text, args.negative or "", settings["num_steps"], name, schedule, settings["cfg_weight"], seed,
            width=picture.width, height=picture.height, model=model, extra=said,
        )  # fmt: skip
        paths.append(output.save(picture, i, parameters))
        print(paths[-1], flush=True)
    return paths


def _weight(text: str) -> tuple[str, float]:
    word, mark, factor = text.rpartition("=")
    if not mark or not word.strip():
        raise argparse.ArgumentTypeError(f"{text!r} should be a word and a number, such as rainbow=2")
    return word.strip(), number(-10, 10)(factor)
