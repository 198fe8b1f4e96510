"""Models on their way from the hub, each in a thread of its own: no MLX is needed for it, and painting goes on."""

import logging
import threading
from collections.abc import Callable
from enum import StrEnum

from .. import catalogue
from ..errors import DownloadError, StableDiffusionError
from .jobs import Report

log = logging.getLogger(__name__)


class DownloadState(StrEnum):
    """Where a download is in its life."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class _Cancelled(Exception):
    """Raised by the report of progress where a download was cancelled."""


class Download:
    """One model's download, as any thread may read it."""

    def __init__(self, model: catalogue.Model) -> None:
        self.model = model
        self.state = DownloadState.RUNNING
        self.note = "Asking the hub"
        self.fraction: float | None = None
        self.error = ""
        self._cancel = threading.Event()

    @property
    def active(self) -> bool:
        """Whether it is still going on."""
        return self.state is DownloadState.RUNNING

    @property
    def cancelling(self) -> bool:
        """Whether somebody wished to cancel it."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Stop it after the piece in hand; complete files stay, and a later download goes on behind them."""
        self._cancel.set()

    def report(self, message: str, fraction: float | None) -> None:
        """Note the progress, or raise where it was cancelled."""
        if self.cancelling:
            raise _Cancelled
        self.note, self.fraction = message, fraction


def fetch(source: str, report: Report) -> None:
    """Download a model of the hub into its cache. Tests put another function in its place."""
    from .. import backend
    from ..model_io import hub

    hub.download(source, backend.default_float16(), report)


class Downloads:
    """The newest download of each model."""

    def __init__(self, fetch: Callable[[str, Report], None] = fetch) -> None:
        self._fetch = fetch
        self._all: dict[str, Download] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Download | None:
        """The newest download of the model of this name."""
        with self._lock:
            return self._all.get(name)

    def start(self, model: catalogue.Model) -> Download:
        """Begin a model's download, or find the one that is going on."""
        with self._lock:
            download = self._all.get(model.name)
            if download is None or not download.active:
                download = self._all[model.name] = Download(model)
                name = f"download of {model.name}"
                threading.Thread(target=self._run, args=(download,), name=name, daemon=True).start()
        return download

    def close(self) -> None:
        """Cancel everything."""
        with self._lock:
            for download in self._all.values():
                download.cancel()

    def _run(self, download: Download) -> None:
        try:
            self._fetch(download.model.source, download.report)
            download.state = DownloadState.DONE
        except Exception as error:
            if download.cancelling:
                download.state = DownloadState.CANCELLED
                return
            download.error = in_plain_words(error, download.model)
            download.state = DownloadState.FAILED


def in_plain_words(error: Exception, model: catalogue.Model) -> str:
    """Say why a download failed, and for a gated model where to agree to its licence."""
    if not isinstance(error, StableDiffusionError):
        log.error("a download failed", exc_info=error)
        return f"The download of {model.title} failed ({type(error).__name__}: {error}). What has arrived is kept."
    if isinstance(error, DownloadError) and "licence" in str(error):
        return f"{error} Its page: {hub_page(model)}"
    return str(error)


def hub_page(model: catalogue.Model) -> str:
    """The address of a hub model's page, where its licence is."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model.source}"
