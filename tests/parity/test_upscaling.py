"""Upscaling networks against spandrel's: random weights of every architecture and spelling, odd sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mlx.core as mx  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from stable_diffusion import ops  # noqa: E402
from stable_diffusion.upscaling.files import describe_file  # noqa: E402
from stable_diffusion.upscaling.loading import load_network  # noqa: E402

from .. import drawn  # noqa: E402
from .upscalers import import_spandrel  # noqa: E402

spandrel = import_spandrel()
from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402
from spandrel.architectures.SPAN import SPAN  # noqa: E402
from spandrel.architectures.SwinIR import SwinIR  # noqa: E402

pytestmark = pytest.mark.parity

State = dict[str, torch.Tensor]


def random_weights(model: torch.nn.Module) -> State:
    """Those of SPAN's first convolution, which reads values up to 255, are small: products of its result follow."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = 0.01 if name in ("conv_1.sk.weight", "conv_1.conv.0.weight") else 1.0
            values = drawn.weight(name, tuple(parameter.shape)) * np.float32(gain)
            parameter.copy_(torch.from_numpy(values))
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- The spellings of ESRGAN's weights


def new_names(state: State) -> State:
    """Real-ESRGAN's, from the first release's."""
    last = max(int(key.split(".")[1]) for key in state)
    blocks = max(int(key.split(".")[3]) for key in state if ".sub." in key)
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", r"body.\1.rdb\2.conv\3", key)
        key = key.replace(f"model.1.sub.{blocks}.", "conv_body.").replace("model.0.", "conv_first.")
        key = key.replace(f"model.{last}.", "conv_last.").replace(f"model.{last - 2}.", "conv_hr.")
        key = re.sub(r"^model\.(\d+)\.", lambda found: f"conv_up{int(found[1]) // 3}.", key)
        renamed[key] = value
    return renamed


def bsrgan_names(state: State) -> State:
    words = [("body", "RRDB_trunk"), ("rdb", "RDB"), ("conv_RRDB_trunk", "trunk_conv"), ("conv_up", "upconv")]
    renamed = {}
    for key, value in new_names(state).items():
        for ours, theirs in [*words, ("conv_hr", "HRconv")]:
            key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed


def same_names(state: State) -> State:
    return state


def esrgan(**sizes) -> torch.nn.Module:
    return ESRGAN(num_filters=16, num_blocks=2, **sizes)


def swinir(**sizes) -> torch.nn.Module:
    usual = {"embed_dim": 24, "depths": [2, 3], "num_heads": [3, 3], "window_size": 4, "mlp_ratio": 2.0, "img_size": 16}
    return SwinIR(**usual | sizes)


CASES: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[State], State]]] = {
    "esrgan, first release": (lambda: esrgan(scale=4), same_names),
    "esrgan, first release, x1": (lambda: esrgan(scale=1), same_names),
    "esrgan, first release, x8": (lambda: esrgan(scale=8), same_names),
    "esrgan, plus": (lambda: esrgan(scale=4, plus=True), same_names),
    "real-esrgan x4": (lambda: esrgan(scale=4), new_names),
    "real-esrgan x2": (lambda: esrgan(scale=4, in_nc=12, shuffle_factor=2), new_names),
    "real-esrgan x1": (lambda: esrgan(scale=4, in_nc=48, shuffle_factor=4), new_names),
    "bsrgan x4": (lambda: esrgan(scale=4), bsrgan_names),
    "bsrgan x2": (lambda: esrgan(scale=2), bsrgan_names),
    "compact x4": (lambda: Compact(num_feat=32, num_conv=5, upscale=4), same_names),
    "compact x1": (lambda: Compact(num_feat=8, num_conv=2, upscale=1), same_names),
    "span x2": (lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=2), same_names),
    "span x4, not normalised": (
        lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=4, norm=False),
        same_names,
    ),
    "swinir x4, classical": (lambda: swinir(upscale=4, upsampler="pixelshuffle"), same_names),
    "swinir x3, classical": (lambda: swinir(upscale=3, upsampler="pixelshuffle"), same_names),
    "swinir x2, light": (lambda: swinir(upscale=2, upsampler="pixelshuffledirect"), same_names),
    "swinir x4, real": (lambda: swinir(upscale=4, upsampler="nearest+conv", resi_connection="3conv"), same_names),
    "swinir x1, against JPEG": (lambda: swinir(upsampler="", window_size=7, img_size=14), same_names),
}


def ours(path: Path, picture: np.ndarray) -> np.ndarray:
    network = load_network(path, half=False)
    return np.asarray(ops.by_blocks(network, mx.array(picture)))


@pytest.mark.parametrize("size", [(37, 50), (16, 16), (3, 9)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_architecture_and_spelling(name, size, tmp_path):
    build, spell = CASES[name]
    if min(size) < 4 and "swinir" in name:
        size = (8, 9)  # the reference cannot mirror more than there is
    state = spell(random_weights(build()))
    path = tmp_path / "upscaler.pth"
    torch.save({"params_ema": state, "params": {key: value * 0 for key, value in state.items()}}, path)
    descriptor = spandrel.ModelLoader().load_from_file(path)
    picture = np.random.default_rng(1).random((1, *size, 3), np.float32)
    with torch.no_grad():
        tensor = torch.from_numpy(picture).permute(0, 3, 1, 2)
        expected = descriptor.model.eval()(tensor).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.01
    found = ours(path, picture)
    assert found.shape == expected.shape == (1, size[0] * descriptor.scale, size[1] * descriptor.scale, 3)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert describe_file(path).scale == descriptor.scale


@pytest.mark.parametrize("wrapped", ["bare", "state_dict", "module", "safetensors", "float16", "legacy"])
def test_every_kind_of_file(wrapped, tmp_path):
    state = new_names(random_weights(esrgan(scale=2)))
    path = tmp_path / ("upscaler.safetensors" if wrapped == "safetensors" else "upscaler.pth")
    if wrapped == "float16":
        state = {key: value.half() for key, value in state.items()}
    if wrapped == "safetensors":
        save_file(state, path)
    elif wrapped == "state_dict":
        torch.save({"epoch": 7, "state_dict": state, "optimizer": {"lr": 1e-3}}, path)
    elif wrapped == "module":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=wrapped != "legacy")
    model = spandrel.ModelLoader().load_from_file(path).model.float().eval()
    picture = np.random.default_rng(1).random((1, 9, 11, 3), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(picture).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours(path, picture) - expected).max() <= 1e-5 * np.abs(expected).max()
