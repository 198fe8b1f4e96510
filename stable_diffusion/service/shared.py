"""One per process: the worker, the downloads, and the folder for finished pictures.

The page and whatever else serves requests get them here, so all tabs, clients and threads share one
engine. Each is created on first use, and ends with the process.
"""

import atexit
import threading
from pathlib import Path

from ..places import folders_in, home
from .downloads import Downloads
from .worker import Worker

OUTPUTS_VARIABLE = "STABLE_DIFFUSION_OUTPUTS"
PATIENCE = 5.0  # seconds that the end of the process waits for cancelled downloads to stop

_lock = threading.Lock()
_worker: Worker | None = None
_downloads: Downloads | None = None


def outputs() -> Path:
    """The folder for finished pictures: $STABLE_DIFFUSION_OUTPUTS, or outputs/ in `home()`."""
    return next(iter(folders_in(OUTPUTS_VARIABLE, several=False)), home() / "outputs")


def the_worker() -> Worker:
    """The worker of this process; it saves to what `outputs()` was at the first call."""
    global _worker
    with _lock:
        if _worker is None:
            _worker = Worker(outputs())
        return _worker


def the_downloads() -> Downloads:
    """The downloads of this process."""
    global _downloads
    with _lock:
        if _downloads is None:
            _downloads = Downloads()
            atexit.register(_downloads.close, PATIENCE)
        return _downloads


def close() -> None:
    """Cancel all jobs and downloads, and end the worker; the next call creates new ones. Tests start with this."""
    global _worker, _downloads
    with _lock:
        worker, downloads, _worker, _downloads = _worker, _downloads, None, None
    if downloads is not None:
        atexit.unregister(downloads.close)
        downloads.close()
    if worker is not None:
        worker.close()
