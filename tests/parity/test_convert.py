"""Converted checkpoints in diffusers again: the same tensors to the bit, the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402
from stable_diffusion.model_io.convert import convert  # noqa: E402

from . import original_layout  # noqa: E402
from .test_pipeline import HEIGHT, NEGATIVE, PROMPT, WIDTH, assert_same_pictures, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

FAMILIES = ("sd1", "sd2", "sdxl")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PIPELINES = {
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "lcm": diffusers.LatentConsistencyModelPipeline,
    "inpainting": diffusers.StableDiffusionInpaintPipeline,
}


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """`make(name)` gives a random pipeline's folder, as diffusers saves it, and its tensors in the original layout."""
    made: dict[str, tuple[Path, dict]] = {}

    def get(name: str) -> tuple[Path, dict]:
        if name not in made:
            networks = original_layout.build(name)
            folder = original_layout.save_folder(tmp_path_factory.mktemp(name), name, networks)
            index = json.loads((folder / "model_index.json").read_text())  # as diffusers itself would have written it
            (folder / "model_index.json").write_text(json.dumps({"_diffusers_version": "0.42.1", **index}))
            made[name] = folder, original_layout.state_dict(name, networks)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def families(request, monkeypatch):
    """A folder's family is told from widths that these small networks do not have."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name == "sd2":
        monkeypatch.setattr("stable_diffusion.model_io.load_folder.family_of", lambda config, text_encoders: "sd2")


def load(folder: Path, name: str):
    options = {} if name == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    kind = PIPELINES.get(name, diffusers.StableDiffusionPipeline)
    return kind.from_pretrained(folder, local_files_only=True, **options)


def load_single(path: Path, folder: Path, name: str):
    options = {} if name == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    kind = PIPELINES.get(name, diffusers.StableDiffusionPipeline)
    return kind.from_single_file(str(path), config=str(folder), local_files_only=True, **options)


def assert_same_networks(ours, theirs):
    for part in PARTS:
        if getattr(theirs, part, None) is None:
            continue
        a, b = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert a.keys() == b.keys()
        for key in b:
            assert torch.equal(a[key], b[key]), f"{part}.{key}"


def assert_same_file(path: Path, tensors: dict):
    """The file holds these tensors, bit for bit; of SD 2.x's text encoder, without the last layer that nobody runs."""
    written = load_file(path)
    unused = {key for key in tensors.keys() - written.keys() if ".resblocks.23." in key}
    assert written.keys() == tensors.keys() - unused
    for key, value in written.items():
        assert torch.equal(value, tensors[key]), key


def their_picture(pipe, folder: Path) -> np.ndarray:
    scheduler = diffusers.EulerDiscreteScheduler
    pipe.scheduler = scheduler.from_config(scheduler.load_config(folder / "scheduler"))
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_inference_steps=5,
                guidance_scale=7.5, output_type="np").images  # fmt: skip


def our_picture(source: Path) -> np.ndarray:
    sd = StableDiffusion(source, float16=False)
    for step in sd.generate_latents(PROMPT, NEGATIVE, seed=5, num_steps=5, width=WIDTH, height=HEIGHT):  # noqa: B007
        pass
    return np.array(sd.decode(step.latents))


@pytest.mark.parametrize("name", [*FAMILIES, "inpainting", "lcm"])
def test_a_folder_becomes_the_same_folder(name, make, tmp_path):
    folder, _ = make(name)
    convert(folder, tmp_path / "copy")
    ours, theirs = load(tmp_path / "copy", name), load(folder, name)
    assert type(ours) is type(theirs) and type(ours.scheduler) is type(theirs.scheduler)
    assert dict(ours.scheduler.config) == dict(theirs.scheduler.config)
    assert dict(ours.unet.config) | {"_name_or_path": ""} == dict(theirs.unet.config) | {"_name_or_path": ""}
    assert ours.tokenizer(PROMPT, padding="max_length") == theirs.tokenizer(PROMPT, padding="max_length")
    assert_same_networks(ours, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_becomes_a_single_file_and_paints_the_same(name, make, tmp_path, same_noise):  # noqa: F811
    folder, tensors = make(name)
    path = convert(folder, tmp_path / "one.safetensors")
    assert_same_file(path, tensors)
    single, whole = load_single(path, folder, name), load(folder, name)
    assert_same_networks(single, whole)
    same_noise(5, 1)
    picture = their_picture(single, folder)
    same_noise(5, 1)
    assert np.abs(picture - their_picture(whole, folder)).max() < 1e-5  # the same sums, in another order in memory
    assert_same_pictures(our_picture(path), picture)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_becomes_a_folder_and_paints_the_same(name, make, tmp_path, same_noise):  # noqa: F811
    folder, tensors = make(name)
    save_file(tensors, tmp_path / "one.safetensors")
    converted = convert(tmp_path / "one.safetensors", tmp_path / "folder")
    ours, theirs = load(converted, name), load(folder, name)
    assert_same_networks(ours, theirs)
    for key in ("tokenizer", "tokenizer_2") if name == "sdxl" else ("tokenizer",):
        given = [getattr(pipe, key)(PROMPT, padding="max_length", max_length=77).input_ids for pipe in (ours, theirs)]
        assert given[0] == given[1]
    same_noise(5, 1)
    picture = their_picture(ours, converted)
    same_noise(5, 1)
    assert_same_pictures(picture, their_picture(theirs, folder))
    assert_same_pictures(our_picture(converted), picture)


@pytest.mark.parametrize("name", [*FAMILIES, "inpainting", "lcm"])
def test_the_way_round_by_our_own_form_loses_no_bit(name, make, tmp_path):
    folder, tensors = make(name)
    save_file(tensors, tmp_path / "one.safetensors")
    own = convert(tmp_path / "one.safetensors", tmp_path / "own", mlx=True)
    assert_same_file(convert(own, tmp_path / "back.safetensors"), tensors)
    convert(own, tmp_path / "folder")
    assert_same_networks(load(tmp_path / "folder", name), load(folder, name))


def test_half_precision_rounds_as_torch_does(make, tmp_path):
    folder, tensors = make("sd1")
    path = convert(folder, tmp_path / "half.safetensors", float16=True)
    assert_same_file(path, {key: value.half() for key, value in tensors.items()})
    convert(path, tmp_path / "kept")  # half precision stays half precision where nothing else is asked for
    pipe = load(tmp_path / "kept", "sd1")
    assert {value.dtype for value in load_file(next((tmp_path / "kept" / "unet").glob("*.safetensors"))).values()} == {
        torch.float16
    }
    assert all(torch.isfinite(value).all() for value in pipe.unet.state_dict().values())


def test_what_the_unet_predicts_is_kept(make, tmp_path):
    """v and zero terminal SNR are marked in the single file, and come back in the folder."""
    _, tensors = make("sdxl")
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({**tensors, **marks}, tmp_path / "v.safetensors")
    converted = convert(tmp_path / "v.safetensors", tmp_path / "v")
    config = load(converted, "sdxl").scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert config.timestep_spacing == "trailing"
    again = convert(converted, tmp_path / "again.safetensors")
    assert_same_file(again, {**tensors, **marks})
    assert StableDiffusion(again).scheduler_config.prediction_type == "v_prediction"
