"""Warns when two processes want one GPU: two MLX processes at once have made Macs panic (mlx issue 3186).

The lock is advisory, on a file of the user's cache that says who holds it. The system gives it up when its process
ends, however it ends, so nothing is ever left locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from .places import cache_folder

NAME = "gpu.lock"
LONGEST = 200  # characters that are shown of what the file says

_held: BinaryIO | None = None


def take() -> None:
    """Hold the GPU's lock until this process ends; warn where another process has it, or where nobody can tell.

    Takes nothing away from anyone: a generation goes on either way. Calling it again changes nothing.
    """
    global _held
    if _held is not None:
        return
    path = cache_folder() / NAME
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
    except (ImportError, OSError) as error:
        warnings.warn(_cannot_tell(path, error), RuntimeWarning, stacklevel=2)
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        message = _taken_by(file) if taken else _cannot_tell(path, error)
        file.close()
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return
    _held = file
    with contextlib.suppress(OSError):  # a full disk: the lock holds, without a name
        file.truncate(0)
        file.write(f"process {os.getpid()}, {_command()}".encode(errors="replace"))


def _taken_by(file: BinaryIO) -> str:
    try:
        words = file.read(4 * LONGEST).decode(errors="replace")
    except OSError:
        words = ""
    who = "".join(c for c in words if c.isprintable())[:LONGEST].strip()
    return (
        f"Another Stable Diffusion ({who or 'of an unknown process'}) is using the GPU. Two at a time are slow, and "
        "have made Macs crash: let one finish, or close it, before the other one paints."
    )


def _cannot_tell(path: Path, error: Exception) -> str:
    return (
        f"Whether another process is using the GPU is not known, since {str(path)!r} cannot be opened or locked "
        f"({error}). Do not run the page and the command line at the same time."
    )


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
