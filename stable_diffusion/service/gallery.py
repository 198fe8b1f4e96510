"""The finished pictures under outputs/YYYY-MM-DD/: an index to page and search in, thumbnails, favourites, a trash.

The files are the truth. The index is built from them, and rebuilt if it is missing or broken, so saving a picture
needs no update of it. Any number of processes may work on the same folder.
"""

import contextlib
import io
import logging
import os
import re
import sqlite3
import time
import zipfile
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO

from PIL import Image

from .. import atomic
from ..errors import PictureError, StableDiffusionError
from ..pictures.formats import WRITTEN_SUFFIXES
from ..pictures.reading import MAX_PIXELS, open_picture
from ..record import picture_files, reading
from ..record.parameters import Parameters
from .gallery_index import (
    COLUMNS,
    SHOWN,
    TRASHED,
    UNREADABLE,
    Entry,
    GalleryError,
    Index,
    Page,
    Query,
    day_of,
    entry_of,
    plain_words,
    storable,
)

PER_PAGE = 24
THUMBNAIL_SIDE = 320  # pixels: sharp at half of that, on a screen with two pixels to the point
MAX_ZIP_BYTES = 256 * 2**20  # it is built in memory
BATCH = 50  # pictures read between two commits
SETTLED = 3.0  # seconds; some disks store times that coarsely: a younger folder may change without a new time
STALE_PART = 24 * 3600.0  # seconds; an older half-written file was left by a killed process
HIDDEN, TRASH, FAVOURITES = ".gallery", ".trash", "favourites.txt"

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_PATH = re.compile(rf"({re.escape(TRASH)}/)?{_DAY.pattern}/[^/\0]+")

log = logging.getLogger(__name__)


class Gallery:
    """The pictures below one folder. Every method may be called from any thread."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = Path(os.path.realpath(outputs))  # may be a symbolic link itself; nothing inside it may
        self._hidden = self.outputs / HIDDEN
        self._index = Index(self._hidden / "index.sqlite")
        self.models = self._index.models
        self.find = self._index.find
        self.neighbours = self._index.neighbours
        self.close = self._index.close

    # --- Looking

    def page(self, query: Query, number: int = 1, per_page: int = PER_PAGE) -> Page:
        """One page of entries, newest first; a number past the last page gives the last."""
        return self._index.page(query, number, per_page)

    def get(self, picture_id: str | None) -> Entry | None:
        """The entry with this id, or None if it does not exist (any more)."""
        found = self.find([picture_id] if picture_id else [])
        return found[0] if found else None

    def file(self, entry: Entry) -> Path:
        """The file of an entry. Raises GalleryError if it is gone or reached through a symbolic link."""
        path = self.outputs / entry.path
        inside = _PATH.fullmatch(entry.path) and os.path.realpath(path) == str(path)
        if not inside or not path.is_file():
            raise GalleryError(f"There is no picture {entry.name!r} in the gallery any more.")
        return path

    def thumbnail(self, entry: Entry) -> bytes | None:
        """A small JPEG of the picture, cached on the disk; None if the picture cannot be read."""
        cached = self._thumbnail_file(entry.id)
        with contextlib.suppress(OSError):
            return cached.read_bytes()
        try:
            image = open_picture(self.file(entry))
        except StableDiffusionError as error:
            log.warning("no thumbnail of %s: %s", entry.path, error)
            return None
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        try:
            atomic.write_whole(cached, buffer.getvalue())
        except OSError as error:
            log.warning("could not keep a thumbnail: %s", error)
        return buffer.getvalue()

    def zip(self, ids: Iterable[str]) -> bytes:
        """A zip of the chosen files, unchanged. Raises GalleryError if they exceed MAX_ZIP_BYTES."""
        entries = self.find(ids)
        if (total := sum(entry.bytes for entry in entries)) > MAX_ZIP_BYTES:
            raise GalleryError(
                f"{len(entries)} pictures of {total // 2**20} MB are too much for one zip: choose fewer, "
                f"up to {MAX_ZIP_BYTES // 2**20} MB."
            )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for entry in entries:
                try:
                    archive.write(self.file(entry), entry.path.removeprefix(f"{TRASH}/"))
                except (GalleryError, OSError) as error:  # deleted meanwhile: the others still go in
                    log.warning("left out of a zip: %s", error)
        return buffer.getvalue()

    # --- Changing

    def favour(self, ids: Iterable[str], favourite: bool = True) -> None:
        """Mark pictures as favourites, or unmark them. Raises OSError if that cannot be written."""
        self._note_favourites([(favourite, entry.bytes, entry.path) for entry in self.find(ids)])
        self._index.do(self._apply_favourites)

    def delete(self, ids: Iterable[str]) -> list[str]:
        """Move pictures to the trash; return their new ids, which `restore` takes."""
        return self._move(self.find(ids), SHOWN, self.outputs / TRASH, TRASHED)

    def restore(self, ids: Iterable[str]) -> list[str]:
        """Move pictures back from the trash, renamed if their name is taken; return their new ids."""
        return self._move(self.find(ids), TRASHED, self.outputs, SHOWN)

    def empty_trash(self) -> int:
        """Delete the pictures in the trash for good; return how many there were."""
        while self.scan():
            pass
        asked = f"SELECT {COLUMNS} FROM pictures WHERE state = ?"
        entries = [entry_of(row) for row in self._index.do(lambda index: index.execute(asked, [TRASHED]).fetchall())]
        count = 0
        for entry in entries:
            with contextlib.suppress(GalleryError, FileNotFoundError):  # another tab was quicker
                self.file(entry).unlink()
                count += 1
        for folder in {_folder(entry.path) for entry in entries}:
            with contextlib.suppress(OSError):  # something else lies in it
                (self.outputs / folder).rmdir()
        self.scan()
        return count

    def _move(self, entries: Sequence[Entry], state: str, into: Path, new_state: str) -> list[str]:
        moved = []
        favourites = []
        try:
            for entry in entries:
                if entry.state != state:
                    continue
                try:
                    target = atomic.move(self.file(entry), into / entry.day)
                except (GalleryError, FileNotFoundError):  # another tab was quicker
                    continue
                path = target.relative_to(self.outputs).as_posix()
                moved.append((_picture_id(path, entry.bytes, entry.mtime), path, _folder(path), new_state, entry.id))
                if entry.favourite:
                    favourites += [(False, entry.bytes, entry.path), (True, entry.bytes, path)]
        finally:
            self._note_favourites(favourites)
            self._index.do(lambda index: self._set_places(index, moved))
        return [new_id for new_id, *_ in moved]

    def _set_places(self, index: sqlite3.Connection, moved: Iterable[tuple]) -> None:
        place = "UPDATE OR REPLACE pictures SET id = ?, path = ?, folder = ?, state = ? WHERE id = ?"
        with index:
            for new in moved:
                self._thumbnail_file(new[-1]).unlink(missing_ok=True)
                if not index.execute(place, new).rowcount:  # another process scanned meanwhile, and dropped it
                    self._add(index, [new[1]])
        self._apply_favourites(index)

    def _add(self, index: sqlite3.Connection, paths: Iterable[str]) -> None:
        rows = [row for path in paths if (row := self._read(path))]
        index.executemany(f"INSERT OR REPLACE INTO pictures VALUES ({', '.join('?' * 15)})", rows)

    # --- The index follows the files

    def scan(self, seconds: float = 1.0) -> int:
        """Update the index from the files, newest first; return how many are left to read after `seconds`.

        Only folders that changed are read, so this is quick when nothing did.
        """
        return self._index.do(lambda index: self._scan(index, time.monotonic() + seconds))

    def _scan(self, index: sqlite3.Connection, end: float) -> int:
        now = time.time()
        folders = self._folders()
        known = dict(index.execute("SELECT path, mtime FROM folders"))
        for gone in known.keys() - folders.keys():
            rows = index.execute("SELECT path FROM pictures WHERE folder = ?", [gone]).fetchall()
            self._forget(index, [path for (path,) in rows])
            with index:
                index.execute("DELETE FROM folders WHERE path = ?", [gone])
        left = changes = 0
        for folder in sorted(folders.keys(), key=_day_of_folder, reverse=True):
            mtime = folders[folder]
            if known.get(folder) == mtime:
                continue
            if changes and time.monotonic() >= end:  # one batch of a call is enough to get on
                left += self._estimate(index, folder)
                continue
            unread, changed = self._scan_folder(index, folder, end)
            left, changes = left + unread, changes + changed
            settled = not unread and now - mtime / 1e9 > SETTLED
            with index:
                index.execute("INSERT OR REPLACE INTO folders VALUES (?, ?)", [folder, mtime if settled else -1])
        self._apply_favourites(index, always=bool(changes))
        return left

    def _folders(self) -> dict[str, int]:
        """The folders of days, in outputs/ and in the trash, with their modification times."""
        found = {}
        for parent in ("", TRASH):
            if (self.outputs / parent).is_symlink():
                continue
            try:
                for item in os.scandir(self.outputs / parent):
                    if _DAY.fullmatch(item.name) and item.is_dir(follow_symlinks=False):
                        found[f"{parent}/{item.name}".lstrip("/")] = item.stat(follow_symlinks=False).st_mtime_ns
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def _estimate(self, index: sqlite3.Connection, folder: str) -> int:
        """About how many files are left to read in a folder that changed, at least 1: a count of names is quick."""
        with contextlib.suppress(OSError):
            (known,) = index.execute("SELECT COUNT(*) FROM pictures WHERE folder = ?", [folder]).fetchone()
            return max(1, len(os.listdir(self.outputs / folder)) - known)
        return 1

    def _scan_folder(self, index: sqlite3.Connection, folder: str, end: float) -> tuple[int, int]:
        """The number of files left to read, and the number of changes."""
        here = self._files(folder)
        rows = index.execute("SELECT path, bytes, mtime FROM pictures WHERE folder = ?", [folder])
        known = {path: (size, mtime) for path, size, mtime in rows}
        gone = known.keys() - here.keys()
        self._forget(index, gone)
        new = sorted(
            (path for path in here if known.get(path) != here[path]), key=lambda path: here[path][1], reverse=True
        )
        done = 0
        while done < len(new) and (done == 0 or time.monotonic() < end):
            batch = new[done : done + BATCH]
            self._drop_thumbnails(index, [path for path in batch if path in known])
            with index:
                self._add(index, batch)
            done += len(batch)
        return len(new) - done, len(gone) + done

    def _files(self, folder: str) -> dict[str, tuple[int, int]]:
        """The pictures of a folder, with size and time; deletes what a killed process left half-written."""
        found = {}
        try:
            for item in os.scandir(self.outputs / folder):
                try:
                    if not item.is_file(follow_symlinks=False):
                        continue
                    stat = item.stat(follow_symlinks=False)
                    if _is_picture(item.name):
                        found[f"{folder}/{item.name}"] = (stat.st_size, stat.st_mtime_ns)
                    elif atomic.TEMPORARY.fullmatch(item.name) and time.time() - stat.st_mtime > STALE_PART:
                        os.unlink(item.path)
                except OSError:  # gone since
                    continue
        except OSError:
            log.warning("could not look into %s", folder)
        return found

    def _read(self, path: str) -> tuple | None:
        """The row of a file, or None if it is gone (so that it does not count as unreadable if it comes back)."""
        try:
            with open(self.outputs / path, "rb") as file:
                stat = os.fstat(file.fileno())
                size, mtime = stat.st_size, stat.st_mtime_ns
                state, width, height, text = _look(file, path)
        except OSError:
            return None
        if state == SHOWN and path.startswith(f"{TRASH}/"):
            state = TRASHED
        found = reading.of_text(text).parameters or Parameters()
        seed = "" if found.seed is None else str(found.seed)
        strings = [text, found.prompt, plain_words(f"{found.prompt}\n{seed}\n"), found.model or "", seed]
        return (
            *(_picture_id(path, size, mtime), path, _folder(path), day_of(path), state, size, mtime, width, height),
            *map(storable, strings),
            0,
        )

    def _forget(self, index: sqlite3.Connection, paths: Collection[str]) -> None:
        """Remove deleted files from the index."""
        if not paths:
            return
        self._drop_thumbnails(index, paths)
        with index:
            index.execute("BEGIN IMMEDIATE")  # keeps other writers out; files that were just moved back stay
            gone = [(path,) for path in paths if not os.path.lexists(self.outputs / path)]
            index.executemany("DELETE FROM pictures WHERE path = ?", gone)

    def _drop_thumbnails(self, index: sqlite3.Connection, paths: Iterable[str]) -> None:
        for path in paths:
            for (picture_id,) in index.execute("SELECT id FROM pictures WHERE path = ?", [path]).fetchall():
                self._thumbnail_file(picture_id).unlink(missing_ok=True)

    # --- Favourites: one line each in a file, `+ BYTES PATH` or `- BYTES PATH`; the last line of a picture counts

    def _note_favourites(self, lines: Iterable[tuple[bool, int, str]]) -> None:
        text = "".join(f"{'+' if on else '-'} {size} {path}\n" for on, size, path in lines if "\n" not in path)
        if text:
            self.outputs.mkdir(parents=True, exist_ok=True)
            with open(self.outputs / FAVOURITES, "ab") as file:  # a single write, so lines of two processes never mix
                file.write(text.encode())

    def _apply_favourites(self, index: sqlite3.Connection, always: bool = True) -> None:
        file = self.outputs / FAVOURITES
        stamp = _stamp(file)
        noted = index.execute("SELECT value FROM notes WHERE key = 'favourites'").fetchone()
        if not always and noted == (stamp,):
            return
        text = file.read_bytes().decode("utf-8", "replace") if stamp else ""
        chosen: dict[tuple[str, str], bool] = {}
        for line in text.split("\n"):
            sign, _, rest = line.partition(" ")
            size, _, path = rest.partition(" ")
            chosen[(path, size)] = sign == "+"
        with index:
            index.execute("UPDATE pictures SET favourite = 0 WHERE favourite")
            index.executemany(
                "UPDATE pictures SET favourite = 1 WHERE path = ? AND bytes = CAST(? AS INTEGER)",
                [key for key, on in chosen.items() if on],
            )
            index.execute("INSERT OR REPLACE INTO notes VALUES ('favourites', ?)", [stamp])

    def _thumbnail_file(self, picture_id: str) -> Path:
        return self._hidden / "thumbnails" / picture_id[:2] / f"{picture_id}.jpg"


def _look(file: IO[bytes], path: str) -> tuple[str, int, int, str]:
    """The state, width, height and text of a picture's file."""
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(f"{width} x {height} pixels are too many.")
            file.seek(0)
            return SHOWN, width, height, picture_files.read_text(file) or ""
    except (PictureError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("%s is left out of the gallery: %s", path, error)
        return UNREADABLE, 0, 0, ""


def _picture_id(path: str, size: int, mtime: int) -> str:
    return blake2b(f"{size} {mtime} {path}".encode(), digest_size=8).hexdigest()


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _day_of_folder(folder: str) -> str:
    return folder.rpartition("/")[2]


def _stamp(file: Path) -> str:
    """Size and time of a file, which change with it; "" if there is none."""
    try:
        stat = os.stat(file)
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_picture(name: str) -> bool:
    return name.lower().endswith(WRITTEN_SUFFIXES) and not name.startswith(".") and _is_utf8(name)


def _is_utf8(name: str) -> bool:
    return storable(name) == name
