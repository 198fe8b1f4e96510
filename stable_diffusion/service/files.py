"""Files that are written and moved so that nothing is ever half there, or lost under another one."""

import errno
import itertools
import os
import threading
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move(source: Path, folder: Path) -> Path:
    """Move a file into a folder, as NAME or, where that is taken, NAME-2, NAME-3: never over another file.

    Raises OSError, with the file where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.realpath(folder) != str(folder):
        raise FileNotFoundError(errno.ENOENT, "a link, through which nothing is moved", str(folder))
    for count in itertools.count(1):
        target = folder / (source.name if count == 1 else f"{source.stem}-{count}{source.suffix}")
        try:
            _take_name(source, target)
        except FileExistsError:
            continue
        return target
    raise AssertionError


def _take_name(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EROFS, errno.EACCES):
            raise
        target.open("xb").close()  # a file system without hard links: reserve the name, then take it
        os.replace(source, target)
        return
    try:
        source.unlink(missing_ok=True)
    except OSError:
        target.unlink()
        raise
