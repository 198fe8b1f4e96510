"""The command line: `stable-diffusion txt2img "a red house on green hills at sunset"`, or `python -m stable_diffusion`.

Whatever is slow to import (MLX, the engine, tqdm) is imported once the arguments have been checked.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __version__, ranks
from .commands import (
    again,
    blend,
    checkpoints,
    edit,
    grid,
    imagic,
    inpaint,
    invert,
    page,
    paint,
    pictures,
    selftest,
    serve,
    train,
    upscale,
    words,
)  # fmt: skip
from .errors import InputError, StableDiffusionError

SHARING = ("txt2img", "img2img", "inpaint", "outpaint", "blend")  # their work with other machines, by mlx.launch
DONE, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM

# As it was started; shown in the help.
PROGRAM = "stable-diffusion" if Path(sys.argv[0]).stem == "stable-diffusion" else "python -m stable_diffusion"
DESCRIPTION = """\
Stable Diffusion for MLX: turns a sentence into a picture, or a picture and a sentence into another picture.

examples:
  {program} txt2img "a red house on green hills at sunset, with clouds"
  {program} txt2img "a lighthouse by the sea" --n-images 4 --seed 7 --output lighthouse.png
  {program} img2img photo.jpg "a windmill in the desert" --strength 0.6
  {program} inpaint photo.jpg mask.png "a red balloon"
  {program} outpaint photo.jpg "green hills at sunset" --left 64 --right 64
  {program} txt2img "a fox, watercolour" --model stable-diffusion-v1-5/stable-diffusion-v1-5
  {program} blend "a red house by day" "a sailboat at night" --frames 8 --output blend.gif
  {program} grid "a red house by day" --x "steps=5-20 (+5)" --y "sampler=Euler,DPM++ 2M Karras" --output grid
  {program} upscale lighthouse.png --by 4
  {program} models
  {program} convert model.safetensors model-4-bit --bits 4
  {program} info lighthouse-1.png
  {program} again lighthouse-1.png
  {program} page
  {program} serve
  {program} selftest

`COMMAND --help` lists a command's options.
"""
EXIT_CODES = """\
exit codes: 0 success; 1 failure (checkpoint, download, disk); 2 wrong arguments; 130 interrupted (Ctrl+C)
"""


class Terminated(BaseException):
    """SIGTERM: unwind as for Ctrl+C, so that nothing half-done is left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; argparse itself exits with 2 on bad arguments."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a prompt must not fail for the terminal's encoding
    parser = build_parser()
    args, others = parser.parse_known_args(argv)
    if others and not args.takes_others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    args.others = others
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        quiet = getattr(args, "quiet", False)
        with _termination_raises(), _warnings_in_one_line(quiet), ranks.joined(args.command, args.command in SHARING):
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
        label = ranks.group().label
        if not (label and isinstance(error, ranks.RankError)):  # which rank 0 says
            print(f"error: {label}{_in_one_line(error)}", file=sys.stderr)
        return USAGE if isinstance(error, InputError) else FAILED


# --- Arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        PROGRAM,
        None,
        DESCRIPTION.format(program=PROGRAM),
        EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(debug=False, takes_others=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    for group in (
        paint, inpaint, imagic, invert, edit, blend, grid, again, upscale, checkpoints, words, pictures, train, page,
        serve, selftest,
    ):  # fmt: skip
        group.add_to(commands)
    return parser


def _version() -> str:
    parts = [f"stable_diffusion {__version__}"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        parts.append(f"mlx {importlib.metadata.version('mlx')}")
    return ", ".join([*parts, f"Python {sys.version.split()[0]}"])


# --- Errors


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
            write(f"note: {ranks.group().label}{' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, (StableDiffusionError, OSError)):
        text = str(error)
    elif isinstance(error, MemoryError) or "allocate" in str(error):
        text = f"Out of memory; a smaller --width and --height or --batch-size needs less. ({error})"
    else:
        text = f"{type(error).__name__}: {error} (unexpected; --debug shows where it happened)"
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
