"""Who may talk to this server: pages of its own alone, whatever name or address a browser was led here by.

A page on the internet could give its own name this machine's address, and then talk to this server from a browser here
("DNS rebinding"), or open a socket to it across origins. Both are refused, for pages, files and sockets alike.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def guards(hosts: Sequence[str]) -> list[Middleware]:
    """What lets only requests to, and from pages of, `hosts` through: names, "*.name", or "*" for all."""
    return [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(OriginGuard, hosts=hosts)]


class OriginGuard:
    """Refuses what a page of another origin asks for; what no page asks for has no origin."""

    def __init__(self, app: App, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"origin"]
        if all(is_own(origin, self._hosts) for origin in origins):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page may not ask this server."})


def is_own(origin: str, hosts: Sequence[str]) -> bool:
    """Whether an Origin header names one of `hosts`; "null" and nonsense do not."""
    try:
        parts = urlsplit(origin)
        name = (parts.hostname or "").lower()
    except ValueError:
        return False
    known = (
        host == "*" or name == host.lower() or (host.startswith("*.") and name.endswith(host[1:].lower()))
        for host in hosts
    )
    return parts.scheme in ("http", "https") and bool(name) and any(known)
