"""serve: answer other programs over HTTP, without the page."""

from __future__ import annotations

import argparse
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from ..errors import InputError, StableDiffusionError
from ..service.addresses import check_port, checked_host, checked_password, is_loopback, own_names
from .options import add_debug, whole

if TYPE_CHECKING:
    from ..service.api.access import Secret

PORT = 7860  # where clients look first
KEY_VARIABLE, AUTH_VARIABLE = "STABLE_DIFFUSION_API_KEY", "STABLE_DIFFUSION_API_AUTH"
GRACE = 2  # seconds that running requests are given at the end


def add_to(commands: Any) -> None:
    """Add its parser."""
    serve = commands.add_parser(
        "serve",
        help="answer other programs over HTTP, as A1111 and OpenAI do",
        description="Serve the HTTP API that programs for A1111's web UI (/sdapi/v1) and for OpenAI (/v1/images) "
        "speak, without the page. docs/http.md lists what is understood. `page` serves the same API beside the page.",
    )
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen at; beyond this "
                       "machine it needs a key (default: 127.0.0.1, this machine alone)")  # fmt: skip
    serve.add_argument("--port", type=whole(1, 65535), default=PORT, metavar="N", help=f"(default: {PORT})")
    serve.add_argument("--api-key", metavar="KEY", help="what clients must send as a Bearer token, or as a password "
                       f"with any user name (default: ${KEY_VARIABLE}, which `ps` does not show)")  # fmt: skip
    serve.add_argument("--api-auth", metavar="USER:PASSWORD", help="what clients must send as Basic authorization "
                       f"(default: ${AUTH_VARIABLE})")  # fmt: skip
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name under which clients "
                       "reach this server, such as studio.local; may be given several times")  # fmt: skip
    serve.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a web page that may call "
                       "this server from a browser (CORS), such as https://my.page; may be repeated")  # fmt: skip
    serve.set_defaults(run=start)
    add_debug(serve)


def start(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    missing = [name for name in ("starlette", "uvicorn", "multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise StableDiffusionError(
            f"The server needs {', '.join(missing)}. Install this package with its extra `serve` (in a checkout: "
            "pip install '.[serve]')."
        )
    found, names = secrets(args), hosts(args)
    check_port(args.host, args.port)
    import uvicorn

    from ..service.api.app import build

    app = build(names, found, args.allow_origin)
    print(f"Serving at http://{args.host}:{args.port}", flush=True)
    uvicorn.run(
        app, host=args.host, port=args.port, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE,
        server_header=False,
    )  # fmt: skip


def secrets(args: argparse.Namespace) -> list[Secret]:
    """What clients must show. Raises InputError where a server beyond this machine would have none, or a short one."""
    from ..service.api.access import Secret

    found = []
    if key := args.api_key or os.environ.get(KEY_VARIABLE):
        found.append(Secret(key))
    if login := args.api_auth or os.environ.get(AUTH_VARIABLE):
        user, _, password = login.partition(":")
        if not user or not password:
            raise InputError("--api-auth should be like user:password.")
        found.append(Secret(password, user))
    if is_loopback(args.host):
        return found
    if not found:
        raise InputError(
            f"--host {args.host} reaches beyond this machine: give --api-key KEY or --api-auth USER:PASSWORD as well."
        )
    for secret in found:
        checked_password(secret.key)
    return found


def hosts(args: argparse.Namespace) -> list[str]:
    """The names under which clients may reach the server."""
    from ..service.api.app import DOCKER, LOOPBACK

    own = [] if is_loopback(args.host) else own_names(args.host)
    return [*LOOPBACK, DOCKER, *own, *map(checked_host, args.allow_host)]
