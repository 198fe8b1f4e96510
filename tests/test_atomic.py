"""Files appear whole or not at all, and never over one another; and nothing else in the package writes any."""

import errno
import os
import re
import threading
from pathlib import Path

import pytest

from stable_diffusion import atomic

PACKAGE = Path(atomic.__file__).parent
WRITES = re.compile(
    r"os\.(?:replace|rename|link)\(|\.rename\(|temporary\.replace\(|\.write_(?:text|bytes)\(|\.open\(\"[wxa]|"
    r"open\([^)]*\"[wxa]b?\""
)
WRITERS = {  # what writes besides, and why a reader can never see half of it
    "atomic.py": "the writer",
    "model_io/convert.py": "a folder or file inside a temporary one, which is renamed when complete",
    "model_io/safetensors_file.py": "a file inside that",
    "record/picture_files.py": "an encoded picture, to the writer's temporary file",
    "service/gallery.py": "lines added at the end of favourites.txt, each by one write",
    "training/loop.py": "lines added at the end of a log",
}


def listed(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("content", ["grün", "grün".encode()])
def test_a_small_file_is_written_and_replaced(tmp_path, content):
    target = tmp_path / "new" / "folder" / "a.txt"
    for text in ("old", content):
        atomic.write_whole(target, text)
    assert target.read_text(encoding="utf-8") == "grün"
    assert os.listdir(target.parent) == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_old_file(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), atomic.written(tmp_path / "a.txt") as temporary:
        temporary.write_text("ne")
        assert listed(tmp_path) == {"a.txt": "old", temporary.name: "ne"}
        raise error
    assert listed(tmp_path) == {"a.txt": "old"}


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, listed(tmp_path))))
    with atomic.written(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert seen == [(3, {temporary.name: "new"})]


def test_a_temporary_folder_goes_too(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic.temporary(tmp_path / "model") as temporary:
        (temporary / "unet").mkdir(parents=True)
        (temporary / "unet" / "config.json").write_text("{}")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.safetensors", ".safetensors"), ("a", ""), ("a" * 251 + ".png", ".png"), ("a." + "b" * 99, "")],
)
def test_a_temporary_name_ends_as_its_target_does_and_is_known_as_one(tmp_path, name, suffix):
    with atomic.temporary(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path and temporary.suffixes == [".part", suffix][: 1 + bool(suffix)]
        assert atomic.TEMPORARY.fullmatch(temporary.name)
    assert not atomic.TEMPORARY.fullmatch(name)


@pytest.mark.parametrize("links", [True, False])
def test_a_taken_name_is_never_replaced(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", _refusing(errno.EPERM))
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        atomic.take_name(tmp_path / "a", tmp_path / "b")
    assert listed(tmp_path) == {"a": "a", "b": "b"}
    atomic.take_name(tmp_path / "a", tmp_path / "c")
    assert listed(tmp_path) == {"b": "b", "c": "a"}


@pytest.mark.parametrize("refused", [errno.EPERM, errno.ENOSPC, errno.EOPNOTSUPP])
def test_a_name_that_cannot_be_taken_leaves_no_empty_file(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(os, "link", _refusing(refused))
    (tmp_path / "a").write_text("a")
    with pytest.raises(OSError):
        atomic.take_name(tmp_path / "absent", tmp_path / "b")
    monkeypatch.setattr(os, "replace", _refusing(errno.EACCES))
    with pytest.raises(OSError):
        atomic.take_name(tmp_path / "a", tmp_path / "b")
    assert listed(tmp_path) == {"a": "a"}


@pytest.mark.parametrize("links", [True, False])
def test_many_who_want_one_name_get_a_name_each(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", _refusing(errno.EPERM))
    sources = [tmp_path / str(i) / "a.txt" for i in range(8)]
    for i, source in enumerate(sources):
        atomic.write_whole(source, str(i))
    start = threading.Barrier(8)

    def move(source):
        start.wait(10)
        atomic.move(source, tmp_path / "folder")

    threads = [threading.Thread(target=move, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = listed(tmp_path / "folder")
    assert sorted(found) == sorted(["a.txt", *(f"a-{i}.txt" for i in range(2, 9))])
    assert sorted(found.values()) == [str(i) for i in range(8)]


def test_nothing_is_moved_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to("elsewhere")
    (tmp_path / "a").write_text("a")
    with pytest.raises(FileNotFoundError, match="link"):
        atomic.move(tmp_path / "a", tmp_path / "folder")
    assert (tmp_path / "a").exists() and not list((tmp_path / "elsewhere").iterdir())


def test_nothing_else_in_the_package_writes_files():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if WRITES.search(path.read_text(encoding="utf-8"))
    }
    assert found == WRITERS.keys()


def _refusing(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse
