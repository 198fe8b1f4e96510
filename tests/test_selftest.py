"""The selftest: what it compares, what it says where something is wrong, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from stable_diffusion import backend, ops
from stable_diffusion.__main__ import DONE, FAILED, USAGE, main
from stable_diffusion.backend import mx
from stable_diffusion.config import UNetConfig
from stable_diffusion.ops import plain
from stable_diffusion.selftest import machine, parts, published, shapes
from stable_diffusion.selftest.report import Comparison, Measurement, Report, Skipped
from stable_diffusion.selftest.run import run
from stable_diffusion.unet import UNet

from .shapes import TEXT, VAE
from .shapes import UNETS as SMALL
from .test_goldens import CFG_WEIGHT, GOLDENS, NUM_STEPS, POSTCARDS, noise_for

TINY = shapes.Sizes(
    {name: {**SMALL[name], "layers_per_block": 1} for name in ("sd1", "sdxl")},
    {"small": TEXT},
    VAE,
    latents=8,
    vae_latents=4,
    attentions=((2, 24, 96), (1, 40, 64)),
    pictures=1,
)


@pytest.fixture
def tiny(monkeypatch):
    """The command's sizes are small ones."""
    for name in ("QUICK", "USUAL", "FULL"):
        monkeypatch.setattr(shapes, name, TINY)


@pytest.fixture(scope="module")
def found() -> Report:
    return run(TINY)


def test_all_parts_run_and_agree(found):
    assert found.agrees, found.block()
    assert list(found.seconds) == list(parts.PARTS)
    whats = [each.what for each in found.of(Comparison)]
    for word in ("normal numbers", "filled up", "in blocks", "in strips", "U-Net of sdxl", "VAE decoder", "gradients"):
        assert any(word in what for what in whats), word
    assert {each.part for each in found.of(Comparison)} >= {"noise", "attention", "networks", "pictures", "LoRA"}
    assert all(each.ratio > 0 for each in found.of(Measurement)) and found.of(Measurement)
    assert "of the plain forms' on the CPU" in found.block()
    assert set(found.peaks) == {"MLX", "the process"} and all(size > 0 for size in found.peaks.values())


def test_what_is_left_out_is_named(found):
    reasons = {each.part: each.reason for each in found.of(Skipped)}
    assert set(reasons) >= {f"speed of {name}" for name in shapes.SPEED}
    assert backend.has_gpu() or "float32" in reasons["networks in float16"]
    assert backend.has_gpu() or any("no GPU" in note for note in found.notes)


def wrong(x: mx.array, *rest: object) -> mx.array:
    """A faulty convolution: MLX has returned zeros where a command failed."""
    return mx.zeros_like(plain.conv2d(x, *rest))


@pytest.mark.usefixtures("tiny")
def test_a_fault_is_found_and_explained(monkeypatch, capsys):
    monkeypatch.setitem(ops.TABLES, "cpu", dataclasses.replace(ops.TABLES["cpu"], conv2d=wrong))
    monkeypatch.setattr(parts, "PARTS", {"convolution": parts.convolution, "networks": parts.networks})
    monkeypatch.setattr("stable_diffusion.selftest.run.PARTS", parts.PARTS)
    assert main(["selftest", "--quick", "--quiet"]) == FAILED
    out, err = capsys.readouterr()
    assert "DISAGREE" in out.splitlines()[1] and re.search(r"^DISAGREE  networks: VAE decoder", out, re.MULTILINE)
    assert out.index("DISAGREE  ") < out.index("agree     ")  # what matters first
    assert err.startswith("error: Something disagrees: pictures made on this machine may be wrong.")
    assert "STABLE_DIFFUSION_OPS=plain" in err


def test_gradients_that_are_wrong_are_found(monkeypatch):
    """Layer norm's bias gradient has been wrong on a Mac now and then."""
    original = parts.nn.value_and_grad
    unwell = "mid_block.attentions.0.transformer_blocks.0.norm1.bias"

    def value_and_grad(*arguments):
        function = original(*arguments)

        def changed(*inputs):
            value, slopes = function(*inputs)
            if ops.forms() is not ops.TABLES["plain"]:
                block = slopes["mid_block"]["attentions"][0]["transformer_blocks"][0]
                block["norm1"]["bias"] = block["norm1"]["bias"] * 1.1
            return value, slopes

        return changed

    monkeypatch.setattr(parts.nn, "value_and_grad", value_and_grad)
    (comparison,) = parts.training(TINY)
    assert not comparison.agrees and unwell in comparison.what
    assert comparison.error > 5 * comparison.allowed


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("options", [["--quick"], [], ["--full"]])
def test_the_command(options, monkeypatch, capsys):
    monkeypatch.setattr("stable_diffusion.selftest.run.PARTS", {"noise": parts.noise})
    assert main(["selftest", *options]) == DONE
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == lines[-1] == "```" and re.match(r"selftest: 1 comparisons agree \(\d+ s\)", lines[1])
    assert mx.__version__ in out and "machine " in out and "Testing: noise" in err


@pytest.mark.usefixtures("tiny")
def test_json(monkeypatch, capsys):
    monkeypatch.setattr("stable_diffusion.selftest.run.PARTS", {"noise": parts.noise, "speed": parts.speed})
    assert main(["selftest", "--json", "--quiet"]) == DONE
    data = json.loads(capsys.readouterr().out)
    assert data["agrees"] is True and data["comparisons"][0]["part"] == "noise"
    assert len(data["skipped"]) == len(shapes.SPEED) and set(data["seconds"]) == {"noise", "speed"}


def test_quick_and_full_do_not_go_together(capsys):
    assert main(["selftest", "--quick", "--full"]) == USAGE
    assert "do not go together" in capsys.readouterr().err


def test_what_is_not_finite_or_empty_never_agrees():
    zeros, ones = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    assert parts.difference(mx.zeros((2, 2)), ones) == 1
    assert parts.difference(mx.array(zeros), zeros) == math.inf
    assert parts.difference(mx.full((2, 2), math.nan), ones) == math.inf
    assert parts.difference(mx.full((2, 2), math.inf), ones) == math.inf
    assert parts.difference(mx.ones((2, 3)), ones) == math.inf
    assert not Comparison("part", "what", math.nan, 1.0).agrees
    report = Report({}, [], [Comparison("part", "what", math.inf, 1.0), Measurement("speed", "a call", 1.5)])
    assert json.loads(json.dumps(report.as_json()))["comparisons"][0] == {
        "part": "part", "what": "what", "error": None, "allowed": 1.0, "agrees": False,
    }  # fmt: skip
    assert "a call: 1.50 s" in report.block()


def test_the_stored_pictures_are_the_goldens():
    sheet = np.asarray(Image.open(GOLDENS / "postcards.png").convert("RGB"))
    assert (parts.STEPS, parts.CFG_WEIGHT) == (NUM_STEPS, CFG_WEIGHT)
    for file, prompt, negative, seed in parts.PICTURES:
        assert POSTCARDS[seed - 1] == (prompt, negative, seed)
        assert (parts._stored_noise(seed) == noise_for(seed)).all()
        place = seed - 1
        expected = sheet[place // 5 * 128 :][:128, place % 5 * 128 :][:, :128]
        with Image.open(parts.packaged("selftest", "pictures", file)) as stored:
            assert (np.asarray(stored) == expected).all()


@pytest.mark.parametrize("sizes", [shapes.QUICK, shapes.USUAL, shapes.FULL])
def test_networks_have_the_published_widths(sizes):
    for name, config in sizes.unets.items():
        unet = UNet(UNetConfig.from_dict(dict(config)))
        channels = unet.config.block_out_channels
        assert channels == (320, 640, 1280)[: len(channels)] and len(channels) >= 2, name
        assert unet.config.cross_attention_dim == published.UNETS[name]["cross_attention_dim"]
    assert {config["hidden_size"] for config in sizes.texts.values()} == {768, 1024, 1280}
    assert {size for _, size, _ in sizes.attentions} == {40, 64, 80, 160, 512}


def test_weights_are_filled_in_and_cast():
    unet = UNet(UNetConfig.from_dict(SMALL["sd1"]))
    shapes.fill(unet)
    weight = np.asarray(unet.conv_in.weight)
    assert weight.std() == pytest.approx(1 / np.sqrt(weight[0].size), rel=0.1)
    assert (np.asarray(unet.conv_norm_out.weight) == 1).all()
    shapes.cast(unet, mx.float16)
    assert unet.conv_in.weight.dtype == mx.float16


@pytest.mark.parametrize(
    ("kind", "chip", "asked", "expected"),
    [
        ("metal", "Apple M5", "", True),
        ("metal", "Apple M5 Max", "1", True),
        ("metal", "Apple M10 Pro", "", True),
        ("metal", "Apple M5", "0", False),
        ("metal", "Apple M4 Pro", "", False),
        ("metal", "", "", False),
        ("cuda", "NVIDIA H200", "", True),
    ],
)
def test_a_gpu_that_rounds_float32_products_says_so(monkeypatch, kind, chip, asked, expected):
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    monkeypatch.setattr(backend, "gpu_kind", lambda: kind)
    monkeypatch.setattr(mx, "device_info", lambda *device: {"device_name": chip, "memory_size": 1 << 34})
    monkeypatch.setenv("MLX_ENABLE_TF32", asked) if asked else monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    assert machine.tf32() is expected
    assert any("TF32" in note for note in machine.notes()) is expected
    first = machine.ways()[0]
    assert first.allowed == (machine.ALLOWED_TF32 if expected else machine.ALLOWED_ON_GPU)
    assert [way.title for way in machine.ways()][1:] == ["GPU, float32, plain forms", "GPU, float16"]


def test_speed_is_timed_or_left_out_for_want_of_memory(monkeypatch):
    monkeypatch.setattr(parts, "UNETS", {"small": {**SMALL["sd1"]}})
    monkeypatch.setattr(parts, "VAE", VAE)
    what = shapes.Speed("small", 128)
    unet, decode = parts._timed("a small one", what)
    assert isinstance(unet, Measurement) and unet.seconds > 0 and isinstance(decode, Measurement)
    monkeypatch.setenv("STABLE_DIFFUSION_MEMORY", "0.0001")
    (skipped,) = parts._timed("a small one", what)
    assert isinstance(skipped, Skipped) and "GiB" in skipped.reason


def test_progress_may_stop_it():
    def stop(message: str, share: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(TINY, stop)
