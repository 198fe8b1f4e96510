"""The gallery's index of its pictures, in SQLite: built from the files, and rebuilt if it is broken."""

import logging
import os
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..errors import StableDiffusionError

MAX_QUERY = 500  # characters
SHOWN, TRASHED, UNREADABLE = "shown", "trashed", "unreadable"
VERSION = 1  # of the tables; an index of another version is rebuilt
TABLES = """
CREATE TABLE pictures (
    id TEXT PRIMARY KEY,  -- of path, size and time: the same after a rebuild, another when the file changes
    path TEXT NOT NULL UNIQUE, folder TEXT NOT NULL, day TEXT NOT NULL, state TEXT NOT NULL,
    bytes INTEGER NOT NULL, mtime INTEGER NOT NULL,  -- nanoseconds
    width INTEGER NOT NULL, height INTEGER NOT NULL,
    text TEXT NOT NULL, prompt TEXT NOT NULL, words TEXT NOT NULL, model TEXT NOT NULL, seed TEXT NOT NULL,
    favourite INTEGER NOT NULL
);
CREATE INDEX newest ON pictures (state, day, mtime, path);
CREATE INDEX models ON pictures (state, model);
CREATE INDEX folders_of ON pictures (folder);
CREATE TABLE folders (path TEXT PRIMARY KEY, mtime INTEGER NOT NULL);
CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
COLUMNS = "id, path, state, bytes, mtime, width, height, text, prompt, model, seed, favourite"

_ID = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)
T = TypeVar("T")


class GalleryError(StableDiffusionError):
    """The gallery cannot do what was asked."""


@dataclass(frozen=True)
class Entry:
    """A picture of the gallery. `path` is below outputs/, `mtime` in nanoseconds, `text` as stored in the file."""

    id: str
    path: str
    state: str
    bytes: int
    mtime: int
    width: int
    height: int
    text: str
    prompt: str
    model: str
    seed: str
    favourite: bool

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.rpartition("/")[2]

    @property
    def day(self) -> str:
        """The day in the path, YYYY-MM-DD."""
        return day_of(self.path)

    def made_in(self, zone: str | None) -> datetime:
        """When the file was written, in a time zone such as "Europe/Berlin"; in this machine's if that is not known."""
        try:
            known = ZoneInfo(zone) if zone else None
        except (ZoneInfoNotFoundError, ValueError, OSError):  # from a browser: any text
            known = None
        return datetime.fromtimestamp(self.mtime / 1e9, known)


@dataclass(frozen=True)
class Query:
    """Which pictures to show. Each word of `search` must occur in the prompt or be the seed; "" matches all."""

    search: str = ""
    model: str = ""
    favourites: bool = False
    state: str = SHOWN

    def where(self) -> tuple[str, list[Any]]:
        """The SQL condition and its values."""
        terms, values = ["state = ?"], [self.state]
        if self.model:
            terms.append("model = ?")
            values.append(storable(self.model))
        if self.favourites:
            terms.append("favourite")
        for word in plain_words(self.search[:MAX_QUERY]).split():
            terms.append("instr(words, ?)")
            values.append(word)
        return " AND ".join(terms), values


@dataclass(frozen=True)
class Page:
    """One page of entries; `number` counts from 1 and lies within `pages`."""

    entries: list[Entry]
    total: int
    number: int
    pages: int


class Index:
    """The index in its file, or in memory if no file can be written. All methods may be called from any thread."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._open: sqlite3.Connection | None = None
        self._inode = 0
        self._in_memory = False

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the index; if that fails, on a new one. Raises GalleryError."""
        with self._lock:
            for last in (False, False, True):
                try:
                    return work(self._opened())
                except sqlite3.DatabaseError as error:
                    if "locked" in str(error):
                        raise GalleryError("The gallery's index is busy: try again in a moment.") from None
                    if last:
                        raise GalleryError(f"The gallery's index failed: {error}.") from None
                    log.warning("the gallery's index failed (%s): it is rebuilt", error)
                    self._give_up(error)
            raise AssertionError

    def page(self, query: Query, number: int, per_page: int) -> Page:
        """One page of entries, newest first; a number past the last page gives the last."""

        def work(index: sqlite3.Connection) -> Page:
            where, values = query.where()
            (total,) = index.execute(f"SELECT count(*) FROM pictures WHERE {where}", values).fetchone()
            pages = max(1, -(-total // per_page))
            at = min(max(1, number), pages)
            rows = index.execute(
                f"SELECT {COLUMNS} FROM pictures WHERE {where} "
                "ORDER BY day DESC, mtime DESC, path DESC LIMIT ? OFFSET ?",
                [*values, per_page, (at - 1) * per_page],
            )
            return Page([entry_of(row) for row in rows], total, at, pages)

        return self.do(work)

    def neighbours(self, entry: Entry, query: Query) -> tuple[Entry | None, Entry | None]:
        """The next newer and the next older entry of a query, or None."""

        def work(index: sqlite3.Connection) -> tuple[Entry | None, Entry | None]:
            where, values = query.where()
            found = []
            for sign, order in ((">", "ASC"), ("<", "DESC")):
                row = index.execute(
                    f"SELECT {COLUMNS} FROM pictures WHERE {where} AND (day, mtime, path) {sign} (?, ?, ?) "
                    f"ORDER BY day {order}, mtime {order}, path {order} LIMIT 1",
                    [*values, entry.day, entry.mtime, entry.path],
                ).fetchone()
                found.append(entry_of(row) if row else None)
            return found[0], found[1]

        return self.do(work)

    def models(self) -> list[str]:
        """The names of all models that the pictures were painted with."""
        asked = "SELECT DISTINCT model FROM pictures WHERE state = ? AND model != '' ORDER BY model"
        return [model for (model,) in self.do(lambda index: index.execute(asked, [SHOWN]).fetchall())]

    def find(self, ids: Iterable[str]) -> list[Entry]:
        """The entries of these ids, in their order; unknown ids are left out."""
        valid = [picture_id for picture_id in dict.fromkeys(ids) if _ID.fullmatch(picture_id)]
        asked = f"SELECT {COLUMNS} FROM pictures WHERE id = ? AND state != ?"

        def work(index: sqlite3.Connection) -> list[Entry]:
            return [entry_of(row) for one in valid for row in index.execute(asked, [one, UNREADABLE])]

        return self.do(work)

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    def _opened(self) -> sqlite3.Connection:
        if self._open is not None and (self._in_memory or self._inode_of_file() == self._inode):
            return self._open
        self.close()  # another process replaced the file, or somebody deleted it
        if not self._in_memory:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                log.warning("the gallery's index cannot be written (%s): it is kept in memory", error)
                self._in_memory = True
        where = ":memory:" if self._in_memory else str(self.file)
        index = self._open = sqlite3.connect(where, timeout=10, check_same_thread=False)
        index.execute("PRAGMA synchronous = NORMAL")
        _prepare(index)
        self._inode = self._inode_of_file()
        return index

    def _give_up(self, error: sqlite3.DatabaseError) -> None:
        self.close()
        if isinstance(error, sqlite3.OperationalError):  # a full disk, no permission, a network's file system
            self._in_memory = True
        else:
            for suffix in ("", "-journal"):
                Path(f"{self.file}{suffix}").unlink(missing_ok=True)

    def _inode_of_file(self) -> int:
        try:
            return os.stat(self.file).st_ino
        except OSError:
            return -1


def _prepare(index: sqlite3.Connection) -> None:
    """Create the tables if they are missing; raises sqlite3.DatabaseError if the file is broken."""
    (answer,) = index.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise sqlite3.DatabaseError(answer)
    (version,) = index.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    index.execute("BEGIN IMMEDIATE")  # if two processes start at once, the second finds the tables
    with index:
        (version,) = index.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            for (table,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                index.execute(f'DROP TABLE "{table}"')
            for statement in TABLES.split(";\n"):
                index.execute(statement)
            index.execute(f"PRAGMA user_version = {VERSION}")


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry of a row of COLUMNS."""
    return Entry(*(*row[:-1], bool(row[-1])))


def day_of(path: str) -> str:
    """The day in a picture's path."""
    return path.split("/")[-2]


def plain_words(text: str) -> str:
    """A text in the form that is searched: case-folded and normalised (NFKC)."""
    return storable(unicodedata.normalize("NFKC", text).casefold())


def storable(text: str) -> str:
    """A text without lone surrogates, which a hostile picture may carry and UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
