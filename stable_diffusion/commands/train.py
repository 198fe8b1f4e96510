"""train: make a model of one's own, from the data to a checkpoint's folder."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

from ..checks import MAX_SEED
from ..errors import InputError
from .options import add_debug, number, whole


def add_to(kinds: Any) -> None:
    """Add its parser."""
    command = kinds.add_parser(
        "train",
        help="train an autoencoder, or a text encoder and U-Net",
        description="Train a small model from scratch: first `train vae`, then `train diffusion` with the same "
        "--output, which becomes a checkpoint's folder that --model takes. The same command goes on where it stopped. "
        "docs/training.md tells more.",
    )
    command.add_argument(
        "part",
        choices=("vae", "diffusion", "decoder"),
        help="what to train; decoder: the VAE's, for latents that stay as they are",
    )
    command.add_argument(
        "--data",
        default="postcards",
        metavar="postcards|FOLDER",
        help="postcards, which are painted as they are needed (the default), or a folder of pictures with captions "
        "(.txt files beside them, or metadata.jsonl)",
    )
    command.add_argument("--output", required=True, metavar="DIR", help="where the model, its states and sheets go")
    command.add_argument("--minutes", type=number(0, math.inf), metavar="N", help="of work, all sessions together")
    command.add_argument("--steps", type=whole(1, 10**9), metavar="N", help="in the place of minutes")
    command.add_argument(
        "--size", type=whole(64, 1024, 64), default=128, metavar="N", help="of a picture (default: 128)"
    )
    command.add_argument("--batch", type=whole(1, 65536), metavar="N", help="examples of a step (default: 4; 16)")
    command.add_argument(
        "--accumulate", type=whole(1, 65536), default=1, metavar="N", help="parts of a batch, one after another"
    )
    command.add_argument("--learning-rate", type=number(0, 1), metavar="R", help="(default: 0.001; 0.0007)")
    command.add_argument("--seed", type=whole(0, MAX_SEED), default=0, metavar="N", help="(default: 0)")
    command.add_argument("--vae", metavar="DIR", help="a vae/ folder to train a diffusion with (default: DIR/vae)")
    command.add_argument("--quiet", action="store_true", help="print no progress")
    command.set_defaults(run=train)
    add_debug(command)


def train(args: argparse.Namespace) -> None:
    """Train until the time is over, and print the checkpoint's folder."""
    if (args.minutes is None) == (args.steps is None):
        raise InputError("Say how long to train: either --minutes N or --steps N.")
    if args.batch and args.batch % args.accumulate:
        raise InputError(f"--batch {args.batch} should be a multiple of --accumulate {args.accumulate}.")

    from ..training import runs
    from ..training.data import open_data
    from ..training.loop import Limit

    given = {"batch": args.batch, "learning_rate": args.learning_rate}
    recipe = dataclasses.replace(
        runs.RECIPES[args.part],
        accumulate=args.accumulate,
        seed=args.seed,
        **{name: value for name, value in given.items() if value},
    )
    data, output = open_data(args.data, args.size, args.seed), Path(args.output)
    report = (lambda progress: None) if args.quiet else _print
    limit = Limit(args.minutes, args.steps)
    if args.part == "vae":
        runs.train_vae(data, output, limit, recipe, report)
    elif args.part == "decoder":
        runs.train_decoder(data, output, limit, recipe, report)
    else:
        runs.train_diffusion(data, output, limit, recipe, report, Path(args.vae) if args.vae else None)
    print(output)


def _print(progress: Any) -> None:
    """One line: a training's log is read in files as often as in terminals."""
    figures = "  ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
    left = f"{progress.seconds_left / 60:.0f} min left" if math.isfinite(progress.seconds_left) else ""
    print(
        f"{progress.task} step {progress.step}  {figures}  rate {progress.rate:.2g}  "
        f"{progress.examples_per_second:.1f}/s  {progress.done:.0%}  {left}".rstrip(),
        file=sys.stderr,
        flush=True,
    )
