"""Downloads of models from the hub, each in a thread of its own: they need no MLX, and painting continues."""

import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum

from .. import catalogue
from ..errors import DownloadError, StableDiffusionError
from .jobs import Report

log = logging.getLogger(__name__)


class DownloadState(StrEnum):
    """The state of a download."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class _Cancelled(Exception):
    """Raised by `Download.report` to stop a cancelled download."""


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
        """Whether it is still running."""
        return self.state is DownloadState.RUNNING

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Stop it after the current piece; complete files stay, so a later download continues from there."""
        self._cancel.set()

    def report(self, message: str, fraction: float | None) -> None:
        """Record the progress; raises if it was cancelled."""
        if self.cancelling:
            raise _Cancelled
        self.note, self.fraction = message, fraction


def fetch(source: str, report: Report) -> None:
    """Download a model of the hub into its cache. Tests replace this function."""
    from .. import backend
    from ..model_io import hub
    from ..model_io.load_folder import read_index

    hub.download(source, backend.default_float16(), report, read_index)


class LookUp:
    """What the hub says of an id that somebody typed, as any thread may read it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.active = True
        self.model: catalogue.Model | None = None
        self.error = ""


class Downloads:
    """The latest download of each model, and questions to the hub."""

    def __init__(
        self,
        fetch: Callable[[str, Report], None] = fetch,
        look_up: Callable[[str], catalogue.Model] = catalogue.offered,
    ) -> None:
        self._fetch = fetch
        self._look_up = look_up
        self._all: dict[str, Download] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def get(self, name: str) -> Download | None:
        """The latest download of the model of this name, or None."""
        with self._lock:
            return self._all.get(name)

    def start(self, model: catalogue.Model) -> Download:
        """Start a model's download, or return the one that is running."""
        with self._lock:
            download = self._all.get(model.name)
            if download is None or not download.active:
                download = self._all[model.name] = Download(model)
                name = f"download of {model.name}"
                thread = threading.Thread(target=self._run, args=(download,), name=name, daemon=True)
                self._threads = [*(other for other in self._threads if other.is_alive()), thread]
                thread.start()
        return download

    def look_up(self, name: str) -> LookUp:
        """Ask the hub for an id, in a thread: which model it is, and how much there is to download."""
        asked = LookUp(name)
        threading.Thread(target=self._ask, args=(asked,), name=f"look-up of {name[:80]}", daemon=True).start()
        return asked

    def _ask(self, asked: LookUp) -> None:
        try:
            asked.model = self._look_up(asked.name)
        except Exception as error:
            asked.error = in_plain_words(error, catalogue.Model(asked.name, catalogue.HUB, asked.name, asked.name))
        asked.active = False

    def close(self, timeout: float = 0.0) -> None:
        """Cancel all downloads, and wait up to `timeout` seconds for them to stop."""
        end = time.monotonic() + timeout
        with self._lock:
            threads = self._threads
            for download in self._all.values():
                download.cancel()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

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
    """Why a download failed, and for a gated model where to accept its licence."""
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
