"""styles and wildcards: list what prompts can be made of."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_debug

MAX_SHOWN = 60  # characters of a text


def add_to(commands: Any) -> None:
    """Add their parsers."""
    styles = commands.add_parser(
        "styles",
        help="list the styles",
        description="List the styles that --style takes, of styles.csv and of the files that $STABLE_DIFFUSION_STYLES "
        "names, and of an A1111 folder among $STABLE_DIFFUSION_MODELS.",
    )
    styles.set_defaults(run=list_styles)
    wildcards = commands.add_parser(
        "wildcards",
        help="list the wildcards",
        description="List the wildcards that prompts can name as __NAME__: text, YAML and JSON files in wildcards/, in "
        "the folders of $STABLE_DIFFUSION_WILDCARDS, and in A1111's extension sd-dynamic-prompts.",
    )
    wildcards.set_defaults(run=list_wildcards)
    for command in (styles, wildcards):
        add_debug(command)


def list_styles(args: argparse.Namespace) -> None:
    """Print each style's name, prompt and negative prompt."""
    from ..text import styles

    known = styles.listed()
    width = max(map(len, known), default=0)
    for name, style in sorted(known.items(), key=lambda item: item[0].casefold()):
        negative = f"  not: {_short(style.negative)}" if style.negative else ""
        print(f"{name.ljust(width)}  {_short(style.prompt)}{negative}".rstrip())
    if not known:
        print(f"There are no styles yet: write them into {styles.own_file()}, or make them on the page.")


def list_wildcards(args: argparse.Namespace) -> None:
    """Print each wildcard's name and number of lines."""
    from ..text import wildcards

    found = wildcards.Wildcards()
    names = found.names()
    width = max(map(len, names), default=0) + 4
    for name in names:
        print(f"{f'__{name}__'.ljust(width)}  {found.count(name)}")
    if not names:
        print(f"There are no wildcards yet: put text files into {wildcards.folders()[0]}, a line for each choice.")


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= MAX_SHOWN else f"{words[: MAX_SHOWN - 1]}…"
