"""train: make a model of your own, from the data to a checkpoint folder. One subcommand per row of training/runs.py."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..training.runs import RUNS, Option, Run
from .options import add_debug, number, path, reading, whole


def add_to(commands: Any) -> None:
    """Add its parser, with a subparser for each run."""
    command = commands.add_parser(
        "train",
        help="train a small model, or teach a model something",
        description="Train a small model from scratch: first `train vae`, then `train diffusion` with the same "
        "--output, which becomes a checkpoint folder that --model takes. Or teach a model a subject or a style from "
        "pictures: `train lora`, `train dreambooth`, `train inversion`. Repeat a command to resume it. See "
        "docs/training.md and docs/teaching.md.",
    )
    runs = command.add_subparsers(dest="training_run", metavar="RUN", title="runs", required=True)
    for run in RUNS.values():
        _add_run(runs, run)


def _add_run(runs: Any, run: Run) -> None:
    needs = "".join(f" Needs what `train {name}` wrote to the same --output." for name in run.needs)
    command = runs.add_parser(
        run.name,
        help=run.help,
        description=f"Train {run.help}.{needs} Repeat the command to resume it.",
    )
    command.add_argument(
        "--output",
        type=path,
        required=True,
        metavar="FILE" if run.teaches else "DIR",
        help="the .safetensors file to write; its run's state and sheets are kept in FILE.training"
        if run.teaches
        else "folder for the model, its states and sheets",
    )
    command.add_argument("--minutes", type=number(0, math.inf), metavar="N", help="minutes to train, over all sessions")
    command.add_argument("--steps", type=whole(1, 10**9), metavar="N", help="steps to train, instead of --minutes")
    for option in run.options:
        command.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=reading(option.check),
            metavar=option.metavar,
            help=option.help + _default_in_words(run, option),
        )
    command.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="a YAML file with these options by name, such as `learning_rate: 0.001`; options given here win",
    )
    command.add_argument("--quiet", action="store_true", help="print no progress")
    command.set_defaults(run=functools.partial(train, run))
    add_debug(command)


def train(run: Run, args: argparse.Namespace) -> None:
    """Train until the limit is reached, then print the output's path."""
    if (args.minutes is None) == (args.steps is None):
        raise InputError("Say how long to train: either --minutes N or --steps N.")
    from ..training.loop import Limit

    output = Path(args.output)
    values = {} if args.config is None else run.configured(Path(args.config))
    values |= {option.name: value for option in run.options if (value := getattr(args, option.name)) is not None}
    quiet: dict[str, Any] = {"report": lambda progress: None, "progress": lambda message, fraction: None}
    said = quiet if args.quiet else {"report": _print, "progress": _say}
    run.start(output, Limit(args.minutes, args.steps), **said, **values)
    print(output)


def _default_in_words(run: Run, option: Option) -> str:
    if option.default is None:
        return ""
    words = _in_words(option.default)
    if option.name in run.narrow:
        words += f"; {_in_words(run.narrow[option.name])} if as small as postcards-tiny"
    return f" (default: {words})"


def _in_words(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _say(message: str, fraction: float | None) -> None:
    """One line per message: what is done ahead of the first step."""
    print(message, file=sys.stderr, flush=True)


def _print(progress: Any) -> None:
    """One line per report: the logs of training runs are read in files as often as in terminals."""
    figures = "  ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
    left = f"{progress.seconds_left / 60:.0f} min left" if math.isfinite(progress.seconds_left) else ""
    print(
        f"{progress.task} step {progress.step}  {figures}  rate {progress.rate:.2g}  "
        f"{progress.examples_per_second:.1f}/s  {progress.done:.0%}  {left}".rstrip(),
        file=sys.stderr,
        flush=True,
    )
