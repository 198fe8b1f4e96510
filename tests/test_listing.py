"""Which files of a folder count: hidden ones, such as macOS's companions, do so nowhere."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import StableDiffusion, catalogue, listing
from stable_diffusion.adapters import files
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
