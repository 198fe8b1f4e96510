"""NaN in a network, a LoRA or a VAE: an error that says which of them it is, and nothing that was finished is lost."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from stable_diffusion import NotFiniteError, StableDiffusion
from stable_diffusion import __main__ as program
from stable_diffusion.backend import mx, nn
from stable_diffusion.finite import all_finite, one_colour
from stable_diffusion.model_io.locate import load
from stable_diffusion.pictures import arrays
from stable_diffusion.request import Request
from stable_diffusion.service import worker as worker_module
from stable_diffusion.service.jobs import State
from stable_diffusion.service.worker import Worker
from stable_diffusion.vae import Autoencoder

from . import drawn
from .conftest import EMBEDDED
from .pretend import over

PROMPT = "a red house on green hills at sunset"
SMALL = {"num_steps": 2, "width": 64, "height": 64, "seed": 1}
WHERE = {"unet": "conv_in.weight", "vae": "decoder.conv_in.weight", "text_encoder": "final_layer_norm.weight"}
WHO = {"unet": "The U-Net", "vae": "The VAE", "text_encoder": "The text encoder", "lora": "the LoRA 'bad'"}


def damaged(folder: Path, part: str) -> Path:
    """A copy of the embedded model with one NaN in one part."""
    shutil.copytree(EMBEDDED, folder)
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith(WHERE[part]))
    tensors[name].reshape(-1)[0] = np.nan
    save_file(tensors, file, {"format": "pt"})
    return folder


def broken_lora(folder: Path, value: float = np.nan) -> Path:
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    unet = load(EMBEDDED, mx.float32).unet
    outputs, inputs = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.shape
    down, up = drawn.normal("down", 2, inputs), drawn.normal("up", outputs, 2)
    up[0, 0] = value
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, folder / "bad.safetensors")
    return folder


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_the_error_names_the_network(part, tmp_path):
    sd = StableDiffusion(damaged(tmp_path / "model", part), float16=False)
    with pytest.raises(NotFiniteError, match=f"{WHO[part]} of 'model' has weights that are NaN") as caught:
        sd.generate(PROMPT, **SMALL)
    assert caught.value.part == part.removesuffix("_encoder") and caught.value.pictures is None


def test_the_error_names_the_lora(tmp_path):
    sd = StableDiffusion(float16=False)
    sd.lora_folders[:] = [broken_lora(tmp_path)]
    with pytest.raises(NotFiniteError, match="With the LoRA 'bad' weights are NaN") as caught:
        sd.generate(f"{PROMPT} <lora:bad>", **SMALL)
    assert caught.value.part == "lora"
    sd.set_loras({"bad": 0.5})
    with pytest.raises(NotFiniteError, match="With the LoRA 'bad'"):
        sd.generate(PROMPT, **SMALL)
    sd.set_loras({})
    sd.generate(PROMPT, **SMALL)


@pytest.mark.parametrize("float16", [False, True])
def test_numbers_that_overflow_although_all_weights_are_finite(float16, monkeypatch):
    sd = StableDiffusion(float16=False)
    sd.float16 = float16
    with pytest.raises(NotFiniteError, match="although its weights are finite") as caught:
        sd.decode(mx.full((1, 8, 8, 4), mx.inf))
    assert caught.value.part == "unet" and ("--no-float16" in str(caught.value)) == float16
    checkpoint = load(EMBEDDED, mx.float16)
    sd = StableDiffusion.from_checkpoint(checkpoint, "mine", float16=True)
    monkeypatch.setattr(checkpoint.vae, "decode", lambda latents: mx.full((1, 64, 64, 3), mx.nan))
    with (
        pytest.warns(UserWarning, match="overflowed in float16"),
        pytest.raises(NotFiniteError, match=r"The VAE of 'mine' decodes to NaN.*--vae"),
    ):
        sd.decode(mx.zeros((1, 8, 8, 4)))


@pytest.fixture
def overflowing(tmp_path):
    """A copy of the embedded model whose VAE overflows in float16 only, in both directions."""
    folder = tmp_path / "wide"
    shutil.copytree(EMBEDDED, folder)
    (file,) = (folder / "vae").glob("*.safetensors")
    tensors = load_file(file)
    for name in ("decoder.conv_in", "encoder.conv_in"):
        for part in (f"{name}.weight", f"{name}.bias"):
            values = tensors[part].astype(np.float32)
            tensors[part] = values * (3e4 / np.abs(values).max())
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_vae_that_overflows_in_float16_runs_in_float32(overflowing, low_memory):
    reference = StableDiffusion(overflowing, float16=False)
    sd = StableDiffusion(overflowing, float16=True, low_memory=low_memory)
    latents = 5 * mx.array(drawn.normal("latents", 2, 8, 8, 4))
    assert sd.vae_precision is None
    with pytest.warns(UserWarning, match="The VAE of 'wide' overflowed in float16"):
        pictures = sd.decode(latents)
    np.testing.assert_allclose(pictures, reference.decode(latents), atol=2e-3)  # its weights were rounded
    assert sd.vae_precision == "float32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(sd.decode(latents), pictures)  # and stays so, unloaded or not


def test_the_record_tells_that_a_vae_overflowed(overflowing):
    with pytest.warns(UserWarning, match="overflowed"):
        (picture,) = StableDiffusion(overflowing, float16=True).generate(PROMPT, **SMALL)
    assert (picture.parameters.extra["Precision"], picture.parameters.extra["VAE precision"]) == ("float16", "float32")


def test_the_page_tells_that_a_vae_overflowed(overflowing, tmp_path, monkeypatch):
    monkeypatch.setattr(
        worker_module, "load_model", lambda name, progress, **options: StableDiffusion(overflowing, float16=True)
    )
    worker = Worker(tmp_path / "outputs")
    try:
        over(first := worker.submit(Request("a", steps=2, width=64, height=64)))
        over(second := worker.submit(Request("a", steps=2, width=64, height=64)))
    finally:
        worker.close()
    assert (first.state, second.state) == (State.DONE, State.DONE)
    assert "VAE overflowed in half precision" in first.warning and not second.warning
    for job in (first, second):
        assert "VAE precision: float32" in Image.open(job.pictures[0].path).info["parameters"]


def test_an_input_picture_that_overflows_is_encoded_in_float32(overflowing):
    picture = Image.new("RGB", (64, 64), "red")
    reference = StableDiffusion(overflowing, float16=False).encode(picture)
    sd = StableDiffusion(overflowing, float16=True)
    with pytest.warns(UserWarning, match="overflowed"):
        latents = sd.encode(picture)
    np.testing.assert_allclose(latents, reference, atol=2e-3 * float(mx.abs(reference).max()))


def test_whole_pictures_of_a_batch_come_with_the_error():
    sd = StableDiffusion(float16=False)
    latents = drawn.normal("latents", 3, 8, 8, 4)
    whole = np.array(sd.decode(mx.array(latents)))
    latents[1] = np.nan
    with pytest.raises(NotFiniteError) as caught:
        sd.decode(mx.array(latents))
    assert np.isnan(caught.value.pictures[1]).all()
    np.testing.assert_array_equal(caught.value.pictures[[0, 2]], whole[[0, 2]])


def test_quantised_weights_are_looked_at_too(tmp_path):
    sd = StableDiffusion(damaged(tmp_path / "model", "unet"), float16=False, bits=8)
    with pytest.raises(NotFiniteError, match="The U-Net"):
        sd.generate(PROMPT, **SMALL)


def test_all_finite_looks_at_floats_alone():
    assert all_finite({"a": [mx.zeros(3), mx.array([1, 2], mx.uint32)], "b": 7})
    assert not all_finite({"a": [mx.zeros(3), mx.array([1, mx.inf], mx.float16)]})
    assert all_finite(nn.Linear(2, 2).parameters())


@pytest.mark.parametrize("part", ["unet", "vae", "lora"])
def test_the_command_line_says_which_and_ends_with_1(part, tmp_path, monkeypatch, capsys):
    if part == "lora":
        monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(broken_lora(tmp_path)))
        asked = ["a <lora:bad>"]
    else:
        asked = ["a", "--model", str(damaged(tmp_path / "model", part))]
    small = ["--steps", "2", "--width", "64", "--height", "64", "--quiet"]
    assert program.main(["txt2img", *asked, *small, "--output", str(tmp_path / "a.png")]) == 1
    assert WHO[part] in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_the_command_line_keeps_what_is_whole(tmp_path, monkeypatch, capsys):
    """Of a batch of three, and of the batch before it."""
    monkeypatch.chdir(tmp_path)
    decode = StableDiffusion.decode

    def overflowing(self, latents):
        if len(latents) == 3:
            latents = mx.concatenate([latents[:1], mx.full(latents[1:2].shape, mx.nan), latents[2:]])
        return decode(self, latents)

    monkeypatch.setattr(StableDiffusion, "decode", overflowing)
    command = ["txt2img", "a", "--n-images", "3", "--batch-size", "3", "--steps", "2", "--width", "64"]
    assert program.main([*command, "--height", "64", "--output", "a.png", "--quiet"]) == 1
    told = capsys.readouterr()
    assert told.out.split() == ["a-1.png", "a-3.png"] and "The U-Net" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.png", "a-3.png"]


def test_a_preview_that_is_nan_costs_nothing(tmp_path, monkeypatch):
    decode, calls = StableDiffusion.decode, []

    def overflowing(self, latents):
        calls.append(1)
        return decode(self, latents if len(calls) > 1 else mx.full(latents.shape, mx.nan))

    monkeypatch.setattr(StableDiffusion, "decode", overflowing)
    command = ["txt2img", "a", "--steps", "2", "--preview", "1", "--width", "64", "--height", "64", "--quiet"]
    assert program.main([*command, "--output", str(tmp_path / "a.png")]) == 0
    assert len(calls) == 2 and (tmp_path / "a.png").is_file()


def test_the_worker_says_which(tmp_path, monkeypatch):
    folder = damaged(tmp_path / "model", "unet")
    monkeypatch.setattr(worker_module, "load_model", lambda name, progress, **options: StableDiffusion(folder))
    worker = Worker(tmp_path / "outputs")
    try:
        over(job := worker.submit(Request("a", steps=2, width=64, height=64)))
        assert job.state is State.FAILED and "The U-Net of 'model'" in job.error
        assert not list((tmp_path / "outputs").rglob("*.png"))
    finally:
        worker.close()


class TestOneColour:
    def test_the_library_warns(self, monkeypatch):
        checkpoint = load(EMBEDDED, mx.float32)
        sd = StableDiffusion.from_checkpoint(checkpoint, "mine", float16=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sd.decode(mx.array(drawn.normal("latents", 2, 8, 8, 4)))
        monkeypatch.setattr(checkpoint.vae, "decode", lambda latents: mx.full((1, 64, 64, 3), -7.0))
        with pytest.warns(UserWarning, match="The picture is a single colour"):
            sd.decode(mx.zeros((1, 8, 8, 4)))
        with pytest.warns(UserWarning, match="Of 2 pictures 2 are a single colour"):
            sd.decode(mx.zeros((2, 8, 8, 4)))

    def test_the_page_warns(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Autoencoder, "decode", lambda self, latents: mx.full((1, 64, 64, 3), -7.0))
        monkeypatch.setattr(worker_module, "load_model", lambda name, progress, **options: StableDiffusion())
        worker = Worker(tmp_path)
        try:
            over(job := worker.submit(Request("a", steps=2, width=64, height=64)))
            assert job.state is State.DONE, job.error
            assert job.warning.startswith("The picture is a single colour.")
        finally:
            worker.close()

    def test_what_is_one(self):
        pictures = mx.zeros((3, 4, 4, 3)) + mx.array([0.1, 0.2, 0.3])
        pictures[1, 2, 3, 0] = 0.5
        assert one_colour(pictures) == [0, 2]
        assert arrays.is_one_colour(Image.new("RGB", (4, 4), "red"))
        assert not arrays.is_one_colour(Image.linear_gradient("L").convert("RGB"))
