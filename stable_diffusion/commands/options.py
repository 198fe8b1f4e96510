"""Options that several commands have, and the kinds of value that they take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from .. import catalogue

MAX_SEED = 2**64 - 1
SAMPLERS = "euler, euler_a, ddpm, ddim, pndm, heun, lms, dpmpp_2m, dpmpp_sde, dpmpp_2m_sde, unipc, lcm"


def add_generation_options(command: argparse.ArgumentParser, several: bool = True) -> argparse._ArgumentGroup:
    """The options of all ways to paint; returns the group that says how. `several`: those for several pictures too."""
    command.add_argument("prompt", metavar="PROMPT", help="what to paint, in quotes")
    command.set_defaults(only=None)

    what = command.add_argument_group("what to paint")
    what.add_argument("--negative", metavar="TEXT", help="what to keep out of the picture")
    what.add_argument(
        "--prompt-language",
        choices=("a1111", "plain"),
        default="a1111",
        metavar="NAME",
        help="a1111: (red:1.3), [red], [red:blue:0.5], [red|blue], AND and BREAK mean what they do there, at "
        "any length; plain: the prompts are read as they stand, up to 75 tokens (default: a1111)",
    )
    what.add_argument(
        "--seed",
        type=whole(-1, MAX_SEED),
        default=-1,
        metavar="N",
        help="the same seed and settings give the same picture; picture i gets seed + i (default: -1, a new one)",
    )
    for side in ("width", "height"):
        what.add_argument(
            f"--{side}",
            type=whole(8, 8192, 8),
            metavar="N",
            help=f"{side} in pixels, a multiple of 8 (default: the model's)",
        )

    how = command.add_argument_group("how to paint it")
    how.add_argument(
        "--model",
        default=catalogue.DEFAULT,
        metavar="NAME",
        help="a name that `models` lists, a folder, a file, or an id of the Hugging Face hub, which is downloaded "
        f"(default: {catalogue.DEFAULT}, the small model that comes along; it knows drawn postcards only)",
    )
    how.add_argument(
        "--lora",
        action="append",
        type=lora,
        default=[],
        metavar="NAME[:STRENGTH]",
        help="a LoRA (LoCon, LoHa, LoKr, DoRA): the name of a file in loras/ or in one of $STABLE_DIFFUSION_LORAS, "
        "or a file; may be given several times. <lora:NAME:STRENGTH> in PROMPT does the same (default strength: 1)",
    )
    how.add_argument(
        "--vae",
        metavar="FILE",
        help="a VAE in the place of the model's own: a file, a folder in diffusers' form, or an id of the hub",
    )
    how.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction", "sample"),
        help="what the model was trained to predict, where its file does not say or says it wrongly",
    )
    how.add_argument(
        "--clip-skip",
        type=whole(1, 12),
        metavar="N",
        help="read the prompt from the text encoder's N-th layer from the end: 2 is the last but one (default: the "
        "model's, 1 or for SDXL 2)",
    )
    how.add_argument(
        "--steps", type=whole(1, 1000), metavar="N", help="denoising steps (default: the model's, usually 20)"
    )
    how.add_argument(
        "--cfg",
        type=number(0, math.inf),
        metavar="W",
        help="how closely to follow the prompt; 1 and below: unguided, but twice as fast (default: the model's)",
    )
    how.add_argument(
        "--guidance-rescale",
        type=number(0, 1),
        default=0.0,
        metavar="S",
        help="how much to take back of the contrast that guidance adds, from 0 to 1; about 0.7 suits models that "
        "predict v (default: 0)",
    )
    how.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"{SAMPLERS}; most also with _karras or _exponential, as in dpmpp_2m_karras (default: the model's)",
    )

    where = command.add_argument_group("where it goes")
    where.add_argument(
        "--output",
        metavar="FILE-OR-FOLDER",
        help="a file (.png, .jpg, .webp), replaced if it exists, or with several pictures FILE-1, FILE-2, and so on; "
        "or a folder, where every picture gets a new name (default: outputs/ and today's date)",
    )
    where.add_argument("--quiet", action="store_true", help="print nothing but the names of the files")

    machine = command.add_argument_group("how to use the machine")
    machine.add_argument(
        "--float16",
        action=argparse.BooleanOptionalAction,
        help="half precision: half the memory (default: on a GPU yes, on a CPU no)",
    )
    machine.add_argument(
        "--low-memory",
        action="store_true",
        help="hold one network at a time in memory, where it can be read again from the model's folder, and paint one "
        "row of a batch after the other: slower, the same pictures but for rounding",
    )
    add_bits(machine)
    if several:
        _add_several(what, where, machine)
    else:
        command.set_defaults(n_images=1, batch_size=1, variation_seed=-1, variation_strength=0.0, preview=0)
    add_debug(machine)
    return how


def _add_several(
    what: argparse._ArgumentGroup, where: argparse._ArgumentGroup, machine: argparse._ArgumentGroup
) -> None:
    what.add_argument(
        "--n-images", type=whole(1, 10_000), default=1, metavar="N", help="how many pictures (default: 1)"
    )
    what.add_argument(
        "--variation-strength",
        type=number(0, 1),
        default=0.0,
        metavar="S",
        help="small variations of one picture: how far to turn the seed's noise towards another seed's, from 0 to 1; "
        "then all pictures have the same seed (default: 0)",
    )
    what.add_argument(
        "--variation-seed",
        type=whole(-1, MAX_SEED),
        default=-1,
        metavar="N",
        help="that other seed; picture i gets it + i (default: -1, a new one)",
    )
    where.add_argument(
        "--preview",
        type=whole(0, 1000),
        default=0,
        metavar="N",
        help="every N steps write how far it is to NAME.preview.png beside the output, removed at the end; "
        "costs one decoding each time (default: 0, none)",
    )
    machine.add_argument(
        "--batch-size",
        type=whole(1, 256),
        default=1,
        metavar="N",
        help="pictures to paint side by side: faster on a GPU, more memory; but for rounding the pictures are the same "
        "(default: 1)",
    )


def add_embed_inputs(where: argparse._ActionsContainer) -> None:
    """--embed-inputs, which commands have that start from pictures."""
    where.add_argument(
        "--embed-inputs",
        action="store_true",
        help="let the files that the picture is made from travel inside it (PNG only), as they are, so that `again` "
        "needs nothing else",
    )


def add_debug(where: argparse._ActionsContainer) -> None:
    """--debug, which every command has."""
    where.add_argument("--debug", action="store_true", help="show a traceback where something goes wrong")


def add_bits(where: argparse._ActionsContainer) -> None:
    """--bits."""
    where.add_argument(
        "--bits",
        type=int,
        choices=(8, 4),
        metavar="N",
        help="8 or 4: keep the large layers as whole numbers of so many bits: less memory, slightly (8) or clearly (4) "
        "other pictures (default: as the checkpoint has them)",
    )


def lora(text: str) -> tuple[str, float]:
    """A name or file, with a strength behind its last colon, or without."""
    name, _, strength = text.rpartition(":")
    try:
        value = float(strength) if name else 1.0
    except ValueError:  # the colon is part of the name
        name, value = text, 1.0
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} should be like watercolour:0.8")
    return name or text, value


def whole(low: int, high: int, multiple: int = 1) -> Callable[[str], int]:
    """The type of a whole number in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high or value % multiple:
            kind = f"a multiple of {multiple}" if multiple > 1 else "a whole number"
            raise argparse.ArgumentTypeError(f"{text!r} should be {kind} from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """The type of a finite number in a range."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            wanted = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r} should be a number {wanted}")
        return value

    return read
