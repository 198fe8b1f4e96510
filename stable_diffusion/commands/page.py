"""page: start the web page, for this machine or for others."""

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
from ..prompts import NAMED, NEGATIVE_VARIABLE
from ..service.addresses import (
    EVERYWHERE,
    PASSWORD_VARIABLE,
    SHORTEST_PASSWORD,
    check_port,
    checked_host,
    checked_password,
    is_loopback,
    own_names,
)
from .options import add_debug, path, whole


def add_to(commands: Any) -> None:
    """Add its parser."""
    page = commands.add_parser(
        "page",
        help="start the web page",
        description="Start the web page and open it in the browser. It needs Streamlit (this package's extra `page`).",
        epilog="Other options are passed to `streamlit run`, such as --server.headless true or, behind a proxy, "
        "--server.baseUrlPath PATH; `streamlit run --help` lists them. More in docs/serving.md.",
        allow_abbrev=False,
    )
    page.add_argument("--port", type=whole(1, 65535), metavar="N", help="the server's port (default: 8501)")
    page.add_argument(
        "--ckpt-dir",
        action="append",
        type=path,
        default=[],
        metavar="FOLDER",
        help=f"a folder with models, in addition to those of ${FOLDERS_VARIABLE}; may be given several times",
    )
    page.add_argument(
        "--default-negative",
        metavar="TEXT",
        help=f"text appended to every negative prompt, or the word public for {NAMED['public']!r} (default: "
        f"${NEGATIVE_VARIABLE})",
    )
    others = page.add_argument_group("for other machines")
    others.add_argument(
        "--listen",
        nargs="?",
        const=EVERYWHERE,
        metavar="ADDRESS",
        help="let other machines reach the page, at all of this machine's addresses or only at ADDRESS; needs a "
        "password (default: only this machine)",
    )
    others.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers may ask for the page, in addition to localhost and, with --listen, to this "
        "machine's own name and address; may be given several times",
    )
    others.add_argument(
        "--password",
        metavar="TEXT",
        help=f"ask for this password, of at least {SHORTEST_PASSWORD} characters (default: ${PASSWORD_VARIABLE}, which "
        "does not show in the list of processes)",
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
    variables = _variables(args)
    others = _server(args)
    script = packaged("webui", "server", "entry.py")
    command = [sys.executable, "-m", "streamlit", "run", str(script), *settings(others), *others]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **variables})


def _server(args: argparse.Namespace) -> list[str]:
    """The options of `streamlit run`: the caller's own, before them those for port, address and hosts."""
    given = [*(["--server.address", args.listen] if args.listen else []), *args.others]
    address = _value("server.address", given) or "localhost"
    beyond = not is_loopback(address)
    if beyond and not _password(args):
        raise InputError(
            f"Other machines can reach the page at {address}, so it needs a password: --password TEXT, or "
            f"${PASSWORD_VARIABLE}, which does not show in the list of processes."
        )
    options = []
    check_port(address, args.port or 0)
    if args.port:
        options += ["--server.port", str(args.port)]
    listed = [checked_host(name) for name in _values("server.allowedHosts", given)]
    hosts = [checked_host(name) for name in args.allow_host]
    if beyond:
        hosts += own_names(address)
        if not _value("browser.serverAddress", given):  # what it prints, and opens; else Streamlit asks the internet
            options += ["--browser.serverAddress", hosts[0]]
    if hosts and not listed:
        hosts = [*_packaged_settings()["server.allowedHosts"], *hosts]
    for name in dict.fromkeys(hosts):
        options += ["--server.allowedHosts", name]
    return [*options, *given]


def _password(args: argparse.Namespace) -> str:
    password = os.environ.get(PASSWORD_VARIABLE, "") if args.password is None else args.password
    return checked_password(password) if password or args.password is not None else ""


def _values(name: str, options: Sequence[str]) -> list[str]:
    """What options of `streamlit run`, or else its environment, give for a setting."""
    found = []
    for option, following in zip(options, [*options[1:], ""], strict=False):
        key, equals, value = option.partition("=")
        if key == f"--{name}":
            found.append(value if equals else following)
    return found or os.environ.get(_variable(name), "").split()


def _value(name: str, options: Sequence[str]) -> str:
    return (_values(name, options) or [""])[-1]


def settings(others: Sequence[str]) -> list[str]:
    """The settings of webui/streamlit.toml as options of `streamlit run`, so that they apply in any folder.

    Settings given in `others`, or in Streamlit's environment variables, are left out.
    """
    given = {option.partition("=")[0] for option in others}
    options = []
    for name, value in _packaged_settings().items():
        if f"--{name}" not in given and _variable(name) not in os.environ:
            for each in value if isinstance(value, list) else [value]:
                options += [f"--{name}", str(each).lower() if isinstance(each, bool) else str(each)]
    return options


def _variable(name: str) -> str:
    """Streamlit's environment variable for a setting: server.enableCORS -> STREAMLIT_SERVER_ENABLE_CORS."""
    return "STREAMLIT_" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\.", "_", name).upper()


def _packaged_settings() -> dict[str, Any]:
    with open(packaged("webui", "streamlit.toml"), "rb") as file:
        return dict(_flat(tomllib.load(file)))


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
    if password := _password(args):
        variables[PASSWORD_VARIABLE] = password
    return variables
