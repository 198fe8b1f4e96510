"""Weights of 8 and 4 bits: which layers take them, what they cost in exactness, and their way to the disk and back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from mlx.utils import tree_flatten

from stable_diffusion import StableDiffusion
from stable_diffusion.backend import mx, nn
from stable_diffusion.config import UNetConfig
from stable_diffusion.errors import ConfigError, InputError, UnsupportedCheckpointError, WeightsError
from stable_diffusion.model_io.convert import convert
from stable_diffusion.model_io.quantised import QuantizedLinear, dequantised, quantise
from stable_diffusion.ops import gpu, plain
from stable_diffusion.unet import UNet

from . import drawn
from .shapes import UNETS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The embedded model with weights of 4 bits, in float32, as a folder."""
    return convert("postcards-tiny", tmp_path_factory.mktemp("saved") / "four", bits=4, float16=False)


@pytest.fixture
def four(saved, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(saved, tmp_path / "four")


def painted(model, **options) -> np.ndarray:
    sd = StableDiffusion(model, float16=False, **options)
    for step in sd.generate_latents("a red house", seed=1, num_steps=2):  # noqa: B007
        pass
    return np.array(sd.decode(step.latents))


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("bits", [8, 4])
def test_both_forms_of_the_product(bits, rows):
    x, weight = mx.array(drawn.normal("x", 2, rows, 128)), mx.array(drawn.normal("weight", 96, 128))
    packed = mx.quantize(weight, group_size=64, bits=bits)
    expected = np.array(x) @ np.array(mx.dequantize(*packed, group_size=64, bits=bits)).T
    for form in (plain.quantized_matmul, gpu.quantized_matmul):
        result = np.array(form(x, *packed, 64, bits))
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 15)])
def test_a_layer_is_exact_to_half_a_step_of_its_groups(bits, levels):
    layer = nn.Linear(128, 256)
    quantised = QuantizedLinear.from_linear(layer, 64, bits)
    groups = np.array(layer.weight).reshape(256, 2, 64)
    step = (groups.max(-1) - groups.min(-1)) / levels
    error = np.abs(np.array(dequantised(quantised)).reshape(256, 2, 64) - groups).max(-1)
    # MLX moves the step so that zero is hit exactly, which costs up to half a step more at the ends.
    assert (error <= 1.05 * step).all() and error.max() > 0.3 * step.max()
    x = mx.array(drawn.normal("x", 3, 128))
    assert mx.allclose(quantised(x), x @ dequantised(quantised).T + layer.bias, atol=1e-5)


def test_large_linear_layers_take_it_and_nothing_else():
    unet = UNet(UNetConfig.from_dict({**UNETS["sd1"], "block_out_channels": (64, 96, 128), "norm_num_groups": 32}))
    before = parameters(unet)
    quantise(unet, [], 8)
    after = parameters(unet)
    turned = {key.removesuffix(".scales") for key in after if key.endswith(".scales")}
    assert (
        "time_embedding.linear_2" in turned and "down_blocks.0.attentions.0.transformer_blocks.0.ff.proj_in" in turned
    )
    for path in turned:
        assert before[f"{path}.weight"].ndim == 2 and before[f"{path}.weight"].size >= 1 << 14
        assert before[f"{path}.weight"].shape[1] % 64 == 0
    assert not any("conv" in path and "shortcut" not in path for path in turned)
    # 96 channels are no whole number of groups, 64 x 64 is small: both stay.
    assert not any(path.startswith("down_blocks.1.attentions.0.proj") for path in turned)
    assert not any(path.startswith("down_blocks.0.attentions.0.transformer_blocks.0.attn1") for path in turned)


def test_pictures_stay_near_and_memory_falls():
    exact = painted("postcards-tiny")
    deviation = {bits: 255 * np.sqrt(np.square(painted("postcards-tiny", bits=bits) - exact).mean()) for bits in (8, 4)}
    assert 0 < deviation[8] < 1 and 2 * deviation[8] < deviation[4] < 16
    whole, small = (StableDiffusion(float16=False, bits=bits) for bits in (None, 4))
    sizes = [sum(each.nbytes for each in parameters(sd._unet).values()) for sd in (whole, small)]
    assert sizes[1] < 0.8 * sizes[0]  # its convolutions stay, and what has 160 inputs
    assert (whole.bits, small.bits) == (None, 4)


@pytest.mark.parametrize("bits", [3, 16, 0, True, "8", 8.0])
def test_other_bits_are_refused(bits):
    with pytest.raises(InputError, match="8 or 4") as caught:
        StableDiffusion(bits=bits)
    assert repr(bits) in str(caught.value)


def test_saved_and_loaded_back(saved):
    direct = StableDiffusion(float16=False, bits=4)
    loaded = StableDiffusion(saved, float16=False)
    assert loaded.bits == 4
    assert np.array_equal(painted(saved), painted("postcards-tiny", bits=4))
    for part in ("_unet", "_vae"):
        ours, theirs = parameters(getattr(loaded, part)), parameters(getattr(direct, part))
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(ours[key], theirs[key]) for key in ours)
    config = json.loads((saved / "unet" / "config.json").read_text())
    assert config["quantization"] == {"bits": 4, "group_size": 64, "mode": "affine"}
    assert "quantization" not in json.loads((saved / "vae" / "config.json").read_text())


def test_asking_for_the_same_bits_again_changes_nothing_and_other_bits_are_refused(saved):
    assert np.array_equal(painted(saved, bits=4), painted(saved))
    with pytest.raises(InputError, match="4 bits already"):
        StableDiffusion(saved, bits=8)


@pytest.mark.parametrize(
    ("quantization", "error", "said"),
    [
        ({"bits": 3, "group_size": 64}, ConfigError, "8 or 4 bits"),
        ({"bits": 4, "group_size": 7}, ConfigError, "32 or 64 or 128"),
        ({"bits": [4]}, ConfigError, "8 or 4 bits"),
        ("4 bits", ConfigError, "should hold bits"),
        ({"bits": 4, "group_size": 64, "mode": "mxfp4"}, UnsupportedCheckpointError, "mxfp4"),
        ({"bits": 8, "group_size": 64}, WeightsError, "packed numbers"),
        ({"bits": 4, "group_size": 32}, WeightsError, "scales"),
        (None, WeightsError, "does not match its config.json"),
    ],
)
def test_a_folder_whose_parts_disagree_is_refused(four, quantization, error, said):
    file = four / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization": quantization}))
    with pytest.raises(error, match=said):
        StableDiffusion(four)


def test_scales_of_what_is_no_layer_are_refused(four):
    file = four / "unet" / "model.safetensors"
    tensors, metadata = mx.load(str(file), return_metadata=True)
    tensors["conv_in.scales"] = mx.zeros((64, 1))
    mx.save_safetensors(str(file), dict(tensors), metadata)
    with pytest.raises(ConfigError, match="conv_in"):
        StableDiffusion(four)


def test_a_cut_file_is_refused(four):
    file = four / "unet" / "model.safetensors"
    content = file.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="unet"):
            StableDiffusion(four)


def test_damaged_values_are_found_where_that_is_asked_for(four):
    file = four / "unet" / "model.safetensors"
    tensors, metadata = mx.load(str(file), return_metadata=True)
    name = next(key for key in tensors if key.endswith(".scales"))
    mx.eval(tensors)
    tensors[name] = mx.full(tensors[name].shape, float("nan"))
    mx.save_safetensors(str(file), dict(tensors), metadata)
    with pytest.raises(WeightsError, match="NaN"):
        StableDiffusion(four, check_weights=True)
