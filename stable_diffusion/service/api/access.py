"""Who may call the API: clients that show a key, in an Authorization header, Basic or Bearer."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

WHY = "Not authenticated"
REFUSAL = {  # as A1111 and as OpenAI say it
    "detail": WHY,
    "error": {"message": WHY, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"},
}


@dataclass(frozen=True)
class Secret:
    """What a client must know: `key` alone (as a Bearer token, or as the password of any user), or user and key."""

    key: str
    user: str | None = None

    def opens(self, authorization: str) -> bool:
        """Whether an Authorization header, Basic or Bearer, shows the secret; takes as long for any wrong one."""
        scheme, _, value = authorization.strip().partition(" ")
        user: str | None = None
        if scheme.lower() == "basic":
            try:
                decoded = base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace")
            except (binascii.Error, ValueError):
                decoded = ""
            user, _, given = decoded.partition(":")
        elif scheme.lower() == "bearer":
            given = value.strip()
            if self.user is not None:
                user, _, given = given.partition(":")
        else:
            given = ""
        right_key = same(given, self.key)
        return right_key if self.user is None else same(user or "", self.user) and right_key


def same(given: str, wanted: str) -> bool:
    """Compare secrets in a time that says nothing of them."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode("utf-8", "replace"))


class KeyGuard:
    """Refuses whoever does not show one of the secrets in an Authorization header.

    Paths that begin with `open_path` go without: what cannot be guessed stands in the path itself.
    """

    def __init__(self, app: ASGIApp, secrets: Sequence[Secret], open_path: str) -> None:
        self._app = app
        self._secrets = secrets
        self._open_path = open_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"].startswith(self._open_path):
            await self._app(scope, receive, send)
            return
        shown = Headers(scope=scope).getlist("authorization")
        if any(secret.opens(each) for each in shown for secret in self._secrets):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse(REFUSAL, 401, {"WWW-Authenticate": 'Basic realm="Stable Diffusion"'})(
                scope, receive, send
            )
