"""selftest: whether this machine computes what it should, and how fast."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..errors import InputError, StableDiffusionError
from .options import add_debug
from .running import Report


def add_to(commands: Any) -> None:
    """Add its parser."""
    command = commands.add_parser(
        "selftest",
        help="check that this machine computes correctly, and how fast",
        description="Compare every operation with its plain form on the CPU, and the embedded model's pictures with "
        "stored ones; then time a model of Stable Diffusion's shape. It prints a block to paste into an issue, and "
        "exits with 1 if anything disagrees. Nothing is downloaded or written.",
    )
    command.add_argument("--quick", action="store_true", help="in some seconds: smaller networks, no timing")
    command.add_argument("--full", action="store_true", help="larger networks, and all timings that fit into memory")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--quiet", action="store_true", help="print nothing but the result")
    command.set_defaults(run=selftest)
    add_debug(command)


def selftest(args: argparse.Namespace) -> None:
    """Run it; raises `StableDiffusionError` where something disagrees."""
    from ..selftest import shapes
    from ..selftest.report import MEANING
    from ..selftest.run import run

    if args.quick and args.full:
        raise InputError("--quick and --full do not go together.")
    progress = Report(args.quiet)
    found = run(shapes.QUICK if args.quick else shapes.FULL if args.full else shapes.USUAL, progress)
    progress.end()
    print(json.dumps(found.as_json(), indent=2) if args.json else found.block())
    sys.stdout.flush()
    if not found.agrees:
        raise StableDiffusionError(MEANING)
