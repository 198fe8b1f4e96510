"""Options of the command line: those of a generation come from the settings of `Request`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from typing import Any

from .. import catalogue
from ..checks import Check, Choice, FilePath, Flag, Number, Whole
from ..errors import InputError
from ..record.keys import plain
from ..request import DEFAULTS, SETTINGS, option_of
from ..setting import HOW, MACHINE, SEVERAL, WHAT

WHERE = "output"


def add_generation_options(
    command: argparse.ArgumentParser, more: Collection[str] = ()
) -> dict[str, argparse._ArgumentGroup]:
    """Add the options that all painting commands share, and `more` groups of settings; return the help's groups."""
    command.add_argument("prompt", metavar="PROMPT", help="what to paint, in quotes")
    groups = {title: command.add_argument_group(title) for title in (WHAT, HOW, *more, WHERE, MACHINE)}
    for name, each in SETTINGS.items():
        if each.group in groups:
            add_setting(groups[each.group], name)
        if name == "negative":
            _add_style(groups[WHAT])
        if name == "prompt_language":  # --model, --sampler and --lora follow the prompt's language
            _add_model(groups[HOW])
    _add_where(groups[WHERE], several=SEVERAL in more)
    add_debug(groups[MACHINE])
    command.set_defaults(only=None)
    return groups


def add_setting(where: argparse._ActionsContainer, name: str, default: Any = None) -> None:
    """Add the option of one setting; `default` overrides the field's. A default described in words is None."""
    each = SETTINGS[name]
    usual = "" if default is not None else each.usual
    if default is None and not usual:
        default = DEFAULTS[name]
    shown = default != "" and not isinstance(default, bool)
    text = f"{each.help} (default: {usual or _in_words(default)})" if shown else each.help
    option: dict[str, Any] = {"help": text.replace("%", "%%"), "default": default}
    if isinstance(each.check, Flag):
        option["action"] = "store_true" if default is False else argparse.BooleanOptionalAction
    elif isinstance(each.check, Choice):
        option |= {"choices": each.check.options, "metavar": each.metavar, "type": type(each.check.options[0])}
    else:
        option |= {"type": reading(each.check), "metavar": each.metavar}
    where.add_argument(option_of(name), **option)


def _in_words(default: Any) -> str:
    return default if isinstance(default, str) else plain(default)


def reading(check: Check) -> Callable[[str], Any]:
    """A check as argparse's `type`."""
    return reading_of(check.read)


def reading_of(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """A function that raises `InputError` as argparse's `type`."""

    def read(text: str) -> Any:
        try:
            return function(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _add_style(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--style",
        action="append",
        default=[],
        dest="styles",
        metavar="NAME",
        help="a style of styles.csv, which is added to both prompts; repeatable (`styles` lists them)",
    )


def _add_model(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--model",
        default=catalogue.DEFAULT,
        metavar="NAME",
        help="a name that `models` lists, a folder, a file, or an id of the Hugging Face hub, which is downloaded "
        f"(default: {catalogue.DEFAULT}, the embedded model, which only paints drawn postcards)",
    )
    how.add_argument(
        "--sampler",
        metavar="NAME",
        help="a name that `samplers` lists, such as euler or dpmpp_2m_karras (default: the model's)",
    )
    how.add_argument(
        "--schedule",
        metavar="NAME",
        help="how the noise levels are spread over the steps, a name that `samplers` lists, such as karras; automatic "
        "is what A1111 takes for the sampler (default: what the sampler's name or the model says)",
    )
    how.add_argument(
        "--lora",
        action="append",
        type=lora,
        default=[],
        dest="loras",
        metavar="NAME[:STRENGTH]",
        help="a LoRA (LoCon, LoHa, LoKr, DoRA): the name of a file in loras/ or in one of $STABLE_DIFFUSION_LORAS, "
        "with its folder if two share it (people/face), or a file; repeatable. "
        "<lora:NAME:STRENGTH> in PROMPT does the same (default strength: 1)",
    )


def _add_where(where: argparse._ArgumentGroup, several: bool) -> None:
    where.add_argument(
        "--output",
        type=path,
        metavar="FILE-OR-FOLDER",
        help="a file (.png, .jpg, .webp), overwritten if it exists, or with several pictures FILE-1, FILE-2, and so "
        "on; or a folder, where every picture gets a new name (default: outputs/ and today's date)",
    )
    where.add_argument("--quiet", action="store_true", help="print only the file names")
    if several:
        add_setting(where, "attention")
        where.add_argument(
            "--preview",
            type=whole(0, 1000),
            default=0,
            metavar="N",
            help="every N steps write the picture so far to NAME.preview.png next to the output, deleted at the end; "
            "each preview costs one decode (default: 0, off)",
        )


def add_embed_inputs(where: argparse._ActionsContainer) -> None:
    """Add --embed-inputs, for commands that start from pictures."""
    where.add_argument(
        "--embed-inputs",
        action="store_true",
        help="embed the input files, unchanged, in the picture (PNG only), so that `again` needs nothing else",
    )


def add_debug(where: argparse._ActionsContainer) -> None:
    """Add --debug, which every command has."""
    where.add_argument("--debug", action="store_true", help="show a traceback on errors")


def lora(text: str) -> tuple[str, float]:
    """Parse NAME[:STRENGTH]; the strength follows the last colon."""
    name, _, strength = text.rpartition(":")
    try:
        value = float(strength) if name else 1.0
    except ValueError:  # the colon is part of the name
        name, value = text, 1.0
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} should be like watercolour:0.8")
    return name or text, value


def path(text: str) -> str:
    """The type of a path."""
    return FilePath().read(text)


def whole(low: int, high: int, multiple: int = 1) -> Callable[[str], int]:
    """The type of an integer in [low, high]."""
    return reading(Whole(low, high, multiple))


def number(low: float, high: float) -> Callable[[str], float]:
    """The type of a finite number in [low, high]."""
    return reading(Number(low, high))
