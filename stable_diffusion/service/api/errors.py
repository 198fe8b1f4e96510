"""What goes wrong, as answers: a status and a sentence that names no path of this machine."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import catalogue
from ...adapters import files
from ...errors import CheckpointNotFoundError, InputError, StableDiffusionError
from ...places import home, packaged
from ..shared import outputs
from ..words import in_plain_words
from ..worker import QueueFullError

RETRY_AFTER = 5  # seconds
_PATH = re.compile(r"(?<![\w./<>:])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"`:,;()]+[/\\])+(?=[^\s'\"`:,;()]*)")

log = logging.getLogger(__name__)
Handler = Callable[[Request], Any]


class ApiError(StableDiffusionError):
    """A request that is refused: the HTTP status, and why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class ClientGone(Exception):
    """The client closed its connection; nobody waits for an answer."""


def status_of(error: Exception) -> int:
    """The HTTP status that tells a client what kind of error it is."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, QueueFullError):
        return 503
    if isinstance(error, CheckpointNotFoundError):
        return 404
    return 422 if isinstance(error, InputError) else 500


def without_paths(text: str) -> str:
    """A message with the folders of this machine left out of its paths, so that file names remain."""
    folders = [*catalogue.model_folders(), *files.folders(files.LORAS), *files.folders(files.EMBEDDINGS)]
    for folder in sorted({str(each) for each in (*folders, outputs(), home(), packaged())}, key=len, reverse=True):
        for form in {folder, os.path.realpath(folder)}:
            if len(form) > 1:
                text = text.replace(form + os.sep, "").replace(form, os.path.basename(form))
    return _PATH.sub("", text)


def answered(handle: Handler, form: Callable[[int, str], Any]) -> Callable[[Request], Awaitable[Response]]:
    """A handler as a route has it: plain functions run in a thread, and errors are answered in `form(status, why)`."""

    async def answer(request: Request) -> Response:
        try:
            found = handle(request) if _is_async(handle) else run_in_threadpool(handle, request)
            result = await found
        except ClientGone:
            return Response(status_code=499)
        except Exception as error:
            status = status_of(error)
            detail = error.detail if isinstance(error, HTTPException) else in_plain_words(error)
            headers = {"Retry-After": str(RETRY_AFTER)} if status == 503 else None
            body = form(status, without_paths(detail))
            return JSONResponse(body, 400 if status == 422 and "error" in body else status, headers)
        return result if isinstance(result, Response) else Json(result)

    return answer


def _is_async(handle: Handler) -> bool:
    return inspect.iscoroutinefunction(handle.func if isinstance(handle, partial) else handle)


class Json(JSONResponse):
    """JSON that a strict reader takes: no NaN, no lone surrogates."""

    def render(self, content: Any) -> bytes:
        """The bytes of an answer."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def a1111_error(status: int, detail: str) -> dict[str, str]:
    """The form in which A1111 answers errors."""
    return {"detail": detail}
