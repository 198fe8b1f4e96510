"""LoRA files as the page lists them: names, families, and what comes from presets, addresses and pictures."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from stable_diffusion.service import loras

TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path))
    return tmp_path


def save(path, key=TO_K, width=768, **metadata):
    save_file({key: np.zeros((4, width), np.float32)}, path, metadata or None)
    return path


@pytest.mark.parametrize(
    ("key", "width", "metadata", "family"),
    [
        (TO_K, 768, {}, "SD 1.x"),
        (TO_K, 1024, {}, "SD 2.x"),
        (TO_K, 2048, {}, "SDXL"),
        (TO_K.replace("lora_unet_", "unet.").replace("lora_down", "lora_A"), 768, {}, "SD 1.x"),
        (TO_K.replace("lora_down.weight", "hada_w1_b"), 2048, {}, "SDXL"),
        (TO_K.replace("lora_down.weight", "diff"), 1024, {}, "SD 2.x"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 1280, {}, "SDXL"),
        ("transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight", 3072, {}, "FLUX"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 768, {}, ""),
        ("x.lora_down.weight", 7, {"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
    ],
)
def test_the_family_is_told_by_the_head_of_the_file(folder, key, width, metadata, family):
    assert loras.family(save(folder / "ink.safetensors", key, width, **metadata)) == family


def test_metadata_that_are_no_text_are_passed_over(folder):
    header = b'{"__metadata__": {"modelspec.architecture": 7, "ss_base_model_version": ["sdxl"]}}'
    (folder / "ink.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert loras.family(folder / "ink.safetensors") == ""


def test_what_is_no_lora_has_no_family(folder):
    (folder / "ink.safetensors").write_bytes(b"nonsense")
    assert loras.family(folder / "ink.safetensors") == loras.family(folder / "none.safetensors") == ""
    assert list(loras.listed()) == ["ink"]


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        ([("ink", 0.5), ["wash", 1]], [("ink", 0.5), ("wash", 1.0)]),
        ([("ink", 9.0), ("ink", 0.1), ("wash", -9)], [("ink", 2.0), ("wash", -2.0)]),
        ([("ink", float("nan")), ("ink", "1"), ("", 1.0), ("x" * 999, 1.0), (7, 1.0), "ink", None], []),
        ("ink", []),
        ([(str(i), 1.0) for i in range(99)], [(str(i), 1.0) for i in range(loras.MAX_CHOSEN)]),
    ],
)
def test_only_names_and_strengths_are_taken(value, chosen):
    assert loras.clean(value) == chosen


def test_what_a_picture_says_of_its_loras(folder):
    save(folder / "ink.safetensors")
    save(folder / "two: words.safetensors")
    here, notes = loras.from_text("ink:0.8, two: words:-1, gone:1, /etc/passwd:1, two: words:nan, x:--1")
    assert here == [("ink", 0.8), ("two: words", -1.0), ("two: words", pytest.approx(float("nan"), nan_ok=True))]
    gone = ("gone", "/etc/passwd", "x:--1")
    assert notes == [f"The LoRA {name!r} is not here, and was left out." for name in gone]
    assert loras.clean(here) == here[:2]
    assert loras.from_text("") == ([], [])
