"""Conversions on the disk: names and layouts turned back, nothing overwritten, nothing left half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors import safe_open

from stable_diffusion import StableDiffusion
from stable_diffusion import __main__ as program
from stable_diffusion.backend import mx
from stable_diffusion.clip import CLIPTextModel
from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, SchedulerConfig, UNetConfig
from stable_diffusion.errors import CheckpointNotFoundError, InputError
from stable_diffusion.model_io import convert as conversion
from stable_diffusion.model_io import export, names
from stable_diffusion.model_io.checkpoint import Checkpoint
from stable_diffusion.model_io.convert import convert
from stable_diffusion.model_io.name_table import Names
from stable_diffusion.model_io.safetensors_file import write_safetensors
from stable_diffusion.model_io.single_file_terms import check_terms
from stable_diffusion.unet import UNet
from stable_diffusion.vae import Autoencoder

from .conftest import EMBEDDED
from .shapes import TEXTS, UNETS, VAES

SINGLE = {"norm_num_groups": 32, "block_out_channels": (32, 64, 96), "attention_head_dim": 8}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def parameters(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(folder: Path) -> list[str]:
    """Everything in a folder, what is hidden too."""
    return sorted(os.listdir(folder))


def assert_same_networks(one: StableDiffusion, other: StableDiffusion):
    for part in ("_unet", "_vae"):
        ours, theirs = parameters(getattr(one, part)), parameters(getattr(other, part))
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(ours[key], theirs[key]) for key in ours)


# --- Names and layouts


def read(table: Names, keys: Iterable[str]) -> list[str]:
    """The parameters that keys of a file stand for."""
    return [place.ours for key in keys for place in table.read(key)]


@pytest.mark.parametrize("name", UNETS)
def test_the_unets_names_are_those_that_loading_reads(name):
    model = UNet(UNetConfig.from_dict(UNETS[name]))
    tensors = export.to_folder("unet", model)
    assert read(names.UNET, tensors) == list(parameters(model))
    kernels = {key for key, value in tensors.items() if value.ndim == 4}
    linear = UNETS[name].get("use_linear_projection", False)
    assert ("down_blocks.1.attentions.0.proj_in.weight" in kernels) is not linear
    assert "up_blocks.0.resnets.0.conv_shortcut.weight" in kernels
    assert tensors["conv_in.weight"].shape[1] == UNETS[name].get("in_channels", 4)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "lcm", "inpainting", "no_middle"])
def test_the_unets_original_names_are_those_that_loading_reads(name):
    model = UNet(UNetConfig.from_dict(UNETS[name]))
    tensors = export.renamed(model, names.original_unet(model.config))
    assert read(names.original_unet_of(names.unet_layout(tensors)), tensors) == list(parameters(model))
    assert {key.partition(".")[0] for key in tensors} <= {
        "input_blocks", "middle_block", "output_blocks", "out", "time_embed", "label_emb",
    }  # fmt: skip


@pytest.mark.parametrize("name", VAES)
def test_the_vaes_names_are_those_that_loading_reads(name):
    model = Autoencoder(AutoencoderConfig.from_dict(VAES[name]))
    assert read(names.VAE, export.to_folder("vae", model)) == list(parameters(model))
    original = export.renamed(model, names.original_vae(4))
    assert read(names.original_vae(names.vae_levels(original)), original) == list(parameters(model))
    assert "decoder.up.3.block.0.conv1.weight" in original and "encoder.mid.block_2.norm1.bias" in original


@pytest.mark.parametrize("projection", [False, True])
def test_the_text_encoders_names_are_those_that_loading_reads(projection):
    architecture = ("CLIPTextModelWithProjection",) if projection else ("CLIPTextModel",)
    model = CLIPTextModel(CLIPTextConfig.from_dict({**TEXTS["gelu"], "architectures": architecture}))
    expected = list(parameters(model))
    assert read(names.TEXT_ENCODER, export.to_folder("text_encoder", model)) == expected
    assert sorted(read(names.OPEN_CLIP_TEXT, export.renamed(model, names.OPEN_CLIP_TEXT))) == sorted(expected)


def small(**changes) -> Checkpoint:
    """A small checkpoint of SD 1.x that a single file can hold, but for the changes."""
    unet = {**UNETS["sd1"], **SINGLE, "cross_attention_dim": 64, **changes.get("unet", {})}
    vae = {**VAES["plain"], "block_out_channels": (32, 32, 64, 64), "norm_num_groups": 32, **changes.get("vae", {})}
    text = {**TEXTS["quick_gelu"], "num_attention_heads": 1, **changes.get("text", {})}
    return Checkpoint(
        "sd1",
        UNet(UNetConfig.from_dict(unet)),
        Autoencoder(AutoencoderConfig.from_dict(vae)),
        (CLIPTextModel(CLIPTextConfig.from_dict(text)),),
        (),
        SchedulerConfig.from_dict({**SCHEDULE, **changes.get("scheduler", {})}),
        True,
    )


def test_a_single_file_says_what_it_can_say():
    checkpoint = small()
    check_terms(checkpoint, export.to_single_file(checkpoint))
    for unet in (
        {"in_channels": 9, "attention_head_dim": (8, 8, 8), "time_cond_proj_dim": 32},
        {"mid_block_type": None},
        {"mid_block_type": "UNetMidBlock2D"},
        {"transformer_layers_per_block": [2, [1, 2], 1], "reverse_transformer_layers_per_block": [1, [3, 1, 1], 2]},
    ):
        checkpoint = small(unet=unet)
        check_terms(checkpoint, export.to_single_file(checkpoint))


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("unet", {"attention_head_dim": 4}, "heads"),
        ("unet", {"norm_num_groups": 16}, "norm_num_groups = 16"),
        ("unet", {"use_linear_projection": True}, "use_linear_projection"),
        ("unet", {"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ("unet", {"only_cross_attention": (True, False, False)}, "only_cross_attention"),
        ("unet", {"downsample_padding": 0}, "downsample_padding"),
        ("unet", {"mid_block_scale_factor": 1.5}, "mid_block_scale_factor"),
        ("unet", {"layers_per_block": (1, 2, 2)}, "write a folder"),
        ("vae", {"scaling_factor": 0.5}, "scaling_factor = 0.5"),
        ("vae", {"norm_num_groups": 16}, "norm_num_groups"),
        ("vae", {"latents_mean": (0.0, 0.0, 0.0, 1.0)}, "latents_mean"),
        ("text", {"hidden_act": "gelu"}, "hidden_act"),
        ("text", {"num_attention_heads": 4}, "num_attention_heads"),
        ("scheduler", {"beta_end": 0.02}, "beta_end = 0.02"),
        ("scheduler", {"prediction_type": "sample"}, "'sample'"),
    ],
)
def test_what_a_single_file_cannot_say_is_refused(part, changes, said):
    checkpoint = small(**{part: changes})
    with pytest.raises(InputError, match=said):
        check_terms(checkpoint, export.to_single_file(checkpoint))


# --- The file


def test_tensors_are_written_one_by_one(tmp_path):
    tensors = {
        "turned": mx.arange(6, dtype=mx.float32).reshape(2, 3).T,
        "half": mx.array([1.5, -2.0], mx.float16),
        "brain": mx.array(2.5, mx.bfloat16),
        "none": mx.zeros((0, 4)),
        "packed": mx.array([1, 2**32 - 1], mx.uint32),
    }
    expected = {key: np.array(value.astype(mx.float32)) for key, value in tensors.items()}
    written: list[int] = []
    write_safetensors(tmp_path / "a", tensors, {"told": "so"}, written.append)
    assert tensors == {} and written == [24, 4, 2, 0, 8]
    loaded = mx.load(str(tmp_path / "a"), format="safetensors")
    assert {key: value.dtype for key, value in loaded.items()} == {
        "turned": mx.float32, "half": mx.float16, "brain": mx.bfloat16, "none": mx.float32, "packed": mx.uint32,
    }  # fmt: skip
    assert all(np.array_equal(np.array(loaded[key].astype(mx.float32)), expected[key]) for key in expected)
    with safe_open(tmp_path / "a", framework="numpy") as file:
        assert file.metadata() == {"told": "so"} and set(file.keys()) == set(expected)
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "a", {}, {}, written.append)


# --- Folders


def test_a_folder_like_its_source(tmp_path):
    assert convert("postcards-tiny", tmp_path / "copy", float16=False) == tmp_path / "copy"
    assert_same_networks(StableDiffusion(tmp_path / "copy"), StableDiffusion(float16=False))
    copy, source = files(tmp_path / "copy"), files(EMBEDDED)
    assert copy.keys() == source.keys() - {"README.md"}
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt"):
        assert copy[name] == source[name]
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        assert json.loads(copy[name]) == json.loads(source[name])
    assert listed(tmp_path) == ["copy"]


def test_precision(tmp_path):
    """Half precision where it is asked for, or where the source has it and nothing is said."""

    def types(folder):
        with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", framework="numpy") as file:
            return {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118

    convert("postcards-tiny", tmp_path / "single", float16=False)
    convert(tmp_path / "single", tmp_path / "half", float16=True)
    convert(tmp_path / "half", tmp_path / "still-half")
    convert(tmp_path / "single", tmp_path / "still-single")
    kinds = [types(tmp_path / name) for name in ("single", "half", "still-half", "still-single")]
    assert kinds == [{"F32"}, {"F16"}, {"F16"}, {"F32"}]


def test_components_that_are_left_behind_are_named_none(checkpoint, tmp_path):
    index = json.loads((checkpoint / "model_index.json").read_text())
    (checkpoint / "model_index.json").unlink()
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "_name_or_path": "/home/me"}
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    convert(checkpoint, tmp_path / "copy")
    copied = json.loads((tmp_path / "copy" / "model_index.json").read_text())
    assert (
        copied["safety_checker"] == [None, None] and copied["unet"] == index["unet"] and "_name_or_path" not in copied
    )


def test_our_own_form_needs_no_conversion(tmp_path, monkeypatch):
    convert("postcards-tiny", tmp_path / "own", mlx=True, float16=False)
    monkeypatch.setattr("stable_diffusion.model_io.load_folder.load_weights", None)
    assert_same_networks(StableDiffusion(tmp_path / "own", float16=False), StableDiffusion(tmp_path / "own"))
    monkeypatch.undo()
    assert_same_networks(StableDiffusion(tmp_path / "own"), StableDiffusion(float16=False))


def test_quantised_weights_are_unpacked_for_others(tmp_path):
    convert("postcards-tiny", tmp_path / "eight", bits=8, float16=False)
    convert(tmp_path / "eight", tmp_path / "plain")
    assert "quantization" not in (tmp_path / "plain" / "unet" / "config.json").read_text()
    plain, eight = StableDiffusion(tmp_path / "plain"), StableDiffusion(tmp_path / "eight")
    assert (plain.bits, eight.bits) == (None, 8)
    latents = [list(sd.generate_latents("a house", seed=1, num_steps=2))[-1].latents for sd in (plain, eight)]
    assert mx.allclose(*latents, atol=1e-4)


# --- What is refused


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.ckpt", {}, r"cannot be written.*\.safetensors"),
        ("a.safetensors", {"bits": 4}, "folder"),
        ("a.safetensors", {"mlx": True}, "folder"),
        ("a", {"bits": 5}, "8 or 4"),
        ("no/where", {}, "no folder"),
        ("a.safetensors", {}, "not CLIP's"),
    ],
)
def test_what_cannot_be_written(name, options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        convert("postcards-tiny", tmp_path / name, **options)
    assert listed(tmp_path) == []


def test_nothing_is_overwritten_but_a_checkpoint_and_that_only_by_force(tmp_path):
    (tmp_path / "empty").mkdir()
    convert("postcards-tiny", tmp_path / "empty")  # there is nothing to lose
    before = files(tmp_path / "empty")
    with pytest.raises(InputError, match="--force"):
        convert("postcards-tiny", tmp_path / "empty", mlx=True)
    assert files(tmp_path / "empty") == before
    convert("postcards-tiny", tmp_path / "empty", mlx=True, force=True)
    assert "unet/model.safetensors" in files(tmp_path / "empty")
    (tmp_path / "empty" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        convert("postcards-tiny", tmp_path / "empty", force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not a folder"):
        convert("postcards-tiny", tmp_path / "file", force=True)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="not a file"):
        convert("postcards-tiny", tmp_path / "folder.safetensors", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="already"):
        convert("postcards-tiny", tmp_path / "link", force=True)
    assert listed(tmp_path) == ["empty", "file", "folder.safetensors", "link"]


def test_the_folder_that_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert convert("postcards-tiny", ".") == Path(".")
    assert "model_index.json" in files(tmp_path / "here") and listed(tmp_path) == ["here"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="more than a checkpoint"):
        convert("postcards-tiny", ".", force=True)


def test_a_checkpoint_may_take_its_own_place(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "m", ignore=shutil.ignore_patterns("README.md"))
    convert(tmp_path / "m", tmp_path / "m", bits=8, force=True)
    assert StableDiffusion(tmp_path / "m").bits == 8 and listed(tmp_path) == ["m"]


def test_an_unknown_source_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        convert(tmp_path / "nothing", tmp_path / "out")
    assert listed(tmp_path) == []


# --- What goes wrong on the way


def fail_at(fraction: float, error: BaseException):
    def progress(message, done):
        if message == "Writing" and done >= fraction:
            raise error

    return progress


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_conversion_leaves_everything_as_it_was(existing, error, tmp_path):
    if existing:
        convert("postcards-tiny", tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(type(error)):
        convert("postcards-tiny", tmp_path / "out", mlx=True, force=True, progress=fail_at(0.6, error))
    assert files(tmp_path) == before and listed(tmp_path) == ["out"] * existing


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    monkeypatch.setattr(conversion, "write_safetensors", None)
    with pytest.raises(OSError, match=r"too little room: 0\.0\d GB to write, 0\.00 GB free") as caught:
        convert("postcards-tiny", tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC and listed(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_on_the_way_is_told_alike(code, tmp_path):
    error = OSError(code, os.strerror(code))
    with pytest.raises(OSError, match="too little room"):
        convert("postcards-tiny", tmp_path / "out", progress=fail_at(0.5, error))
    assert listed(tmp_path) == []


def test_a_destination_that_appears_meanwhile_is_not_overwritten(tmp_path):
    def progress(message, done):
        if message == "Writing" and done == 1:
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(InputError, match="already"):
        convert("postcards-tiny", tmp_path / "out", progress=progress)
    assert files(tmp_path) == {"out/mine": b"mine"}


def test_progress_goes_from_0_to_1(tmp_path):
    told: list[tuple[str, float | None]] = []
    convert("postcards-tiny", tmp_path / "out", bits=8, progress=lambda *each: told.append(each))
    assert list(dict(told)) == [
        "Loading unet", "Loading vae", "Loading text_encoder", "Quantising to 8 bits", "Writing",
    ]  # fmt: skip
    fractions = [fraction for message, fraction in told if message == "Writing"]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and len(fractions) > 100


# --- The command


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert program.main(["convert", "postcards-tiny", "small", "--bits", "4", "--float16"]) == 0
    out, err = capsys.readouterr()
    assert out.split()[0] == "small" and "MB" in out and "Writing" in err
    assert program.main(["convert", "small", "small"]) == program.USAGE
    assert "--force" in capsys.readouterr().err
    assert program.main(["convert", "small", "plain", "--float32", "--quiet"]) == 0
    assert capsys.readouterr() == ("plain\n", "")
    assert StableDiffusion("plain").bits is None
    with pytest.raises(SystemExit):
        program.main(["convert", "small", "x", "--bits", "5"])
