"""What a name means: of models and VAEs, on a command line, on the page and in pictures."""

import contextlib
import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from stable_diffusion import catalogue, recorded
from stable_diffusion.adapters import files
from stable_diffusion.commands import needs
from stable_diffusion.errors import CheckpointNotFoundError
from stable_diffusion.model_io import hashes
from stable_diffusion.service import loras, worker

from .conftest import EMBEDDED
from .test_catalogue import make_file, make_folder


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Two folders for models, an empty hub cache, and hashes of the test's own."""
    monkeypatch.setattr(catalogue, "model_folders", lambda: [tmp_path / "one" / "models", tmp_path / "two" / "models"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("STABLE_DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path / "loras"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def checkpoint(path, note="x"):
    """A checkpoint's header, which differs by its note, and so by its hash."""
    return make_file(path, metadata={"note": note})


def names():
    return [model.name for model in catalogue.local()]


# --- Models


def test_files_of_one_name_in_two_folders_are_both_listed(places):
    for folder in ("one", "two"):
        checkpoint(places / folder / "models" / "photon.safetensors", folder)
    make_folder(places / "two" / "models" / "mine")
    assert names() == ["mine", "one/models/photon.safetensors", "two/models/photon.safetensors"]
    assert {model.title for model in catalogue.local()} == {"mine", "one/models/photon", "two/models/photon"}
    assert len({model.name for model in catalogue.all()}) == len(catalogue.all())
    for name in ("photon", "photon.safetensors", "Photon", "models/photon"):
        for find in (catalogue.find, recorded.find_model, lambda name: needs.model(name, None)):
            with pytest.raises(CheckpointNotFoundError, match=r"any of one/models/photon\.s.*, two/models/photon\.s"):
                find(name)
    assert catalogue.find("two/models/photon").source == str(places / "two" / "models" / "photon.safetensors")


def test_a_folder_that_is_named_twice_counts_once(places, monkeypatch):
    folder = places / "one" / "models"
    checkpoint(folder / "photon.safetensors")
    (places / "again").symlink_to(folder)
    monkeypatch.setattr(catalogue, "model_folders", lambda: [folder, folder, places / "again"])
    assert names() == ["photon.safetensors"]


def test_titles_tell_models_apart(places):
    for name in ("a.safetensors", "a.ckpt", "b.safetensors"):
        checkpoint(places / "one" / "models" / name)
    make_folder(places / "one" / "models" / "b")
    titles = {model.name: model.title for model in catalogue.local()}
    assert len(set(titles.values())) == len(titles) == 4
    assert titles["b"] == "b" and titles["a.ckpt"] == "a.ckpt"


def test_a_local_copy_stands_in_for_the_hubs_model_but_not_for_the_embedded_one(places):
    for name in ("Lykon/dreamshaper-8", "postcards-tiny"):
        make_folder(places / "one" / "models" / name)
    listed = {model.name: model.kind for model in catalogue.all()}
    assert len(listed) == len(catalogue.all())
    assert listed["Lykon/dreamshaper-8"] == "local" and listed["postcards-tiny"] == "embedded"
    assert listed["models/postcards-tiny"] == "local"
    assert catalogue.find("postcards-tiny").kind == "embedded"


def test_a_path_comes_before_the_end_of_a_name_but_not_before_a_name(places):
    checkpoint(places / "one" / "models" / "people" / "a.safetensors")
    checkpoint(places / "one" / "models" / "b.safetensors")
    for name in ("a.safetensors", "b.safetensors"):
        checkpoint(Path(name))
    assert catalogue.find("a.safetensors").source == "a.safetensors"
    assert catalogue.find("b.safetensors").source == str(places / "one" / "models" / "b.safetensors")
    assert catalogue.find("./b.safetensors").source == "b.safetensors"
    assert catalogue.find("people/a").source.endswith("people/a.safetensors")


@pytest.mark.parametrize(
    "name",
    ["photon_v1", "Photon_V1", "realistic_photon_v1", "realistic/photon_v1", "SD1.5\\photon_v1.safetensors",
     "/home/somebody/models/photon_v1.safetensors"],
)  # fmt: skip
def test_the_page_and_the_command_line_find_the_model_of_a_picture(places, name):
    """The first is what our own pictures say, then A1111's and ComfyUI's."""
    path = checkpoint(places / "one" / "models" / "realistic" / "photon_v1.safetensors")
    checkpoint(places / "one" / "models" / "v1.safetensors", "other")
    for found in (recorded.find_model(name), needs.model(name, None), needs.model(name, catalogue.short_hash(path))):
        assert (found.name, found.source) == ("realistic/photon_v1.safetensors", str(path))


def test_a_hash_comes_before_a_name(places, monkeypatch):
    one, two = (checkpoint(places / folder / "models" / "photon.safetensors", folder) for folder in ("one", "two"))
    digits = {path: catalogue.short_hash(path) for path in (one, two)}
    for path in (one, two):
        assert recorded.find_model("photon", digits[path]).source == str(path)
        assert recorded.find_model("renamed", digits[path]).source == str(path)
        assert recorded.find_model("photon", hashes._sha256(str(path), *stamp(path))).source == str(path)  # in full
    with pytest.raises(CheckpointNotFoundError, match=r"\(hash 0123456789\) is not here; of its name there is"):
        recorded.find_model("photon", "0123456789")
    three = checkpoint(places / "one" / "models" / "three.safetensors", "three")
    unread = hashes_of(three)
    with pytest.raises(CheckpointNotFoundError, match="is not here"):
        recorded.find_model("renamed", unread)  # the page does not read whole files for that
    assert needs.model("renamed", unread).source == str(three)


def stamp(path):
    return path.stat().st_size, path.stat().st_mtime_ns


def hashes_of(path):
    """A file's hash, without its being remembered."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "somebody/else", "here", "../here", "/etc/passwd", "evil", "evil.ckpt"]
)
def test_a_picture_names_no_path_and_no_download(places, name):
    checkpoint(places / "here" / "evil.ckpt")
    checkpoint(places / "evil.ckpt")
    with pytest.raises(CheckpointNotFoundError, match=r"is not here\.$"):
        recorded.find_model(name)
    with pytest.raises(CheckpointNotFoundError, match=r"is not here\.$"):
        recorded.find_vae(name)


def test_a_downloaded_hub_id_is_taken_on_the_command_line(places, monkeypatch):
    monkeypatch.setattr(catalogue.Model, "present", True)
    assert needs.model("somebody/else", None).kind == "hub"


# --- VAEs


def test_vaes_are_listed_from_all_places_and_told_apart(places):
    for name in ("one/models/a.vae.pt", "one/models/VAE/kl.pt", "two/VAE/kl.pt", "two/models/vae/c.safetensors"):
        (places / name).parent.mkdir(parents=True, exist_ok=True)
        (places / name).write_bytes(name.encode())
    shutil.copytree(EMBEDDED / "vae", places / "two" / "VAE" / "mine")
    own = ["a.vae.pt", "c.safetensors", "mine", "models/VAE/kl.pt", "two/VAE/kl.pt"]
    assert sorted(catalogue.vaes()) == sorted(["postcards-sharp", *own])
    one, two = places / "one/models/VAE/kl.pt", places / "two/VAE/kl.pt"
    for find in (recorded.find_vae, catalogue.vae_source, lambda name: needs.vae(name, None, "a.png")):
        with pytest.raises(CheckpointNotFoundError, match=r"any of models/VAE/kl\.pt, two/VAE/kl\.pt"):
            find("kl.pt")
        assert str(find("two/VAE/kl.pt")) == str(two) and str(find("a.vae")) == str(places / "one/models/a.vae.pt")
    assert recorded.find_vae("kl.pt", catalogue.short_hash(one)) == one
    assert recorded.find_vae("renamed.pt", catalogue.short_hash(two)) == two
    with pytest.raises(CheckpointNotFoundError, match=r"of its name there is 'models/VAE/kl\.pt'"):
        recorded.find_vae("kl.pt", "0" * 10)
    Path("kl.pt").write_bytes(b"near")
    assert needs.vae("kl.pt", None, "a.png") == "kl.pt"  # it lies in the current folder
    assert catalogue.vae_source("kl.pt") == "kl.pt" and catalogue.vae_source("some/id") == "some/id"


def test_vaes_of_other_programs_folders_are_listed(places, monkeypatch):
    for name in ("a1111/models/VAE/x.pt", "a1111/models/Stable-diffusion/m.vae.pt", "comfy/models/vae/y.safetensors",
                 "comfy/models/checkpoints/m.safetensors"):  # fmt: skip
        (places / name).parent.mkdir(parents=True, exist_ok=True)
        (places / name).write_bytes(b"")
    monkeypatch.setattr(catalogue, "model_folders", lambda: [places / "a1111", places / "comfy"])
    assert sorted(catalogue.vaes()) == ["m.vae.pt", "postcards-sharp", "x.pt", "y.safetensors"]


# --- LoRAs


def test_the_page_finds_a_pictures_loras_as_again_does(places):
    for name in ("people/face", "things/face", "a, deep: one", "ink"):
        path = places / "loras" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    digits = files.short_hash(places / "loras" / "things" / "face.pt")
    text, hashed = "a, deep: one:0.3333333333333333, face:0.5, ink:1", f"face: {digits}, ink: {'0' * 12}"
    chosen, notes = loras.from_text(text, hashed)
    assert chosen == [("a, deep: one", 0.3333333333333333), ("things/face", 0.5), ("ink", 1.0)]
    (note,) = notes
    assert "'ink' here is another file" in note
    taken = needs.loras("a, deep: one:0.3333333333333333, face:0.5", {"face": digits}, [])
    assert taken == [f"{places}/loras/a, deep: one.pt:0.3333333333333333", f"{places}/loras/things/face.pt:0.5"]
    assert loras.from_text("face:0.5")[0] == [] and "people/face, things/face" in loras.from_text("face:0.5")[1][0]
    assert [path.name for path, _ in loras.located((("things/face", 1.0),))] == ["face.pt"]
    (places / "loras" / "ink.pt").rename(places / "loras" / "renamed.pt")
    assert needs.loras("ink:1", {"ink": files.short_hash(places / "loras" / "renamed.pt")}, []) == [
        f"{places}/loras/renamed.pt:1"
    ]


# --- Files that come and go


def test_lists_bear_files_that_come_and_go(places):
    stop, folder = threading.Event(), places / "one" / "models"
    shutil.copytree(EMBEDDED, places / "mine")

    def come_and_go():
        while not stop.is_set():
            for name in ("models/a.safetensors", "models/sub/b.safetensors", "VAE/c.pt"):
                checkpoint(places / "one" / name)
            (places / "loras").mkdir(exist_ok=True)
            (places / "loras" / "ink.pt").write_bytes(b"x")
            os.rename(places / "mine", folder / "mine")
            os.rename(folder / "mine", places / "mine")
            for name in ("one", "loras"):
                shutil.rmtree(places / name)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        seen = set()
        for _ in range(150):
            seen |= {model.name for model in catalogue.local()}
            catalogue.vaes()
            for path in files.listed(files.LORAS).values():
                loras.family(path)
            for name in ("a", "mine"):
                with contextlib.suppress(CheckpointNotFoundError):
                    recorded.find_model(name, "0" * 10, read=True)
    finally:
        stop.set()
        thread.join()
    assert seen <= {"a.safetensors", "sub/b.safetensors", "mine"}


def test_a_file_that_is_still_being_copied_is_listed_as_unusable_until_it_is_whole(places):
    path = checkpoint(places / "one" / "models" / "a.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "cut short" in catalogue.find("a").problem
    path.write_bytes(whole)
    assert not catalogue.find("a").problem


def test_a_chosen_model_that_is_gone_is_not_looked_for_on_the_hub(places, monkeypatch):
    monkeypatch.setattr("stable_diffusion.model_io.hub.download", lambda *_: pytest.fail("a download"))
    make_folder(places / "here" / "org" / "mine")  # nor in the server's current folder
    for name in ("org/mine", "gone.safetensors"):
        with pytest.raises(CheckpointNotFoundError, match="is no longer there"):
            worker.load_model(name, lambda *_: None)
