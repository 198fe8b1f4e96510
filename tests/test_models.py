"""The catalogue: what is known, what is found on this machine, and what a name means."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import models
from stable_diffusion.errors import CheckpointNotFoundError

ROOT = Path(models.__file__).parent


@pytest.fixture(autouse=True)
def only_here(tmp_path, monkeypatch):
    """No model folders but the test's, an empty hub cache, no network."""
    monkeypatch.setattr(models, "model_folders", lambda: [tmp_path / "models"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_folder(folder, kind="StableDiffusionPipeline", unet=None, weights=1000):
    (folder / "unet").mkdir(parents=True)
    parts = {part: ["diffusers", "X"] for part in ("unet", "vae")}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **parts, "text_encoder_2": [None, None]}))
    (folder / "unet" / "config.json").write_text(json.dumps(unet or {"cross_attention_dim": 768, "sample_size": 64}))
    for part in ("unet", "vae"):
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "diffusion_pytorch_model.safetensors").write_bytes(b"0" * weights)
    return folder


def make_cached(cache, hub_id, complete=True):
    commit = "0" * 40
    home = cache / f"models--{hub_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    folder = make_folder(home / "snapshots" / commit)
    if not complete:
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def test_the_default_is_embedded_and_first():
    first = models.all()[0]
    assert first.name == models.DEFAULT == "postcards-tiny"
    assert (first.kind, first.source, first.family, first.present) == ("embedded", "postcards-tiny", "sd1", True)
    assert (first.defaults.steps, first.defaults.cfg) == (20, 5.0)
    assert (first.defaults.width, first.defaults.height) == (128, 128)


def test_the_size_of_the_embedded_model_is_its_files():
    folder = ROOT / "stable_diffusion" / "checkpoints" / models.DEFAULT
    assert models.KNOWN[0].size_bytes == sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def test_names_are_unique_and_everything_is_said():
    known = models.all()
    assert len({model.name for model in known}) == len(known) >= 9
    for model in known:
        assert model.title and model.licence and model.size_bytes and model.family_title
        assert model.defaults.width % 8 == model.defaults.height % 8 == 0


@pytest.mark.parametrize("name", ["stabilityai/sdxl-turbo", "SimianLuo/LCM_Dreamshaper_v7"])
def test_distilled_models_take_few_steps(name):
    assert 1 <= models.find(name).defaults.steps <= 4


def test_turbo_is_unguided_and_lcm_has_its_sampler():
    assert models.find("sdxl-turbo").defaults.cfg <= 1
    assert models.find("LCM_Dreamshaper_v7").defaults.sampler == "lcm"


def test_the_samplers_of_the_catalogue_exist():
    from stable_diffusion.sampler import sampler_by_name

    for model in models.all():
        sampler_by_name(model.defaults.sampler)


def test_float16_halves_a_download_where_the_hub_has_it():
    model = models.find("dreamshaper-8")
    assert model.download_size(float16=True) * 2 == model.download_size(float16=False) == 4_264_941_228
    lcm = models.find("lcm_dreamshaper_v7")
    assert lcm.download_size(float16=True) == lcm.download_size(float16=False)


def test_hub_models_are_present_when_their_weights_are_cached(only_here):
    assert not models.find("Lykon/dreamshaper-8").present
    make_cached(only_here / "hub", "Lykon/dreamshaper-8")
    assert models.find("Lykon/dreamshaper-8").present
    make_cached(only_here / "hub", "stabilityai/sdxl-turbo", complete=False)
    assert not models.find("stabilityai/sdxl-turbo").present


def test_local_folders_are_found_and_told_apart(only_here):
    home = only_here / "models"
    make_folder(home / "b-one", unet={"cross_attention_dim": 768, "sample_size": 96})
    make_folder(home / "org" / "A-two", unet={"cross_attention_dim": 1024, "sample_size": 64})
    make_folder(home / "xl", "StableDiffusionXLPipeline", {"sample_size": 128})
    make_folder(home / "lcm", "LatentConsistencyModelPipeline")
    make_folder(home / "flux", "FluxPipeline")
    (home / "broken").mkdir()
    (home / "broken" / "model_index.json").write_text("{")
    (home / "file.safetensors").touch()
    found = {model.name: model for model in models.local()}
    assert list(found) == ["b-one", "lcm", "org/A-two", "xl"]
    assert {name: model.family for name, model in found.items()} == {
        "b-one": "sd1", "lcm": "sd1", "org/A-two": "sd2", "xl": "sdxl",
    }  # fmt: skip
    assert found["b-one"].defaults == models.Defaults(width=768, height=768)
    assert (found["lcm"].defaults.steps, found["lcm"].defaults.sampler) == (4, "lcm")
    assert found["xl"].size_bytes == 2000 and found["xl"].source == str(home / "xl")
    assert [model.name for model in models.all()][:2] == ["postcards-tiny", "b-one"]


def test_a_part_in_two_precisions_counts_once(only_here):
    folder = make_folder(only_here / "models" / "m")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"0" * 500)
    assert models.find("m").size_bytes == 2000
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert models.find("m").size_bytes == 1500


def test_folders_come_from_beside_the_program_and_the_environment(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", "/one:~/two:")
    assert models.model_folders() == [ROOT / "models", Path("/one"), Path.home() / "two"]
    monkeypatch.delenv("STABLE_DIFFUSION_MODELS")
    assert models.model_folders() == [ROOT / "models"]


@pytest.mark.parametrize(
    "name", ["sdxl-turbo", "StabilityAI/SDXL-Turbo", " stabilityai/sdxl-turbo ", "SDXL Turbo (1 to 4 steps)"]
)
def test_find_is_generous(name):
    assert models.find(name).source == "stabilityai/sdxl-turbo"


def test_find_takes_paths_and_hub_ids(only_here):
    make_folder(only_here / "elsewhere" / "mine", "StableDiffusionXLPipeline")
    model = models.find("elsewhere/mine")
    assert (model.kind, model.source, model.family) == ("local", "elsewhere/mine", "sdxl")
    (only_here / "one.safetensors").write_bytes(b"1234")
    assert (models.find("one.safetensors").kind, models.find("one.safetensors").size_bytes) == ("local", 4)
    other = models.find("some/other-model")
    assert (other.kind, other.source, other.family, other.defaults.width) == ("hub", "some/other-model", "", None)
    (only_here / "empty").mkdir()
    assert models.find("empty").kind == "local"  # what is wrong with it is the engine's to say


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("postcard-tiny", "postcards-tiny"),
        ("dreamshaper8", "dreamshaper-8"),
        ("nothing", "lists"),
        ("a/b.safetensors", "no file"),
    ],
)
def test_find_offers_near_names(name, said):
    with pytest.raises(CheckpointNotFoundError, match=said) as caught:
        models.find(name)
    assert repr(name) in str(caught.value)


def test_the_short_hash_is_the_beginning_of_the_sha256(only_here):
    path = only_here / "a.safetensors"
    path.write_bytes(b"one")
    assert models.short_hash(path) == hashlib.sha256(b"one").hexdigest()[:10]
    path.write_bytes(b"three")
    assert models.short_hash(path) == hashlib.sha256(b"three").hexdigest()[:10]
    assert models.short_hash(only_here) is None and models.short_hash("org/name") is None


def test_listing_asks_no_network_and_needs_no_engine(only_here):
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import models; [m.present for m in models.all()]\n"
        "assert not {'mlx.core', 'streamlit', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
