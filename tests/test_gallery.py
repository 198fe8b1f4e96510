"""The gallery: what it finds, keeps and gives away, also where files, index or disk are not as they should be."""

import io
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.service import gallery as gallery_module
from stable_diffusion.service.gallery import FAVOURITES, TRASH, Gallery, GalleryError
from stable_diffusion.service.gallery_index import TRASHED, Query

ROOT = Path(__file__).resolve().parents[1]
DAY = "2026-03-01"
OLD = 1_700_000_000  # a time long settled


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def gallery(outputs):
    gallery = Gallery(outputs)
    yield gallery
    gallery.close()


def save(outputs, prompt="a red house", seed=1, day=DAY, suffix=".png", colour="teal", **more):
    parameters = Parameters(prompt=prompt, seed=seed, steps=20, sampler="Euler", width=32, height=24, **more)
    return picture_files.save_new_picture(Image.new("RGB", (32, 24), colour), outputs / day, parameters, suffix)


def settle(outputs):
    """Make all folders look as if nothing had happened for long."""
    for folder in [*outputs.glob("2*"), *outputs.glob(f"{TRASH}/2*")]:
        os.utime(folder, (OLD, OLD))


def entries(gallery, **query):
    while gallery.scan():
        pass
    return gallery.page(Query(**query)).entries


def names(gallery, **query):
    return [entry.path for entry in entries(gallery, **query)]


# --- Finding


def test_every_kind_of_picture_is_found_with_its_parameters(outputs, gallery):
    for seed, suffix in enumerate((".png", ".jpg", ".webp", ".jpeg")):
        save(outputs, seed=seed, suffix=suffix, model="postcards-tiny")
    found = entries(gallery)
    assert {entry.path for entry in found} == {path.relative_to(outputs).as_posix() for path in outputs.glob("2*/*")}
    for entry in found:
        assert (entry.prompt, entry.model, entry.width, entry.height) == ("a red house", "postcards-tiny", 32, 24)
        assert Parameters.from_text(entry.text) == picture_files.read_parameters(gallery.file(entry))


def test_the_newest_come_first(outputs, gallery):
    paths = [save(outputs, seed=seed, day=day) for seed, day in enumerate(("2026-03-01", "2026-03-02", "2026-03-01"))]
    for path, moment in zip(paths, (OLD, OLD + 1, OLD + 2), strict=True):
        os.utime(path, (moment, moment))
    assert [entry.seed for entry in entries(gallery)] == ["1", "2", "0"]


def test_new_changed_and_deleted_files_are_noticed_by_looking_at_changed_folders_only(outputs, gallery, monkeypatch):
    first, _ = save(outputs, seed=1), save(outputs, seed=2, day="2026-02-01")
    settle(outputs)
    entries(gallery)
    looked = []
    monkeypatch.setattr(gallery, "_files", lambda folder, look=gallery._files: looked.append(folder) or look(folder))
    entries(gallery)
    assert looked == []
    save(outputs, "a blue tent", seed=3)
    first.unlink()
    assert [entry.seed for entry in entries(gallery)] == ["3", "2"]
    assert set(looked) == {DAY}
    (changed,) = (path for path in (outputs / DAY).iterdir())
    picture_files.save_picture(Image.new("RGB", (8, 8)), changed, Parameters(prompt="another"))
    assert entries(gallery)[0].prompt == "another"


def test_a_picture_saved_in_the_moment_of_a_scan_is_not_missed(outputs, gallery):
    """The folder's time alone would not tell, on a disk that counts whole seconds."""
    save(outputs, seed=1)
    entries(gallery)
    stamp = os.stat(outputs / DAY)
    save(outputs, seed=2)
    os.utime(outputs / DAY, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert len(entries(gallery)) == 2


def test_a_scan_stops_in_time_and_goes_on_with_the_newest_first(outputs, gallery, monkeypatch):
    monkeypatch.setattr(gallery_module, "BATCH", 2)
    for seed in range(5):
        os.utime(save(outputs, seed=seed), (OLD + seed, OLD + seed))
    assert gallery.scan(0) == 3
    assert [entry.seed for entry in gallery.page(Query()).entries] == ["4", "3"]
    assert (gallery.scan(0), gallery.scan(0)) == (1, 0)
    assert len(gallery.page(Query()).entries) == 5


def test_a_scan_of_many_folders_reads_no_batch_of_each_after_its_time(outputs, gallery, monkeypatch):
    monkeypatch.setattr(gallery_module, "BATCH", 2)
    days = [f"2025-01-{day:02d}" for day in range(1, 8)]
    for day in days:
        for seed in range(3):
            save(outputs, day=day, seed=seed)
    assert gallery.scan(0) == 19
    assert {entry.day for entry in gallery.page(Query()).entries} == {days[-1]}, "the newest first"
    calls = 1
    while left := gallery.scan(0):
        calls += 1
        assert left <= 21 - 2 * calls + len(days)
    assert len(gallery.page(Query()).entries) == 21


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", 4),
        ("house", 2),
        ("RED hou", 1),
        ("house red", 1),
        ("zebra", 0),
        ("100%", 1),
        ("_", 0),
        ("' OR 1=1 --", 0),
        ("😀", 1),
        ("بيت", 1),
        ("cafe\u0301", 1),
        ("STRASSE", 1),
        ("424242", 1),
        ("rain", 0),
        ("a " * 5000, 4),
    ],
)
def test_search(outputs, gallery, search, found):
    save(outputs, "a red\nhouse", negative="rain", seed=424242)
    save(outputs, "a house, 100% blue 😀")
    save(outputs, "a بيت in the café")
    save(outputs, "a straße")
    assert len(entries(gallery, search=search)) == found


def test_filters(outputs, gallery):
    save(outputs, seed=1, model="postcards-tiny")
    save(outputs, seed=2, model="dreamshaper-8")
    save(outputs, seed=3)
    assert [entry.seed for entry in entries(gallery, model="dreamshaper-8")] == ["2"]
    assert gallery.models() == ["dreamshaper-8", "postcards-tiny"]
    assert entries(gallery, favourites=True) == []


def test_pages_and_neighbours(outputs, gallery):
    for seed in range(5):
        os.utime(save(outputs, seed=seed), (OLD + seed // 2, OLD + seed // 2))  # some of the same moment
    everything = entries(gallery)
    pages = [gallery.page(Query(), number, per_page=2) for number in (1, 2, 3, 99, -1)]
    assert [(page.number, page.pages, page.total) for page in pages] == [(n, 3, 5) for n in (1, 2, 3, 3, 1)]
    assert [entry for page in pages[:3] for entry in page.entries] == everything
    for i, entry in enumerate(everything):
        newer, older = gallery.neighbours(entry, Query())
        assert newer == (everything[i - 1] if i else None)
        assert older == (everything[i + 1] if i < 4 else None)


def test_a_picture_of_no_parameters_or_hostile_ones_is_shown_all_the_same(outputs, gallery):
    (outputs / DAY).mkdir()
    Image.new("RGB", (8, 8)).save(outputs / DAY / "plain.png")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", 'a\0b\nSteps: 1, Seed: 99999999999999999999, Model: "\\ud800", Size: 8x8', zip=True)
    Image.new("RGB", (8, 8)).save(outputs / DAY / "hostile\udcff.png".encode("utf-8", "replace").decode(), pnginfo=info)
    found = {entry.name: entry for entry in entries(gallery)}
    assert found["plain.png"].prompt == ""
    assert found["hostile?.png"].seed == "99999999999999999999"
    assert found["hostile?.png"].model == "?"


def test_what_is_no_picture_is_left_out_and_looked_at_again_when_it_changes(outputs, gallery):
    (outputs / DAY).mkdir()
    for name, content in {"a.png": b"", "b.jpg": b"no picture", "c.webp": b"RIFF", "d.txt": b"", ".e.png": b""}.items():
        (outputs / DAY / name).write_bytes(content)
    (outputs / "notes").mkdir()
    assert entries(gallery) == []
    picture_files.save_picture(Image.new("RGB", (8, 8)), outputs / DAY / "a.png")
    assert names(gallery) == [f"{DAY}/a.png"]


def test_what_a_killed_process_left_goes_away_in_time(outputs, gallery):
    save(outputs)
    new, old, other = (outputs / DAY / name for name in (f".{'a' * 16}.part", f".{'b' * 16}.part", ".precious.part"))
    for path in (new, old, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (OLD, OLD))
    assert len(entries(gallery)) == 1
    assert [path.exists() for path in (new, old, other)] == [True, False, True]


# --- Nothing outside


def test_links_are_neither_found_nor_followed(outputs, gallery, tmp_path):
    outside = tmp_path / "outside"
    secret = save(outside, "a secret")
    save(outputs, "inside")
    (outputs / DAY / "link.png").symlink_to(secret)
    (outputs / "2026-04-01").symlink_to(secret.parent)
    assert [entry.prompt for entry in entries(gallery)] == ["inside"]
    (entry,) = gallery.page(Query()).entries
    (outputs / entry.path).unlink()
    (outputs / entry.path).symlink_to(secret)  # exchanged after it was found
    with pytest.raises(GalleryError, match="no picture"):
        gallery.file(entry)
    assert gallery.thumbnail(entry) is None
    assert gallery.delete([entry.id]) == []
    assert zipfile.ZipFile(io.BytesIO(gallery.zip([entry.id]))).namelist() == []
    assert secret.exists()


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", f"{DAY}/../../secret.png", ".gallery/index.sqlite", ""]
)
def test_a_tampered_index_leads_nowhere(outputs, gallery, tmp_path, path):
    save(outputs)
    save(tmp_path, "a secret").rename(tmp_path / "secret.png")
    (entry,) = entries(gallery)
    with sqlite3.connect(outputs / ".gallery" / "index.sqlite") as index:
        index.execute("UPDATE pictures SET path = ?", [path])
    for refused in gallery.find([entry.id]):
        with pytest.raises(GalleryError):
            gallery.file(refused)


@pytest.mark.parametrize(
    "picture_id", ["", "../../etc/passwd", f"{DAY}/00001-1.png", "0" * 16, "'; DROP TABLE pictures"]
)
def test_only_ids_open_pictures(outputs, gallery, picture_id):
    save(outputs)
    entries(gallery)
    assert gallery.get(picture_id) is None
    assert gallery.delete([picture_id]) == []


def test_a_trash_that_is_a_link_takes_nothing(outputs, gallery, tmp_path):
    path = save(outputs)
    (tmp_path / "elsewhere" / DAY).mkdir(parents=True)
    (outputs / TRASH).symlink_to(tmp_path / "elsewhere")
    (entry,) = entries(gallery)
    assert gallery.delete([entry.id]) == []
    assert path.exists()
    assert not list((tmp_path / "elsewhere" / DAY).iterdir())


def test_outputs_may_be_a_link_itself(outputs, tmp_path):
    save(outputs)
    (tmp_path / "link").symlink_to(outputs)
    gallery = Gallery(tmp_path / "link")
    (entry,) = entries(gallery)
    assert gallery.file(entry).is_file()


# --- Thumbnails and downloads


def test_thumbnails_are_small_and_cached_until_the_picture_changes(outputs, gallery, monkeypatch):
    path = picture_files.save_new_picture(Image.new("RGB", (1024, 512), "red"), outputs / DAY)
    (entry,) = entries(gallery)
    first = gallery.thumbnail(entry)
    assert Image.open(io.BytesIO(first)).size == (320, 160)
    monkeypatch.setattr(gallery_module, "open_picture", None)
    assert gallery.thumbnail(entry) == first
    monkeypatch.undo()
    picture_files.save_picture(Image.new("RGB", (64, 64), "blue"), path)
    (entry,) = entries(gallery)
    assert Image.open(io.BytesIO(gallery.thumbnail(entry))).size == (64, 64)
    assert len(list((outputs / ".gallery" / "thumbnails").rglob("*.jpg"))) == 1, "the old one is gone"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_forged_size_is_left_out_undecoded(outputs, gallery):
    (outputs / DAY).mkdir()
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, "PNG")
    content = bytearray(small.getvalue())
    content[16:24] = (12_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (outputs / DAY / "bomb.png").write_bytes(content)
    assert entries(gallery) == []


def test_a_zip_holds_the_files_as_they_are(outputs, gallery, monkeypatch):
    paths = [save(outputs, seed=seed, suffix=suffix) for seed, suffix in enumerate((".png", ".jpg", ".webp"))]
    found = entries(gallery)
    archive = zipfile.ZipFile(io.BytesIO(gallery.zip([entry.id for entry in found])))
    assert {name: archive.read(name) for name in archive.namelist()} == {
        path.relative_to(outputs).as_posix(): path.read_bytes() for path in paths
    }
    monkeypatch.setattr(gallery_module, "MAX_ZIP_BYTES", 100)
    with pytest.raises(GalleryError, match="choose fewer"):
        gallery.zip([entry.id for entry in found])


# --- Favourites, trash


def test_favourites_survive_a_rebuild_the_trash_and_another_process(outputs, gallery):
    for seed in range(3):
        save(outputs, seed=seed)
    kept = next(entry for entry in entries(gallery) if entry.seed == "1")
    gallery.favour([kept.id])
    assert [entry.seed for entry in entries(gallery, favourites=True)] == ["1"]
    gallery.close()
    (outputs / ".gallery" / "index.sqlite").unlink()
    other = Gallery(outputs)
    assert [entry.seed for entry in entries(other, favourites=True)] == ["1"]
    trashed = other.delete([kept.id])
    assert [entry.favourite for entry in entries(other, state=TRASHED)] == [True]
    other.restore(trashed)
    assert [entry.id for entry in entries(gallery, favourites=True)] == [kept.id], "ids stay, too"
    other.favour([kept.id], False)
    assert entries(gallery, favourites=True) == []


def test_another_picture_under_a_favourites_name_is_no_favourite(outputs, gallery):
    path = save(outputs)
    gallery.favour([entry.id for entry in entries(gallery)])
    path.unlink()
    assert save(outputs, "something longer than before") == path
    assert [entry.favourite for entry in entries(gallery)] == [False]


def test_a_torn_file_of_favourites_is_no_error(outputs, gallery):
    path = save(outputs)
    (outputs / FAVOURITES).write_bytes(f"+\n\xff\n+ {path.stat().st_size} {DAY}/{path.name}\n+ 12".encode("latin-1"))
    assert len(entries(gallery, favourites=True)) == 1


def test_delete_undo_and_empty(outputs, gallery):
    first, second = save(outputs, seed=1), save(outputs, seed=2)
    content = first.read_bytes()
    ids = {entry.seed: entry.id for entry in entries(gallery)}
    trashed = gallery.delete([ids["1"]])
    assert not first.exists()
    assert (names(gallery), len(names(gallery, state=TRASHED))) == ([f"{DAY}/{second.name}"], 1)
    assert gallery.delete([ids["1"]]) == [], "gone already"
    assert gallery.restore(trashed) == [ids["1"]]
    assert first.read_bytes() == content
    gallery.delete([ids["1"], ids["2"]])
    assert gallery.empty_trash() == 2
    assert (names(gallery), names(gallery, state=TRASHED)) == ([], [])
    assert not list((outputs / TRASH).rglob("*.png"))


@pytest.mark.parametrize("links", [True, False])
def test_a_name_taken_meanwhile_is_never_overwritten(outputs, gallery, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    first = save(outputs, "first")
    (entry,) = entries(gallery)
    trashed = gallery.delete([entry.id])
    assert save(outputs, "second", seed=1) == first
    gallery.restore(trashed)
    found = {entry.name: entry.prompt for entry in entries(gallery)}
    assert found == {first.name: "second", f"{first.stem}-2.png": "first"}


def test_a_delete_that_the_disk_refuses_loses_nothing(outputs, gallery, monkeypatch):
    path = save(outputs)
    (entry,) = entries(gallery)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="space"):
        gallery.delete([entry.id])
    assert path.exists()
    assert names(gallery) == [f"{DAY}/{path.name}"]


# --- The index


@pytest.mark.parametrize("content", [b"", b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_broken_index_is_made_anew(outputs, gallery, content):
    save(outputs)
    before = entries(gallery)
    gallery.close()
    (outputs / ".gallery" / "index.sqlite").write_bytes(content)
    assert entries(Gallery(outputs)) == before


def test_an_index_that_breaks_in_use_is_made_anew(outputs, gallery):
    for seed in range(50):
        save(outputs, seed=seed)
    before = entries(gallery)
    file = outputs / ".gallery" / "index.sqlite"
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * (file.stat().st_size - 4096))
    settle(outputs)
    entries(gallery)
    assert {entry.id for entry in gallery.page(Query(), per_page=100).entries} >= {entry.id for entry in before}


def test_an_index_of_another_version_is_made_anew(outputs):
    save(outputs)
    (outputs / ".gallery").mkdir()
    with sqlite3.connect(outputs / ".gallery" / "index.sqlite") as index:
        index.execute("CREATE TABLE pictures (other TEXT)")
        index.execute("PRAGMA user_version = 99")
    assert len(entries(Gallery(outputs))) == 1


def test_an_index_deleted_in_use_is_made_anew(outputs, gallery):
    save(outputs)
    before = entries(gallery)
    (outputs / ".gallery" / "index.sqlite").unlink()
    assert entries(gallery) == before


def test_without_a_place_for_the_index_it_is_kept_in_memory(outputs):
    save(outputs)
    (outputs / ".gallery").write_text("a file in the way")
    gallery = Gallery(outputs)
    (entry,) = entries(gallery)
    assert gallery.thumbnail(entry)


def test_a_full_disk_leaves_a_gallery_in_memory(outputs, gallery, monkeypatch):
    save(outputs)
    real = sqlite3.connect

    def connect(where, *arguments, **named):
        index = real(where, *arguments, **named)
        if where != ":memory:":
            index.execute("PRAGMA max_page_count = 1")
        return index

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert len(entries(gallery)) == 1


def test_no_folder_at_all_is_an_empty_gallery(tmp_path):
    gallery = Gallery(tmp_path / "absent")
    assert gallery.scan() == 0
    assert gallery.page(Query()).total == 0
    assert gallery.empty_trash() == 0


def test_threads_and_processes_share_one_gallery(outputs):
    for seed in range(30):
        save(outputs, seed=seed)
    code = (
        "import sys; from pathlib import Path\n"
        "from stable_diffusion.service.gallery import Gallery, Query\n"
        "gallery = Gallery(Path(sys.argv[1]))\n"
        "for _ in range(10):\n"
        "    gallery.scan(); page = gallery.page(Query())\n"
        "    ids = gallery.delete([entry.id for entry in page.entries[::3]]); gallery.restore(ids)\n"
        "    gallery.favour([entry.id for entry in page.entries[:2]])\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(outputs)], cwd=ROOT) for _ in range(2)]
    gallery, wrong = Gallery(outputs), []

    def look():
        try:
            while any(process.poll() is None for process in processes):
                gallery.scan()
                gallery.page(Query())
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert [process.wait(60) for process in processes] == [0, 0]
    for thread in threads:
        thread.join()
    assert wrong == []
    settle(outputs)
    entries(gallery)
    assert gallery.page(Query()).total == 30
    assert len(list(outputs.glob("2*/*.png"))) == 30


def test_times_are_the_browsers(gallery, outputs):
    path = save(outputs)
    moment = datetime(2026, 7, 1, 22, 30, tzinfo=UTC)
    os.utime(path, (moment.timestamp(),) * 2)
    gallery.scan()
    (entry,) = gallery.page(Query()).entries
    assert entry.made_in("Asia/Tokyo").strftime("%d %H:%M") == "02 07:30"
    assert entry.made_in("America/New_York").strftime("%d %H:%M") == "01 18:30"
    for unknown in (None, "", "Nowhere/Land", "../../etc/passwd", "/etc/passwd", "\0", "x" * 10_000):
        assert entry.made_in(unknown) == datetime.fromtimestamp(moment.timestamp()), unknown


def test_ten_thousand_pictures_do_not_slow_it(outputs, gallery):
    """Rows only: the files behind them are read once, when they are new."""
    entries(gallery)
    rows = []
    for i in range(10_000):
        prompt = f"a red house number {i} on green hills at sunset, with clouds and a long, long tail of words " * 3
        path = f"2026-01-{i % 28 + 1:02d}/{i:05d}-{i}.png"
        values = [
            f"{i:016x}",
            path,
            path[:10],
            path[:10],
            "shown",
            9,
            i,
            8,
            8,
            prompt,
            prompt,
            prompt,
            "m",
            str(i),
            i % 9 == 0,
        ]
        rows.append(values)
    gallery._index.do(lambda index: index.executemany(f"INSERT INTO pictures VALUES ({','.join('?' * 15)})", rows))
    for query in (Query(), Query("number 9999"), Query("zebra"), Query(model="m"), Query(favourites=True)):
        before = time.perf_counter()
        page = gallery.page(query, 300)
        gallery.neighbours(page.entries[0], query) if page.entries else None
        assert time.perf_counter() - before < 0.25, query  # measured: 1 to 20 ms
    assert gallery.page(Query(), 417).entries[-1].path == "2026-01-01/00000-0.png"


# --- Saving


def test_a_kill_at_any_moment_leaves_no_broken_picture(outputs):
    code = (
        "import sys, numpy as np, utils; from pathlib import Path; from PIL import Image\n"
        "noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)\n"
        "for i in range(10**6):\n"
        "    suffix, how = ('.png', '.jpg', '.webp')[i % 3], utils.Parameters(prompt='a ' * 500, steps=1, seed=i)\n"
        "    utils.save_new_picture(noise, Path(sys.argv[1]), how, suffix)\n"
        "    if i == 0: print('saving', flush=True)\n"
    )
    folder = outputs / DAY
    for round_ in range(6):
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    saved = [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert len(saved) > 6
    for path in saved:
        with Image.open(path) as picture:
            picture.load()
        assert picture_files.read_parameters(path).prompt == "a " * 500
    gallery = Gallery(outputs)
    while gallery.scan():
        pass
    assert gallery.page(Query()).total == len(saved)
