"""Errors in plain words."""

import errno
import logging
import re

from ..errors import StableDiffusionError

log = logging.getLogger(__name__)
OUT_OF_MEMORY = re.compile(
    r"out of memory|unable to allocate|failed to allocate|malloc|insufficient memory", re.IGNORECASE
)


def in_plain_words(error: BaseException) -> str:
    """An error in plain words; unexpected ones are logged to the terminal in full."""
    if isinstance(error, StableDiffusionError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Free some space and try again."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return "The machine ran out of memory. Choose a smaller width and height, or a smaller model."
    if isinstance(error, PermissionError):
        return f"No permission to write or read {error.filename}."
    log.error("a job failed", exc_info=error)
    return f"Something unexpected went wrong ({type(error).__name__}: {error}). The terminal says more."
