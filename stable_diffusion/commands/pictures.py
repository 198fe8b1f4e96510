"""info: how a picture was made."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from ..errors import PictureError
from .options import add_debug, path


def add_to(commands: Any) -> None:
    """Add its parser."""
    info = commands.add_parser(
        "info",
        help="show how a picture was made",
        description="Print the parameters that a picture carries: ours, or those of other programs in A1111's form.",
    )
    info.add_argument("picture", type=path, metavar="PICTURE", help="a PNG, JPEG, WebP, GIF or MP4 file")
    info.add_argument("--json", action="store_true", help="print them as JSON")
    info.set_defaults(run=show_info)
    add_debug(info)


def show_info(args: argparse.Namespace) -> None:
    """The parameters of a picture, for a person or as JSON."""
    from ..record import film, picture_files

    read = film.read_parameters if args.picture.lower().endswith(film.MP4) else picture_files.read_parameters
    parameters = read(args.picture)
    if parameters is None:
        raise PictureError(f"{args.picture!r} carries no parameters.")
    values = {name: value for name, value in dataclasses.asdict(parameters).items() if value not in (None, "", {})}
    if args.json:
        print(json.dumps(values, ensure_ascii=False, indent=2))
        return
    extra = values.pop("extra", {})
    if parameters.size:
        values["size"] = parameters.size
        del values["width"], values["height"]
    for name, value in [*((name.replace("_", " "), value) for name, value in values.items()), *extra.items()]:
        text = str(value).replace("\n", "\n" + " " * 17)
        # A stranger's file must not command the terminal.
        print("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in f"{name + ':':<16} {text}"))
