"""Asks an ASGI application without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace


def ask(app, path="/", method="GET", body=b"", kind="http", client="127.0.0.1", scheme="http", query=b"", **headers):
    """The answer of an application: status, headers, text. `_` in a header's name stands for `-`; a list repeats it."""
    pairs = [(name, value) for name, values in headers.items() for value in _each(values)]
    scope = {
        "type": kind, "method": method, "path": path, "query_string": query, "scheme": scheme,
        "client": client and (client, 50000), "server": ("127.0.0.1", 8501),
        "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in pairs],
    }  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent).decode()
    found = {name.decode(): value.decode() for name, value in sent[0].get("headers", ())}
    return SimpleNamespace(status=sent[0].get("status"), type=sent[0]["type"], headers=found, text=text)


def _each(values):
    return values if isinstance(values, list) else [values]


class Page:
    """What stands behind the middleware; remembers what it was asked."""

    def __init__(self):
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"the page"})
        else:
            await send({"type": f"{scope['type']}.accept"})
