"""Who may call the API: clients that show a key, in an Authorization header, Basic or Bearer."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..guesses import LIMITED, Guesses

WHY, TOO_MANY = "Not authenticated", "Too many wrong keys. Try again in a minute."


def _refusal(why: str, code: str) -> dict[str, object]:
    """As A1111 and as OpenAI say it."""
    return {"detail": why, "error": {"message": why, "type": "invalid_request_error", "param": None, "code": code}}


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
    """Refuses whoever does not show one of the secrets in an Authorization header, and who has guessed too often.

    Paths that `is_open` go without: what cannot be guessed stands in the path itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        secrets: Sequence[Secret],
        is_open: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._secrets = secrets
        self._is_open = is_open
        self._guesses = Guesses(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        client = (scope.get("client") or ("127.0.0.1", 0))[0]
        # A header without a value is no guess: clients that have no key send one.
        shown = [each for each in Headers(scope=scope).getlist("authorization") if each.strip().partition(" ")[2]]
        if shown and self._guesses.are_too_many(client):
            answer = JSONResponse(_refusal(TOO_MANY, "rate_limit_exceeded"), LIMITED, {"Retry-After": "60"})
        elif any(secret.opens(each) for each in shown for secret in self._secrets):
            await self._app(scope, receive, send)
            return
        else:
            if shown:
                self._guesses.note(client)
            challenge = {"WWW-Authenticate": 'Basic realm="Stable Diffusion"'}
            answer = JSONResponse(_refusal(WHY, "invalid_api_key"), 401, challenge)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, send)
