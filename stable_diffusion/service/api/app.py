"""The API as a server of its own, without the page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .. import shared
from ..guard import guards
from .access import KeyGuard, Secret
from .links import is_link
from .routes import routes

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DOCKER = "host.docker.internal"  # what a container calls the machine that it runs on


def build(
    hosts: Sequence[str] = (*LOOPBACK, DOCKER), secrets: Sequence[Secret] = (), origins: Sequence[str] = ()
) -> Starlette:
    """The application, for requests to `hosts`, that show one of the `secrets` where there are any.

    Pages of `origins` ("https://name.of.a.page") may call it from a browser; otherwise only pages of `hosts` may.
    """
    pages = [name for name in (urlsplit(origin).hostname for origin in origins) if name]
    middleware = guards([*hosts, *pages])
    if secrets:
        middleware.append(Middleware(KeyGuard, secrets=secrets, is_open=is_link))
    if origins:
        middleware.insert(
            0, Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        )
    return Starlette(routes=routes(), middleware=middleware, lifespan=_lifespan)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    shared.the_worker()
    yield
    shared.close()
