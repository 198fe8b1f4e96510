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
        description="Print the parameters that a picture carries, ours or another program's.",
    )
    info.add_argument("picture", type=path, metavar="PICTURE", help="a PNG, JPEG, WebP, GIF or MP4 file")
    info.add_argument("--json", action="store_true", help="print them as JSON")
    info.set_defaults(run=show_info)
    add_debug(info)


def show_info(args: argparse.Namespace) -> None:
    """The parameters of a picture, for a person or as JSON."""
    from ..record import film, picture_files
    from ..record.reading import Record

    if args.picture.lower().endswith(film.MP4):
        found = film.read_parameters(args.picture)
        record = Record(found.to_text(), found) if found else None
    else:
        record = picture_files.read_record(args.picture)
    if record is None:
        raise PictureError(f"{args.picture!r} carries no parameters.")
    parameters = record.parameters
    if parameters is None:
        if args.json:
            print(json.dumps({"not_understood": record.text}, ensure_ascii=False, indent=2))
        else:
            print(_printable(f"not understood, as it is in the file:\n{record.text}"))
        return
    values = {name: value for name, value in dataclasses.asdict(parameters).items() if value not in (None, "", {})}
    if args.json:
        print(json.dumps(values, ensure_ascii=False, indent=2))
        return
    if record.program:
        values = {"made_with": record.program, **values}
    extra = values.pop("extra", {})
    if parameters.size:
        values["size"] = parameters.size
        del values["width"], values["height"]
    for name, value in [*((name.replace("_", " "), value) for name, value in values.items()), *extra.items()]:
        text = str(value).replace("\n", "\n" + " " * 17)
        print(_printable(f"{name + ':':<16} {text}"))


def _printable(text: str) -> str:
    """A text from a stranger's file, which must not control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
