"""page: start the web page."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..catalogue import FOLDERS_VARIABLE
from ..errors import InputError, StableDiffusionError
from ..places import packaged
from .options import add_debug, whole

NEGATIVE_VARIABLE = "STABLE_DIFFUSION_NEGATIVE"


def add_to(commands: Any) -> None:
    """Add its parser."""
    page = commands.add_parser(
        "page",
        help="start the web page",
        description="Start the web page and open it in the browser. It needs Streamlit, the extra `page` of this "
        "package.",
        epilog="Any other option is one of `streamlit run`, such as --server.headless true; "
        "`streamlit run --help` lists them.",
        allow_abbrev=False,
    )
    page.add_argument("--port", type=whole(1, 65535), metavar="N", help="the port that it answers at (default: 8501)")
    page.add_argument(
        "--ckpt-dir",
        action="append",
        default=[],
        metavar="FOLDER",
        help=f"another folder with models, beside those in ${FOLDERS_VARIABLE}; may be given several times",
    )
    page.add_argument(
        "--default-negative",
        metavar="TEXT",
        help=f"text that ends every picture's negative prompt (default: ${NEGATIVE_VARIABLE})",
    )
    page.set_defaults(run=start, takes_others=True)
    add_debug(page)


def start(args: argparse.Namespace) -> None:
    """Replace this process with the page's server."""
    if importlib.util.find_spec("streamlit") is None:
        raise StableDiffusionError(
            "The page needs Streamlit. Install this package with its extra `page` (in a checkout: "
            "pip install '.[page]'), or Streamlit alone: pip install streamlit"
        )
    stray = next(iter(args.others), "-")
    if not stray.startswith("-"):
        raise InputError(f"{stray!r}: the page takes options only.")
    others = [*(["--server.port", str(args.port)] if args.port else []), *args.others]
    script = packaged("webui", "start", "entry.py")
    command = [sys.executable, "-m", "streamlit", "run", str(script), *settings(others), *others]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **_variables(args)})


def settings(others: Sequence[str]) -> list[str]:
    """The settings of webui/streamlit.toml as options of `streamlit run`, so that they hold in whatever folder it runs.

    Those that `others` give, or that the environment gives in Streamlit's way, are left out.
    """
    given = {option.partition("=")[0] for option in others}
    options = []
    with open(packaged("webui", "streamlit.toml"), "rb") as file:
        for name, value in _flat(tomllib.load(file)):
            # As Streamlit makes them: server.enableCORS -> STREAMLIT_SERVER_ENABLE_CORS
            variable = "STREAMLIT_" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\.", "_", name).upper()
            if f"--{name}" not in given and variable not in os.environ:
                for each in value if isinstance(value, list) else [value]:
                    options += [f"--{name}", str(each).lower() if isinstance(each, bool) else str(each)]
    return options


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _variables(args: argparse.Namespace) -> dict[str, str]:
    variables = {}
    for folder in args.ckpt_dir:
        if not Path(folder).is_dir():
            raise InputError(f"--ckpt-dir {folder}: there is no such folder.")
    if args.ckpt_dir:
        folders = [os.path.abspath(folder) for folder in args.ckpt_dir]
        variables[FOLDERS_VARIABLE] = os.pathsep.join([*folders, *filter(None, [os.environ.get(FOLDERS_VARIABLE)])])
    if args.default_negative is not None:
        variables[NEGATIVE_VARIABLE] = args.default_negative
    return variables
