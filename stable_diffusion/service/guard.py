"""Who may talk to this server: browsers that know it by one of its own names, showing pages of its own.

A page on the internet could give its own name this machine's address and then use this server from a browser here
("DNS rebinding"), or open a socket to it across origins. Both are refused, for pages, files and sockets alike, with a
sentence that says what would allow it. password.py asks for the password.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .password import refuse, said

PINGS = ("/_stcore/health", "/_stcore/host-config")  # which the page asks for before it opens its socket
REFUSED_HOST, REFUSED_ORIGIN = 400, 403


def guards(hosts: Sequence[str]) -> list[Middleware]:
    """The middleware that lets only requests to `hosts`, and from their pages, through: names, "*.name" or "*"."""
    return [Middleware(HostGuard, hosts=hosts)]


class HostGuard:
    """Refuses requests to other hosts than these, and from pages of other hosts."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        if refusal := self._refusal(scope):
            return await refuse(refusal, scope, receive, send)
        # Streamlit would compare Origin with Host, which a proxy may have rewritten, and then ask the internet for this
        # machine's address.
        headers = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        await self._app({**scope, "headers": headers}, receive, _with_own_redirects(scope, send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = ", ".join(headers.getlist("host"))
        name = host_name(host)
        if name is None or not is_listed(name, self._hosts):
            shown = name or host
            text = f"This server does not answer to the name {shown!r}. "
            return said(text + f"If it should, start it with --allow-host {name or 'NAME'}", REFUSED_HOST, scope)
        for origin in headers.getlist("origin"):
            if not is_own(origin, self._hosts):
                return _refused_origin(origin, REFUSED_ORIGIN, scope)
        # Behind a proxy that rewrites Host, the page's own name may first appear when its socket opens. The page does
        # not show why a socket was refused, but it shows this answer, if its status is not 403.
        referer = headers.get("referer")
        if scope["path"].endswith(PINGS) and referer and not is_own(referer, self._hosts):
            return _refused_origin(referer, REFUSED_HOST, scope)
        return None


def _with_own_redirects(scope: Scope, send: Send) -> Send:
    """Without the host in redirects to the same server (/base to /base/), which would lead past a proxy."""
    here = f"{scope.get('scheme', 'http')}://{Headers(scope=scope).get('host')}/".encode("latin-1")

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", ()))
            if (target := headers.get(b"location", b"")).startswith(here):
                kept = [each for each in message["headers"] if each[0] != b"location"]
                message = {**message, "headers": [*kept, (b"location", b"/" + target.removeprefix(here))]}
        await send(message)

    return sending


def _refused_origin(origin: str, status: int, scope: Scope) -> Response:
    """Why a page is refused. Where it asks for a script it gets one that shows this, since it would stay blank."""
    try:
        name = urlsplit(origin).hostname
    except ValueError:
        name = None
    text = (
        f"This server does not answer pages of {(name or origin)!r}. "
        f"If it should, start it with --allow-host {name or 'NAME'}"
    )
    if scope["path"].endswith(".js"):
        script = f"document.body.textContent = {json.dumps(text)}"
        return Response(script, headers={"Cache-Control": "no-store"}, media_type="text/javascript")
    return said(text, status, scope)


def host_name(host: str) -> str | None:
    """The name or address in a Host header, in lower case and without brackets; None if there is none."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d+)?", host)
    return (found[1] or found[2]).lower().rstrip(".") if found else None


def is_own(origin: str, hosts: Sequence[str]) -> bool:
    """Whether an Origin header names one of `hosts`; "null" and nonsense do not."""
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(name) and is_listed(name, hosts)


def is_listed(name: str, hosts: Sequence[str]) -> bool:
    """Whether a name is one of `hosts`, or matches a "*.name" or "*" there."""
    name = name.lower()
    return any(
        host == "*" or name == host.lower() or (host.startswith("*.") and name.endswith(host[1:].lower()))
        for host in hosts
    )
