"""The page's password: a form asks for it once, a signed cookie remembers that, sockets included.

HTTP Basic (any user name) and Bearer work, too, for programs and for proxies that ask for a password themselves.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from html import escape
from urllib.parse import parse_qs, quote

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .addresses import is_loopback
from .guesses import LIMITED, Guesses

VALID = 30 * 24 * 3600  # seconds that a cookie is valid
LARGEST_FORM = 4096  # bytes

FORM = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in - Stable Diffusion</title>
<style>
:root {{ color-scheme: light dark; --accent: #3b5bdb; --on-accent: #fff; --wrong: #b3261e }}
@media (prefers-color-scheme: dark) {{ :root {{ --accent: #91a7ff; --on-accent: #0e1117; --wrong: #ffb4ab }} }}
body {{ font: 1rem/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0 1rem }}
form {{ display: grid; gap: .75rem; width: min(20rem, 100%) }}
h1 {{ font-size: 1.5rem; margin: 0 }}
input, button {{ font: inherit; padding: .5rem .75rem; border: 1px solid GrayText; border-radius: .5rem }}
button {{ background: var(--accent); color: var(--on-accent); border: 0; cursor: pointer }}
p {{ margin: 0; color: var(--wrong) }}
</style>
<form method="post" action="">
<h1>Stable Diffusion</h1>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
{message}<button>Sign in</button>
</form>
</html>
"""
NOT_KEPT = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'",
}
NO_PASSWORD = (
    "This page has no password, so it answers only the machine that it runs on. "
    "To reach it from elsewhere, start it with --password TEXT"
)
WRONG = "Wrong password."
TOO_MANY = "Too many wrong passwords. Try again in a minute."


class PasswordGate:
    """Lets through who knows the password; without one, only programs on this machine.

    Paths that `is_open` go without a password, where there is one: what cannot be guessed stands in the path itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        password: str | None,
        clock: Callable[[], float] = time.time,
        is_open: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self._app = app
        self._is_open = is_open
        self._clock = clock
        self._guesses = Guesses(clock)
        self._password = _digest(password) if password else b""
        # From the password alone, so that a restart signs nobody out and a new password signs everybody out.
        self._key = hashlib.scrypt(_bytes(password or ""), salt=b"stable-diffusion", n=2**14, r=8, p=1)
        # Cookies do not tell ports apart: servers with different passwords on one host must not overwrite each other's.
        self._cookie = f"stable_diffusion_{self._signature('name')[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        client = (scope.get("client") or ("127.0.0.1", 0))[0]
        connection = HTTPConnection(scope)
        if not self._password:
            if is_loopback(client):
                return await self._app(scope, receive, send)
            answer = said(NO_PASSWORD, 403, scope)
        elif scope["type"] == "http" and self._is_open(scope["path"]):
            return await self._app(scope, receive, send)
        elif _is_form(scope, connection):
            answer = await self._sign_in(Request(scope, receive), client)
        elif self._is_signed(connection.cookies.get(self._cookie, "")):
            return await self._app(scope, receive, send)
        elif (given := _shown(connection)) is not None:
            if problem := self._problem(given, client):
                answer = said(problem, LIMITED if problem == TOO_MANY else 401, scope)
            else:
                return await self._app(scope, receive, self._adding_cookie(scope, send))
        else:
            answer = self._ask(connection)
        await refuse(answer, scope, receive, send)

    async def _sign_in(self, request: Request, client: str) -> Response:
        """Answer the form; whoever is signed in already is sent on."""
        if not self._is_signed(request.cookies.get(self._cookie, "")):
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_FORM:
                    return said("This is too long for a password.", 413, request.scope)
            fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
            if problem := self._problem(fields.get("password", [""])[0], client):
                return _form(problem, LIMITED if problem == TOO_MANY else 401)
        # Relative, so that it holds behind a proxy that strips a part of the path.
        target = "./" + quote(request.scope["path"].rpartition("/")[2])
        query = request.scope["query_string"].decode("latin-1")
        answer = RedirectResponse(f"{target}?{query}" if query else target, 303)
        answer.headers["Set-Cookie"] = self._new_cookie(request.scope)
        return answer

    def _ask(self, connection: HTTPConnection) -> Response:
        if "text/html" in connection.headers.get("accept", ""):
            return _form("", 401)
        answer = said("This needs a password: reload the page, then sign in.", 401, connection.scope)
        if "sec-fetch-mode" not in connection.headers:  # a browser would open a dialog of its own
            answer.headers["WWW-Authenticate"] = 'Basic realm="Stable Diffusion", charset="UTF-8"'
        return answer

    def _problem(self, given: str, client: str) -> str:
        """What is wrong with a guess; empty for the right password."""
        if self._guesses.are_too_many(client):
            return TOO_MANY
        if hmac.compare_digest(_digest(given), self._password):
            return ""
        self._guesses.note(client)
        return WRONG

    def _new_cookie(self, scope: Scope) -> str:
        until = str(int(self._clock()) + VALID)
        secure = "; Secure" if scope.get("scheme") in ("https", "wss") else ""
        return f"{self._cookie}={until}.{self._signature(until)}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _is_signed(self, cookie: str) -> bool:
        until, _, signature = cookie.partition(".")
        right = hmac.compare_digest(signature.encode(), self._signature(until).encode())
        return right and until.isdecimal() and int(until) > self._clock()

    def _signature(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), "sha256").hex()

    def _adding_cookie(self, scope: Scope, send: Send) -> Send:
        """Safari sends no HTTP Basic with sockets, but cookies."""
        cookie = (b"set-cookie", self._new_cookie(scope).encode())

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), cookie]}
            await send(message)

        return sending


def said(text: str, status: int, scope: Scope) -> Response:
    """An answer in words; as JSON where Streamlit's page asks, which shows no other."""
    if "/_stcore/" in scope["path"]:
        return JSONResponse(text, status, NOT_KEPT)
    return PlainTextResponse(text + "\n", status, NOT_KEPT)


async def refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer; a socket is closed before it opens instead, which its browser sees as status 403."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await answer(scope, receive, send)


def _is_form(scope: Scope, connection: HTTPConnection) -> bool:
    kind = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    return scope.get("method") == "POST" and kind == "application/x-www-form-urlencoded"


def _shown(connection: HTTPConnection) -> str | None:
    """The password in an Authorization header, Basic or Bearer, if any."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None  # clients without a key send an empty one
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
    except binascii.Error:
        return ""


def _form(message: str, status: int) -> Response:
    shown = f'<p role="alert">{escape(message)}</p>\n' if message else ""
    return HTMLResponse(FORM.format(message=shown), status, NOT_KEPT)


def _digest(text: str) -> bytes:
    return hashlib.sha256(_bytes(text)).digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # as the environment has it, whatever its encoding
