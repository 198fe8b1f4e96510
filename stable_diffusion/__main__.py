"""The command line: `python -m stable_diffusion txt2img "a red house on green hills at sunset"`.

Whatever is slow to import (MLX, the engine, tqdm) is imported once the arguments have been checked.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import models

from . import __version__, cli
from .errors import InputError, StableDiffusionError

DONE, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM

DESCRIPTION = """\
Stable Diffusion for MLX: turns a sentence into a picture, or a picture and a sentence into another picture.

examples:
  python -m stable_diffusion txt2img "a red house on green hills at sunset, with clouds"
  python -m stable_diffusion txt2img "a lighthouse by the sea" --n-images 4 --seed 7 --output lighthouse.png
  python -m stable_diffusion img2img photo.jpg "a windmill in the desert" --strength 0.6
  python -m stable_diffusion txt2img "a fox, watercolour" --model stable-diffusion-v1-5/stable-diffusion-v1-5
  python -m stable_diffusion models
  python -m stable_diffusion convert model.safetensors model-4-bit --bits 4
  python -m stable_diffusion info lighthouse-1.png

`COMMAND --help` tells what a command can do.
"""
EXIT_CODES = """\
exit codes: 0 done; 1 it could not be done (checkpoint, download, disk); 2 a wrong argument; 130 interrupted (Ctrl+C)
"""
SAMPLERS = "euler, euler_a, ddpm, ddim, pndm, heun, lms, dpmpp_2m, dpmpp_sde, dpmpp_2m_sde, unipc, lcm"


class Terminated(BaseException):
    """SIGTERM came: unwind as for Ctrl+C, so that nothing half done stays behind."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; argparse itself exits with 2 for arguments that it cannot read."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a prompt must not fail for the terminal's encoding
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        with _termination_raises(), _warnings_in_one_line(quiet=getattr(args, "quiet", False)):
            args.run(args)
            sys.stdout.flush()
        return DONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        return USAGE if isinstance(error, InputError) else FAILED


# --- Arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        "python -m stable_diffusion",
        None,
        DESCRIPTION,
        EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(debug=False)
    kinds = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    text = kinds.add_parser(
        "txt2img",
        help="paint a picture from a text",
        description="Paint a picture from a text.",
        usage="%(prog)s PROMPT [options]",
    )
    text.set_defaults(run=cli.generate, picture=None, strength=None)
    _add_generation_options(text)

    image = kinds.add_parser(
        "img2img",
        help="repaint a picture after a text",
        description="Repaint a picture after a text. The picture is cropped to the size that is painted.",
        usage="%(prog)s PICTURE PROMPT [options]",
    )
    image.add_argument("picture", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file to start from")
    image.set_defaults(run=cli.generate)
    _add_generation_options(image).add_argument(
        "--strength",
        type=_number(0, 1),
        metavar="S",
        help="how much may change: near 0 almost nothing, 1 everything (default: the model's, usually 0.7)",
    )

    listing = kinds.add_parser("models", help="list the models", description="List the models to choose from.")
    listing.set_defaults(run=cli.list_models)
    info = kinds.add_parser(
        "info",
        help="tell how a picture was made",
        description="Print the parameters that a picture carries: ours, or those of other programs in A1111's form.",
    )
    info.add_argument("picture", metavar="PICTURE", help="a PNG, JPEG or WebP file")
    info.add_argument("--json", action="store_true", help="print them as JSON")
    info.set_defaults(run=cli.show_info)
    conversion = kinds.add_parser(
        "convert",
        help="write a checkpoint in another form or precision",
        description="Write a checkpoint in another form or precision: as a single file in the original layout where "
        "DEST ends in .safetensors, else as a folder in diffusers' form, or with --mlx or --bits as a folder of this "
        "program's own form, which loads fastest and may be quantised. Pictures stay the same, but for the precision.",
    )
    conversion.add_argument(
        "source", metavar="SOURCE", help="a name that `models` lists, a folder, a single file, or an id of the hub"
    )
    conversion.add_argument("destination", metavar="DEST", help="a new folder, or a new file that ends in .safetensors")
    conversion.add_argument("--mlx", action="store_true", help="a folder in this program's own form")
    _add_bits(conversion)
    conversion.add_argument(
        "--float16",
        action="store_true",
        default=None,
        help="in half precision: half the size (default: as the source is)",
    )
    conversion.add_argument("--float32", action="store_false", dest="float16", help="in single precision")
    conversion.add_argument("--force", action="store_true", help="replace the checkpoint that is at DEST")
    conversion.add_argument("--quiet", action="store_true", help="print nothing but the name of what was written")
    conversion.set_defaults(run=cli.convert)
    for command in (listing, info, conversion):
        command.add_argument("--debug", action="store_true", help="show a traceback where something goes wrong")
    return parser


def _add_generation_options(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options of both ways to paint; returns the group that says how."""
    command.add_argument("prompt", metavar="PROMPT", help="what to paint, in quotes")

    what = command.add_argument_group("what to paint")
    what.add_argument("--negative", metavar="TEXT", help="what to keep out of the picture")
    what.add_argument(
        "--n-images", type=_whole(1, 10_000), default=1, metavar="N", help="how many pictures (default: 1)"
    )
    what.add_argument(
        "--seed",
        type=_whole(-1, cli.MAX_SEED),
        default=-1,
        metavar="N",
        help="the same seed and settings give the same picture; picture i gets seed + i (default: -1, a new one)",
    )
    for side in ("width", "height"):
        what.add_argument(
            f"--{side}",
            type=_whole(8, 8192, 8),
            metavar="N",
            help=f"{side} in pixels, a multiple of 8 (default: the model's)",
        )

    how = command.add_argument_group("how to paint it")
    how.add_argument(
        "--model",
        default=models.DEFAULT,
        metavar="NAME",
        help="a name that `models` lists, a folder, a file, or an id of the Hugging Face hub, which is downloaded "
        f"(default: {models.DEFAULT}, the small model that comes along; it knows drawn postcards only)",
    )
    how.add_argument(
        "--lora",
        action="append",
        type=_lora,
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
        "--steps", type=_whole(1, 1000), metavar="N", help="denoising steps (default: the model's, usually 20)"
    )
    how.add_argument(
        "--cfg",
        type=_number(0, math.inf),
        metavar="W",
        help="how closely to follow the prompt; 1 and below: unguided, but twice as fast (default: the model's)",
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
    where.add_argument(
        "--preview",
        type=_whole(0, 1000),
        default=0,
        metavar="N",
        help="every N steps write how far it is to NAME.preview.png beside the output, removed at the end; "
        "costs one decoding each time (default: 0, none)",
    )
    where.add_argument("--quiet", action="store_true", help="print nothing but the names of the files")

    machine = command.add_argument_group("how to use the machine")
    machine.add_argument(
        "--float16",
        action=argparse.BooleanOptionalAction,
        help="half precision: half the memory (default: on a GPU yes, on a CPU no)",
    )
    _add_bits(machine)
    machine.add_argument(
        "--batch-size",
        type=_whole(1, 256),
        default=1,
        metavar="N",
        help="pictures to paint side by side: faster on a GPU, more memory; the pictures are the same (default: 1)",
    )
    machine.add_argument("--debug", action="store_true", help="show a traceback where something goes wrong")
    return how


def _add_bits(where: argparse._ActionsContainer) -> None:
    where.add_argument(
        "--bits",
        type=int,
        choices=(8, 4),
        metavar="N",
        help="8 or 4: keep the large layers as whole numbers of so many bits: less memory, slightly (8) or clearly (4) "
        "other pictures (default: as the checkpoint has them)",
    )


def _lora(text: str) -> tuple[str, float]:
    """A name or file, with a strength behind its last colon, or without."""
    name, _, strength = text.rpartition(":")
    try:
        value = float(strength) if name else 1.0
    except ValueError:  # the colon is part of the name
        name, value = text, 1.0
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} should be like watercolour:0.8")
    return name or text, value


def _whole(low: int, high: int, multiple: int = 1) -> Callable[[str], int]:
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


def _number(low: float, high: float) -> Callable[[str], float]:
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


def _version() -> str:
    parts = [f"stable_diffusion {__version__}"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        parts.append(f"mlx {importlib.metadata.version('mlx')}")
    return ", ".join([*parts, f"Python {sys.version.split()[0]}"])


# --- What may go wrong


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _warnings_in_one_line(quiet: bool) -> Iterator[None]:
    def show(message: Warning | str, *where: Any) -> None:
        if not quiet:
            bars = sys.modules.get("tqdm")
            write = bars.tqdm.write if bars else print
            write(f"note: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, (StableDiffusionError, OSError)):
        text = str(error)
    elif isinstance(error, MemoryError) or "allocate" in str(error):
        text = f"Memory has run out; a smaller --width and --height or --batch-size needs less. ({error})"
    else:
        text = f"{type(error).__name__}: {error} (nobody foresaw this; --debug shows where it happened)"
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
