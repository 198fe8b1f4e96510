"""Files by name: hidden ones count nowhere, those that share a name are told apart, and what a name means."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stable_diffusion import StableDiffusion, catalogue, listing
from stable_diffusion.adapters import files
from stable_diffusion.errors import CheckpointNotFoundError
from stable_diffusion.model_io.convert import convert
from stable_diffusion.model_io.load_vae import load_vae
from stable_diffusion.training.data import PictureFolder

from .conftest import EMBEDDED

# AppleDouble's header (RFC 1740), as macOS writes it beside each file on exFAT and SMB.
COMPANION = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4072)


def with_companions(folder):
    """The folder, with what macOS adds to it and to all folders below."""
    for each in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for path in list(each.iterdir()):
            path.with_name(f"._{path.name}").write_bytes(COMPANION)
        (each / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1" + bytes(100))
    return folder


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders for models, LoRAs and embeddings."""
    monkeypatch.setattr(catalogue, "model_folders", lambda: [tmp_path / "models"])
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    for variable in files.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    for name in ("models/VAE", "loras/sub", "embeddings"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_folder_that_may_not_be_read_is_warned_of(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.ckpt").touch()
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.warns(UserWarning, match=r"locked' cannot be read \(Permission denied\)"):
        assert list(listing.walk(tmp_path)) == [tmp_path / "a.ckpt"]
    assert list(listing.walk(tmp_path / "nowhere")) == []


def test_only_visible_files_are_walked_through(tmp_path):
    for name in ("b.txt", "a/c.txt", "a/.hidden/d.txt", "__MACOSX/a/._c.txt", ".e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in listing.walk(tmp_path)]
    assert found == ["b.txt", "a/c.txt"]
    assert [path.name for path in listing.visible(tmp_path)] == ["__MACOSX", "a", "b.txt"]


def test_lists_have_no_hidden_files(places):
    shutil.copytree(EMBEDDED, places / "models" / "mine")
    (places / "models" / "one.safetensors").write_bytes(b"x")
    (places / "models" / "one.vae.safetensors").write_bytes(b"x")
    (places / "models" / "VAE" / "kl.safetensors").write_bytes(b"x")
    (places / "loras" / "sub" / "ink.safetensors").write_bytes(b"x")
    (places / "embeddings" / "style.pt").write_bytes(b"x")
    before = [model.name for model in catalogue.local()], catalogue.vaes().keys()
    size = catalogue.find("mine").size_bytes
    with_companions(places)
    assert ([model.name for model in catalogue.local()], catalogue.vaes().keys()) == before
    assert catalogue.find("mine").size_bytes == size and catalogue.find("mine").precision == "float16"
    assert list(files.listed(files.LORAS)) == ["ink"] and list(files.listed(files.EMBEDDINGS)) == ["style"]


def test_a_checkpoint_is_loaded_and_converted_beside_companions(tmp_path):
    folder = with_companions(shutil.copytree(EMBEDDED, tmp_path / "mine"))
    sd = StableDiffusion(folder)
    load_vae(folder / "vae", sd._own_vae_config, sd.family, sd._dtype)
    written = convert(folder, tmp_path / "copy")
    assert json.loads((written / "unet" / "config.json").read_text())
    assert not [path for path in written.rglob("*") if listing.is_hidden(path.name)]
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (written / unet).stat().st_size == pytest.approx((EMBEDDED / unet).stat().st_size, rel=0.01)  # float16 still
    convert(folder, with_companions(written), force=True)


def test_training_pictures_are_not_hidden(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a square")
    with_companions(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one would say what is skipped
        assert PictureFolder(tmp_path, 8).names == ["a.png"]


# --- Names


def named(*paths, taken=()):
    """The names of paths below /r, whose usual ones are those of LoRAs: without their endings."""
    return list(listing.named(((Path(path).stem, Path("/r", path)) for path in paths), taken))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("a/ink.pt", "b/wash.pt"), ["ink", "wash"]),
        (("a/ink.pt", "b/ink.pt"), ["a/ink", "b/ink"]),
        (("ink.pt", "b/ink.pt", "b/wash.pt"), ["r/ink", "b/ink", "wash"]),
        (("a/x/ink.pt", "b/x/ink.pt", "b/y/ink.pt"), ["a/x/ink", "b/x/ink", "b/y/ink"]),
        (("a/ink.pt", "a/ink.ckpt"), ["ink.pt", "ink.ckpt"]),
        (("a/ink.pt", "a/ink.ckpt", "b/ink.pt"), ["a/ink.pt", "a/ink.ckpt", "b/ink.pt"]),
        (("a/ink.pt", "a/ink.pt"), ["ink"]),
    ],
)
def test_files_of_one_name_have_their_folder_in_front(paths, names):
    assert named(*paths) == names


def test_names_are_not_those_that_are_taken():
    assert named("a/ink.pt", "b/wash.pt", taken=["ink"]) == ["a/ink", "wash"]


def test_one_file_under_two_names_stays_so_and_counts_once_under_one(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    file, link = tmp_path / "a" / "ink.pt", tmp_path / "b" / "ink.pt"
    file.touch()
    link.symlink_to(file)
    assert listing.named([("ink", file), ("ink", link)]) == {"ink": file}
    assert listing.matches("ink.pt", {"x": file, "y": link}) == ["x"]  # either is the one that is meant


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("people/face.safetensors", ["people/face.safetensors"]),
        ("people/face", ["people/face.safetensors"]),
        ("PEOPLE/Face", ["people/face.safetensors"]),
        ("photon_v1", ["realistic/photon_v1.safetensors"]),
        ("photon_v1.safetensors", ["realistic/photon_v1.safetensors"]),
        ("realistic_photon_v1", ["realistic/photon_v1.safetensors"]),  # as A1111 had it
        ("models/realistic/photon_v1", ["realistic/photon_v1.safetensors"]),
        ("face", ["people/face.safetensors", "things/face.safetensors"]),
        ("Face", ["Face.ckpt"]),
        ("v1", []),
        ("/r/models/people/face", []),
        ("../people/face", []),
        ("people/", []),
        ("", []),
        (".", []),
        ("..", []),
        ("\0", []),
    ],
)
def test_a_name_means_the_end_of_a_path(name, found):
    listed = (
        "people/face.safetensors", "things/face.safetensors", "x/Face.ckpt", "realistic/photon_v1.safetensors"
    )  # fmt: skip
    known = {each.removeprefix("x/"): Path("/r/models", each) for each in listed}
    assert listing.matches(name, known) == found


# --- LoRAs and embeddings


def test_loras_of_one_name_are_all_listed(places):
    for name in ("people/face.safetensors", "things/face.pt", "ink.safetensors", "sub/.hidden/ink.safetensors"):
        (places / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        (places / "loras" / name).write_bytes(name.encode())
    for name in ("style", "other"):
        (places / "loras" / "peft" / name).mkdir(parents=True)
        (places / "loras" / "peft" / name / "adapter_model.safetensors").write_bytes(name.encode())
    listed = files.listed(files.LORAS)
    assert sorted(listed) == ["ink", "other", "people/face", "style", "things/face"]
    assert listed["style"].parent.name == "style"
    assert files.shared(files.LORAS) == {"face": ["people/face", "things/face"]}
    for name in listed:
        assert files.find(files.LORAS, name, names_only=True) == listed[name]
        assert files.name_of(files.LORAS, listed[name]) == name
    for name, same in (("peft/style", "style"), ("things/face.pt", "things/face"), ("Things/Face", "things/face")):
        assert files.find(files.LORAS, name, names_only=True) == listed[same]
    with pytest.raises(CheckpointNotFoundError, match="'face' may be any of people/face, things/face"):
        files.find(files.LORAS, "face")
    thing = files.find(files.LORAS, "things/face")
    assert files.find(files.LORAS, "face", digits=files.short_hash(thing)) == thing
    assert files.find_hash(files.LORAS, files.short_hash(thing)) == thing
    assert files.find_hash(files.LORAS, "") is files.find_hash(files.LORAS, "0" * 12) is None


def test_a_folder_in_the_way_does_not_hide_a_lora(places, monkeypatch):
    (places / "loras" / "ink.safetensors").touch()
    (places / "ink").mkdir()
    monkeypatch.chdir(places)
    assert files.find(files.LORAS, "ink").name == "ink.safetensors"
    with pytest.raises(CheckpointNotFoundError, match="holds none of"):
        files.find(files.LORAS, "embeddings")


def test_a_word_that_two_embeddings_have_is_refused_and_a_folder_chooses(places):
    width = StableDiffusion().encode_text("x").shape[-1]
    for i, folder in enumerate(("people", "things")):
        (places / "embeddings" / folder).mkdir()
        vectors = np.full((1, width), i + 1, np.float32)
        save_file({"emb_params": vectors}, places / "embeddings" / folder / "smile.safetensors")
    sd = StableDiffusion()
    with pytest.raises(CheckpointNotFoundError, match="'smile' may be any of people/smile, things/smile"):
        sd.generate_latents("a house with a smile")
    sd.generate_latents("a house with smiles")  # another word
    one, two = (np.array(sd.encode_text(f"a house, {folder}/smile")) for folder in ("people", "things"))
    assert not np.array_equal(one, two)
    used = sd.generate_latents("a house, things/smile", num_steps=1).used
    assert list(used.embedding_hashes) == ["things/smile"]
