"""Each network against diffusers and transformers: float32 within 1e-5, float16 within 5e-3 of the largest value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from stable_diffusion.backend import mx  # noqa: E402

from .. import networks, shapes  # noqa: E402
from ..networks import relative_error  # noqa: E402
from . import pipelines  # noqa: E402

pytestmark = pytest.mark.parity

FLOAT32, FLOAT16 = 1e-5, 5e-3


def saved(reference: torch.nn.Module, folder: Path) -> tuple[dict, Path]:
    """The configuration and the weights that the reference's own save_pretrained writes."""
    reference.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), next(folder.glob("*.safetensors"))


def unet_error(name: str, height: int, width: int, folder: Path, dtype=mx.float32) -> float:
    reference = pipelines.unet(name)
    inputs = shapes.unet_inputs(name, height, width)
    ours = networks.run_unet(networks.load_unet(*saved(reference, folder), dtype), inputs, dtype)
    return relative_error(ours, pipelines.run_unet(reference, inputs))


@pytest.mark.parametrize("name", shapes.UNETS)
def test_unet(name, tmp_path):
    assert unet_error(name, 16, 12, tmp_path) <= FLOAT32


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (9, 16), (13, 3)])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "uneven"])
def test_unet_of_odd_sides(name, size, tmp_path):
    if name == "uneven" and min(size) < 5:
        size = (7, 9)  # without padding the way down runs out of pixels, in the reference too
    assert unet_error(name, *size, tmp_path) <= FLOAT32


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_unet_in_float16(name, tmp_path):
    assert unet_error(name, 16, 12, tmp_path, mx.float16) <= FLOAT16


@pytest.mark.parametrize("name", shapes.VAES)
def test_vae(name, tmp_path):
    reference, inputs = pipelines.vae(name), shapes.vae_inputs()
    ours = networks.run_vae(networks.load_vae(*saved(reference, tmp_path)), inputs)
    for key, expected in pipelines.run_vae(reference, inputs).items():
        assert relative_error(ours[key], expected) <= FLOAT32, key


def test_vae_in_float16(tmp_path):
    reference, inputs = pipelines.vae(), shapes.vae_inputs()
    ours = networks.run_vae(networks.load_vae(*saved(reference, tmp_path), mx.float16), inputs)
    for key, expected in pipelines.run_vae(reference, inputs).items():
        assert relative_error(ours[key], expected) <= FLOAT16, key


def test_vae_attention_names_of_old_files(tmp_path):
    config, file = saved(pipelines.vae(), tmp_path)
    tensors = load_file(file)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {key.replace(f".{new}.", f".{old}."): value for key, value in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, tmp_path / "old.safetensors")
    inputs = shapes.vae_inputs()
    ours, expected = (
        networks.run_vae(networks.load_vae(config, path), inputs) for path in (tmp_path / "old.safetensors", file)
    )
    assert all((ours[key] == expected[key]).all() for key in expected)


@pytest.mark.parametrize("with_projection", [False, True])
@pytest.mark.parametrize("name", shapes.TEXTS)
def test_text_encoder(name, with_projection, tmp_path):
    reference, ids = pipelines.text_encoder(shapes.TEXTS[name], with_projection), shapes.text_ids()
    ours = networks.run_text_encoder(networks.load_text_encoder(*saved(reference, tmp_path)), ids)
    for key, expected in pipelines.run_text_encoder(reference, ids).items():
        assert relative_error(ours[key], expected) <= FLOAT32, key


def test_text_encoder_in_float16(tmp_path):
    reference, ids = pipelines.text_encoder(shapes.TEXT), shapes.text_ids()
    ours = networks.run_text_encoder(networks.load_text_encoder(*saved(reference, tmp_path), mx.float16), ids)
    for key, expected in pipelines.run_text_encoder(reference, ids).items():
        assert relative_error(ours[key], expected) <= FLOAT16, key
