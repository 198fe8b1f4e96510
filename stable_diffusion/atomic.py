"""Files written whole or not at all, and moved without ever replacing another one.

A file is written under a temporary name in its target's folder, synced to the disk, then renamed: a reader, a full disk
or a power cut never sees half of it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part(\.\w{1,16})?")  # their names; a killed process leaves some behind
# If making a hard link fails with one of these, renaming would as well.
REFUSALS = (errno.EEXIST, errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A free name in the target's folder, which is created; the file or folder left there at the end is deleted.

    It has the target's suffix, by which some libraries choose the format, and is short, since the target's name may be
    as long as the file system allows.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{secrets.token_hex(8)}.part"
    path = target.with_name(name + target.suffix)
    if not TEMPORARY.fullmatch(path.name):  # too long, or of odd characters: no format's suffix
        path = target.with_name(name)
    try:
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def written(target: Path) -> Iterator[Path]:
    """A temporary path to write to; its file replaces `target` at the end, unless the block raises. Raises OSError."""
    with temporary(target) as path:
        yield path
        sync(path)
        os.replace(path, target)


def write_whole(target: Path, content: bytes | str) -> None:
    """Write a small file; text as UTF-8. Raises OSError."""
    with written(target) as path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk. Raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def take_name(source: Path, target: Path) -> None:
    """Rename a file within its file system, without replacing another: raises FileExistsError if the name is taken.

    It makes a hard link, since a plain rename would replace a file of that name. Raises OSError and leaves the source
    as it was.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in REFUSALS:
            raise
        # A file system without hard links: reserve the name, then replace the reservation.
        target.open("xb").close()
        try:
            os.replace(source, target)
        except OSError:
            target.unlink()
            raise
        return
    try:
        source.unlink(missing_ok=True)
    except OSError:
        target.unlink()
        raise


def move(source: Path, folder: Path) -> Path:
    """Move a file into a folder, as NAME or, if that is taken, NAME-2, NAME-3 and so on; returns its new path.

    Raises OSError and leaves the file where it was; also if the folder is reached through a symbolic link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.realpath(folder) != str(folder):
        raise FileNotFoundError(errno.ENOENT, "a symbolic link, through which nothing is moved", str(folder))
    for count in itertools.count(1):
        target = folder / (source.name if count == 1 else f"{source.stem}-{count}{source.suffix}")
        with contextlib.suppress(FileExistsError):
            take_name(source, target)
            return target
    raise AssertionError
