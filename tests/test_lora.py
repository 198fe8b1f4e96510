"""LoRA and its kin on the embedded model: forms against plain numpy, names, tags, strengths, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from PIL import Image
from safetensors.numpy import load_file, save_file

from stable_diffusion import StableDiffusion
from stable_diffusion import __main__ as program
from stable_diffusion.adapters import file_keys, files
from stable_diffusion.adapters.lora import AdapterWarning, Networks, lay_over, load_lora
from stable_diffusion.adapters.peft_config import PeftConfig
from stable_diffusion.backend import mx, nn
from stable_diffusion.errors import CheckpointNotFoundError, InputError, UnsupportedCheckpointError, WeightsError
from stable_diffusion.model_io.tensor_file import float8_values
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.text.prompt import parse
from stable_diffusion.text.tags import Strength

from . import drawn, single_files
from .conftest import EMBEDDED

PROMPT = "a red house on green hills at sunset"
# By kohya's names: a linear layer, convolutions of a 1 kernel (linear here) and of a 3 kernel; a text encoder's layer.
LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
POINT = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
PATHS = {
    LINEAR: ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
    POINT: ("unet", "mid_block.attentions.0.proj_in"),
    CONV: ("unet", "mid_block.resnets.0.conv1"),
    TEXT: ("text_encoder", "layers.0.fc1"),
}

PARTS = [
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff",
]  # fmt: skip


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


@pytest.fixture(autouse=True)
def bare(sd, tmp_path, monkeypatch):
    """Each test begins without LoRAs, and finds them in its own folder only."""
    sd.set_loras({})
    monkeypatch.setattr(sd._overlay, "folders", [tmp_path])


def networks(sd: StableDiffusion) -> Networks:
    return sd._overlay.bare


def weight(nets: Networks, layer: str) -> np.ndarray:
    """A layer's weight in torch's layout."""
    component, path = PATHS[layer]
    module = dict(nets.components()[component].named_modules())[path]
    values = np.array(module.weight)
    return values.transpose(0, 3, 1, 2) if values.ndim == 4 else values


def part(layer: str, name: str, *shape: int) -> dict[str, np.ndarray]:
    return {f"{layer}.{name}": drawn.normal(f"{layer}.{name}", *shape) * np.float32(0.3)}


def alpha(layer: str, value: float) -> dict[str, np.ndarray]:
    return {f"{layer}.alpha": np.array(value, np.float32)}


def changed(sd: StableDiffusion, folder: Path, tensors: dict, layer: str, strength: float = 1.0) -> np.ndarray:
    """The change that a file makes to a layer's weight."""
    save_file(tensors, folder / "x.safetensors")
    bare = networks(sd)
    lora = load_lora(folder / "x.safetensors", bare, sd.family)
    after = lay_over(bare, [(lora, Strength(strength, strength))])
    return weight(after, layer) - weight(bare, layer)


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert np.abs(b).max() > 1e-2
    assert np.abs(a - b).max() < 2e-6 * max(np.abs(b).max(), 1) + 1e-6


class TestForms:
    """Each against the formula in numpy, with r = 4 and alpha = 2 unless a test says otherwise."""

    def test_lora(self, sd, tmp_path):
        out, into = weight(networks(sd), LINEAR).shape
        tensors = part(LINEAR, "lora_down.weight", 4, into) | part(LINEAR, "lora_up.weight", out, 4)
        up, down = tensors[f"{LINEAR}.lora_up.weight"], tensors[f"{LINEAR}.lora_down.weight"]
        assert_close(changed(sd, tmp_path, tensors | alpha(LINEAR, 2), LINEAR), up @ down / 2)
        assert_close(changed(sd, tmp_path, tensors, LINEAR), up @ down)  # without alpha: 1
        assert_close(changed(sd, tmp_path, tensors, LINEAR, -0.3), -0.3 * up @ down)

    def test_a_text_encoders_layer(self, sd, tmp_path):
        out, into = weight(networks(sd), TEXT).shape
        tensors = part(TEXT, "lora_down.weight", 4, into) | part(TEXT, "lora_up.weight", out, 4)
        assert_close(changed(sd, tmp_path, tensors, TEXT), tensors[f"{TEXT}.lora_up.weight"] @ tensors[
            f"{TEXT}.lora_down.weight"
        ])  # fmt: skip

    def test_a_convolution_of_one_pixel(self, sd, tmp_path):
        out, into = weight(networks(sd), POINT).shape
        tensors = part(POINT, "lora_down.weight", 4, into, 1, 1) | part(POINT, "lora_up.weight", out, 4, 1, 1)
        down, up = (tensors[f"{POINT}.lora_{way}.weight"][..., 0, 0] for way in ("down", "up"))
        assert_close(changed(sd, tmp_path, tensors | alpha(POINT, 2), POINT), up @ down / 2)

    def test_locon(self, sd, tmp_path):
        out, into = weight(networks(sd), CONV).shape[:2]
        tensors = part(CONV, "lora_down.weight", 4, into, 3, 3) | part(CONV, "lora_up.weight", out, 4, 1, 1)
        down, up = tensors[f"{CONV}.lora_down.weight"], tensors[f"{CONV}.lora_up.weight"][..., 0, 0]
        expected = np.einsum("or,rikl->oikl", up, down) / 2
        assert_close(changed(sd, tmp_path, tensors | alpha(CONV, 2), CONV), expected)

    def test_locon_with_a_middle(self, sd, tmp_path):
        out, into = weight(networks(sd), CONV).shape[:2]
        tensors = part(CONV, "lora_down.weight", 4, into, 1, 1) | part(CONV, "lora_up.weight", out, 4, 1, 1)
        tensors |= part(CONV, "lora_mid.weight", 4, 4, 3, 3)
        down, up = (tensors[f"{CONV}.lora_{way}.weight"][..., 0, 0] for way in ("down", "up"))
        expected = np.einsum("om,mnkl,ni->oikl", up, tensors[f"{CONV}.lora_mid.weight"], down) / 2
        assert_close(changed(sd, tmp_path, tensors | alpha(CONV, 2), CONV), expected)

    def test_loha(self, sd, tmp_path):
        out, into = weight(networks(sd), LINEAR).shape
        tensors = {}
        for i in (1, 2):
            tensors |= part(LINEAR, f"hada_w{i}_a", out, 4) | part(LINEAR, f"hada_w{i}_b", 4, into)
        a1, b1, a2, b2 = tensors.values()
        assert_close(changed(sd, tmp_path, tensors | alpha(LINEAR, 2), LINEAR), (a1 @ b1) * (a2 @ b2) / 2)

    @pytest.mark.parametrize("core", [False, True])
    def test_loha_of_a_convolution(self, core, sd, tmp_path):
        out, into = weight(networks(sd), CONV).shape[:2]
        tensors, factors = {}, []
        for i in (1, 2):
            if core:
                tensors |= part(CONV, f"hada_t{i}", 4, 4, 3, 3)
                tensors |= part(CONV, f"hada_w{i}_a", 4, out) | part(CONV, f"hada_w{i}_b", 4, into)
                t, a, b = (tensors[f"{CONV}.hada_{name}"] for name in (f"t{i}", f"w{i}_a", f"w{i}_b"))
                factors.append(np.einsum("pqkl,po,qi->oikl", t, a, b))
            else:
                tensors |= part(CONV, f"hada_w{i}_a", out, 4) | part(CONV, f"hada_w{i}_b", 4, into * 9)
                a, b = (tensors[f"{CONV}.hada_w{i}_{name}"] for name in "ab")
                factors.append((a @ b).reshape(out, into, 3, 3))
        assert_close(changed(sd, tmp_path, tensors | alpha(CONV, 2), CONV), factors[0] * factors[1] / 2)

    @pytest.mark.parametrize("first, second", [("full", "full"), ("full", "low"), ("low", "full"), ("low", "low")])
    def test_lokr(self, first, second, sd, tmp_path):
        out, into = weight(networks(sd), LINEAR).shape
        sides = {"1": (4, 2), "2": (out // 4, into // 2)}
        tensors, factors = {}, []
        for i, kind in zip("12", (first, second), strict=True):
            if kind == "full":
                tensors |= part(LINEAR, f"lokr_w{i}", *sides[i])
                factors.append(tensors[f"{LINEAR}.lokr_w{i}"])
            else:
                tensors |= part(LINEAR, f"lokr_w{i}_a", sides[i][0], 4) | part(LINEAR, f"lokr_w{i}_b", 4, sides[i][1])
                factors.append(tensors[f"{LINEAR}.lokr_w{i}_a"] @ tensors[f"{LINEAR}.lokr_w{i}_b"])
        scale = 1 if (first, second) == ("full", "full") else 0.5  # two full matrices have no rank
        assert_close(changed(sd, tmp_path, tensors | alpha(LINEAR, 2), LINEAR), np.kron(*factors) * scale)

    @pytest.mark.parametrize("kind", ["full", "low", "core"])
    def test_lokr_of_a_convolution(self, kind, sd, tmp_path):
        out, into = weight(networks(sd), CONV).shape[:2]
        tensors = part(CONV, "lokr_w1", 4, 2)
        b, d = out // 4, into // 2
        if kind == "full":
            tensors |= part(CONV, "lokr_w2", b, d, 3, 3)
            w2 = tensors[f"{CONV}.lokr_w2"]
        elif kind == "low":
            tensors |= part(CONV, "lokr_w2_a", b, 4) | part(CONV, "lokr_w2_b", 4, d, 3, 3)
            w2 = np.einsum("or,rikl->oikl", tensors[f"{CONV}.lokr_w2_a"], tensors[f"{CONV}.lokr_w2_b"])
        else:
            tensors |= part(CONV, "lokr_t2", 4, 4, 3, 3) | part(CONV, "lokr_w2_a", 4, b) | part(CONV, "lokr_w2_b", 4, d)
            t, a, c = (tensors[f"{CONV}.lokr_{name}"] for name in ("t2", "w2_a", "w2_b"))
            w2 = np.einsum("pqkl,po,qi->oikl", t, a, c)
        expected = np.kron(tensors[f"{CONV}.lokr_w1"][..., None, None], w2) * (1 if kind == "full" else 0.5)
        assert_close(changed(sd, tmp_path, tensors | alpha(CONV, 2), CONV), expected)

    @pytest.mark.parametrize("axis", ["rows", "columns"])
    @pytest.mark.parametrize("layer", [LINEAR, CONV])
    def test_dora(self, layer, axis, sd, tmp_path):
        w = weight(networks(sd), layer)
        out, into, *kernel = w.shape
        tensors = part(layer, "lora_down.weight", 4, into, *kernel)
        tensors |= part(layer, "lora_up.weight", out, 4, *(1 for _ in kernel))
        shape = (out, 1) if axis == "rows" else (1, into)
        lengths = np.abs(drawn.normal("lengths", *shape, *(1 for _ in kernel))) + 1
        up, down = tensors[f"{layer}.lora_up.weight"].reshape(out, 4), tensors[f"{layer}.lora_down.weight"]
        v = w + np.tensordot(up, down, 1) / 2
        over = tuple(i for i in range(w.ndim) if i != (0 if axis == "rows" else 1))
        expected = v * lengths / np.sqrt(np.square(v).sum(axis=over, keepdims=True)) - w
        tensors |= alpha(layer, 2) | {f"{layer}.dora_scale": lengths.astype(np.float32)}
        assert_close(changed(sd, tmp_path, tensors, layer), expected)
        assert_close(changed(sd, tmp_path, tensors, layer, 0.5), expected / 2)

    def test_a_difference(self, sd, tmp_path):
        tensors = part(CONV, "diff", *weight(networks(sd), CONV).shape)
        tensors |= part(CONV, "diff_b", weight(networks(sd), CONV).shape[0])
        assert_close(changed(sd, tmp_path, tensors, CONV, 0.5), tensors[f"{CONV}.diff"] / 2)
        sd.set_loras({"x": 0.5})
        before, after = (nets.mid_block.resnets[0].conv1.bias for nets in (networks(sd).unet, sd._unet))
        assert np.allclose(np.array(after - before), tensors[f"{CONV}.diff_b"] / 2, atol=1e-6)

    def test_a_norm(self, sd, tmp_path):
        norm = "lora_unet_mid_block_resnets_0_norm1"
        size = networks(sd).unet.mid_block.resnets[0].norm1.weight.size
        tensors = part(norm, "w_norm", size) | part(norm, "b_norm", size)
        save_file(tensors, tmp_path / "n.safetensors")
        sd.set_loras({"n": 2})
        before, after = (nets.mid_block.resnets[0].norm1 for nets in (networks(sd).unet, sd._unet))
        assert np.allclose(np.array(after.weight - before.weight), tensors[f"{norm}.w_norm"] * 2, atol=1e-6)
        assert np.allclose(np.array(after.bias - before.bias), tensors[f"{norm}.b_norm"] * 2, atol=1e-6)

    def test_half_precision_files(self, sd, tmp_path):
        out, into = weight(networks(sd), LINEAR).shape
        tensors = part(LINEAR, "lora_down.weight", 4, into) | part(LINEAR, "lora_up.weight", out, 4)
        half = {key: value.astype(np.float16) for key, value in tensors.items()}
        up, down = (half[f"{LINEAR}.lora_{way}.weight"].astype(np.float32) for way in ("up", "down"))
        assert_close(changed(sd, tmp_path, half, LINEAR), up @ down)


def lora(file: Path, layers: tuple[str, ...] = (LINEAR, CONV, TEXT), sd: StableDiffusion | None = None) -> Path:
    """A LoRA's file for the embedded model."""
    bare = StableDiffusion(float16=False) if sd is None else sd
    tensors = {}
    for layer in layers:
        out, into, *kernel = weight(networks(bare), layer).shape
        tensors |= part(layer, "lora_down.weight", 2, into, *kernel)
        tensors |= part(layer, "lora_up.weight", out, 2, *(1 for _ in kernel))
    save_file(tensors, file)
    return file


def arrays(sd: StableDiffusion) -> dict[str, mx.array]:
    return dict(tree_flatten([sd._unet.parameters(), [e.parameters() for e in sd._conditioner.encoders]]))


def run(sd: StableDiffusion, text: str = PROMPT) -> np.ndarray:
    for step in sd.generate_latents(text, num_steps=2, width=64, height=64, seed=1):
        mx.eval(step.latents)
    return np.array(step.latents)


class TestOverlay:
    def test_taken_off_the_weights_are_the_same_arrays(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", sd=sd)
        before, picture = arrays(sd), run(sd)
        values = {key: np.array(value) for key, value in before.items()}
        sd.set_loras({"a": 1})
        assert np.abs(run(sd) - picture).max() > 1e-3
        sd.set_loras({})
        after = arrays(sd)
        assert all(after[key] is before[key] for key in before)
        assert all(np.array_equal(np.array(after[key]), values[key]) for key in before)
        assert np.array_equal(run(sd), picture)

    def test_only_what_changes_is_copied(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", sd=sd)
        before = arrays(sd)
        sd.set_loras({"a": 1})
        after = arrays(sd)
        assert before.keys() == after.keys()
        assert sum(after[key] is not before[key] for key in before) == 3

    def test_a_tag_is_for_one_generation(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", sd=sd)
        plain = run(sd)
        tagged = run(sd, f"{PROMPT} <lora:a:0.8>")
        assert np.array_equal(run(sd), plain)
        sd.set_loras({"a": 0.8})
        assert np.array_equal(run(sd), tagged)
        assert not np.array_equal(run(sd, PROMPT + "<lora:a:0.8>"), tagged)  # on top of the other
        assert sd.loras == [("a", Strength(0.8, 0.8))]

    def test_two_generations_at_once_keep_apart(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", sd=sd)
        texts = [PROMPT, f"{PROMPT}<lora:a:1>", f"{PROMPT}<lora:a:-1>"]
        alone = [run(sd, text) for text in texts]
        together = [sd.generate_latents(text, num_steps=2, width=64, height=64, seed=1) for text in texts]
        for steps in zip(*together, strict=True):
            mx.eval([step.latents for step in steps])
        for a, step in zip(alone, steps, strict=True):
            assert np.allclose(a, np.array(step.latents), atol=1e-5)

    def test_several_add_up_in_any_order(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", (LINEAR, CONV), sd)
        lora(tmp_path / "b.safetensors", (CONV, TEXT), sd)
        sd.set_loras([("a", 1), ("b", 0.5)])
        one = run(sd)
        sd.set_loras({"b": 0.5, "a": 1})
        assert np.allclose(run(sd), one, atol=1e-5)
        sd.set_loras("a")
        assert sd.loras == [("a", Strength(1, 1))]

    def test_the_text_encoders_strength_by_itself(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", sd=sd)
        before = arrays(sd)
        for strength, changed_ones in (((1, 0), 2), ((0, 1), 1), ((0, 0), 0)):
            sd.set_loras({"a": strength})
            after = arrays(sd)
            assert sum(after[key] is not before[key] for key in before) == changed_ones

    def test_weights_keep_their_type(self, tmp_path):
        half = StableDiffusion(float16=True)
        half.set_loras([lora(tmp_path / "a.safetensors")])
        assert {array.dtype for array in arrays(half).values()} == {mx.float16}

    def test_a_changed_file_is_read_again(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", (LINEAR,), sd)
        first = run(sd, PROMPT + "<lora:a:1>")
        lora(tmp_path / "a.safetensors", (LINEAR, CONV), sd)
        assert not np.array_equal(run(sd, PROMPT + "<lora:a:1>"), first)

    def test_quantised_layers_become_plain_ones(self, sd, tmp_path):
        file = lora(tmp_path / "a.safetensors", (LINEAR, TEXT), sd)
        eight = StableDiffusion(float16=False, bits=8)
        before = eight._unet
        eight.set_loras([file])
        module = eight._unet.mid_block.attentions[0].transformer_blocks[0].attn2
        assert type(module.to_k) is nn.Linear and isinstance(module.to_v, nn.QuantizedLinear)
        sd.set_loras([file])
        exact = sd._unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
        assert mx.abs(module.to_k.weight - exact).max() < 0.02
        assert np.abs(run(eight) - run(sd)).max() < 0.5
        eight.set_loras([])
        assert eight._unet is before


class TestTags:
    @pytest.mark.parametrize(
        "prompt, text, found",
        [
            ("a house", "a house", []),
            ("a <lora:x> house", "a  house", [("x", Strength(1, 1))]),
            ("a house<lora:x:0.8>", "a house", [("x", Strength(0.8, 0.8))]),
            ("<lora:my file v1.2:-.5>a", "a", [("my file v1.2", Strength(-0.5, -0.5))]),
            ("a<lora:x:0.8:0.3>", "a", [("x", Strength(unet=0.3, text=0.8))]),  # as A1111 has it
            ("a<lora:x:te=0.8:unet=0.3>", "a", [("x", Strength(unet=0.3, text=0.8))]),
            ("a<lora:x:0.5:unet=0.3>", "a", [("x", Strength(unet=0.3, text=0.5))]),
            ("<lora:x:1><LORA:y:2>, b", ", b", [("x", Strength(1, 1)), ("y", Strength(2, 2))]),
            ("<lyco:x:1>", "", [("x", Strength(1, 1))]),
            ("a < lora:x:1 > b", "a < lora:x:1 > b", []),
        ],
    )
    def test_forms(self, prompt, text, found):
        parsed = parse(prompt, "plain")
        assert (parsed.parts[0].text, list(parsed.loras)) == (text, found)

    @pytest.mark.parametrize(
        "tag",
        ["<lora:>", "<lora::1>", "<lora:x:much>", "<lora:x:nan>", "<lora:x:1:2:3:4>", "<lora:x:tee=1>", "<lora:x:>"],
    )
    def test_broken_ones_are_quoted(self, tag):
        with pytest.raises(InputError, match="lora:"):
            parse(f"a house {tag}").loras  # noqa: B018

    def test_hypernetworks_are_named(self, sd):
        assert parse("a house <hypernet:ink:0.5>").parts[0].text == "a house "
        with pytest.raises(InputError, match=r"'<hypernet:ink:0\.5>' names a hypernetwork"):
            sd.generate_latents("a house <hypernet:ink:0.5>")

    def test_a_negative_text_lays_nothing_over(self, sd, tmp_path):
        lora(tmp_path / "a.safetensors", sd=sd)
        with pytest.warns(UserWarning, match="negative"):
            sd.generate_latents(PROMPT, "clouds <lora:a:1>")

    def test_a_tag_reaches_no_path(self, sd, tmp_path):
        path = lora(tmp_path / "a.safetensors", sd=sd)
        with pytest.raises(CheckpointNotFoundError):
            sd.generate_latents(f"{PROMPT}<lora:{path}:1>")


class TestFiles:
    def test_names(self, tmp_path, monkeypatch):
        for name in ("one/Deep.safetensors", "two/deep.v2.safetensors", "two/notes.txt", "two/.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "one" / "loop").symlink_to(tmp_path / "one")
        monkeypatch.setenv("STABLE_DIFFUSION_LORAS", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
        assert files.folders("loras")[1:] == [tmp_path / "one", tmp_path / "two"]
        assert {"Deep", "deep.v2"} <= files.listed("loras").keys()
        for name in ("Deep", "deep", "Deep.safetensors"):
            assert files.find("loras", name).name == "Deep.safetensors"
        assert files.find("loras", "deep.v2").name == "deep.v2.safetensors"
        assert files.find("loras", tmp_path / "two" / "notes.txt").name == "notes.txt"

    def test_a_missing_one_is_named_with_its_neighbours(self, sd, tmp_path):
        lora(tmp_path / "watercolour.safetensors", sd=sd)
        with pytest.raises(
            CheckpointNotFoundError, match=r"'watercolor'. Near it: watercolour.*STABLE_DIFFUSION_LORAS"
        ):
            sd.set_loras({"watercolor": 1})
        with pytest.raises(CheckpointNotFoundError, match="'watercolor'"):
            sd.generate_latents(PROMPT + "<lora:watercolor:1>")

    def test_pefts_folder_has_its_alpha_beside(self, sd, tmp_path):
        out, into = weight(networks(sd), LINEAR).shape
        module = "base_model.model." + PATHS[LINEAR][1]
        tensors = part(module, "lora_A.weight", 4, into) | part(module, "lora_B.weight", out, 4)
        folder = tmp_path / "mine"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "use_rslora": True}))
        sd.set_loras([folder])
        change = weight(Networks(sd._unet, networks(sd).text_encoders), LINEAR) - weight(networks(sd), LINEAR)
        assert_close(change, tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"] * 3)


class TestPeft:
    def test_patterns_are_regular_expressions(self):
        config = PeftConfig({"lora_alpha": 4, "r": 2, "alpha_pattern": {r"down\.\d\.to_k": 8, "to_k": 6, "o_v": 1}})
        found = [config.alpha(name) for name in ("down.1.to_k", "x.down.1.to_k", "up.1.to_k", "down.1.to_v", "o_v")]
        assert found == [8, 8, 6, 4, 1]
        assert config.not_honoured() == []

    @pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)*", "a*b*c*d*", "(?i)to_k", "(", "x" * 501, r"(a)\1"])
    def test_patterns_that_could_take_forever_are_warned_of(self, pattern, sd, tmp_path):
        lora(tmp_path / "x.safetensors", (LINEAR,), sd)
        tensors = load_file(tmp_path / "x.safetensors")
        metadata = {"unet.lora_alpha": 2, "unet.r": 2, "unet.alpha_pattern": {pattern: 9}}
        save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
        with pytest.warns(AdapterWarning, match="in alpha_pattern"):
            sd.set_loras({"x": 1})

    @pytest.mark.parametrize("values", [{"init_lora_weights": "pissa_niter_4"}, {"modules_to_save": ["conv_in"]}])
    def test_what_is_not_honoured_is_warned_of(self, values, sd, tmp_path):
        lora(tmp_path / "x.safetensors", (LINEAR,), sd)
        (tmp_path / "adapter_config.json").write_text(json.dumps(values))
        with pytest.warns(AdapterWarning, match=next(iter(values))):
            sd.set_loras({"x": 1})

    @pytest.mark.parametrize("rank", [0, -1, "4"])
    def test_a_rank_that_makes_no_sense(self, rank, sd, tmp_path):
        lora(tmp_path / "x.safetensors", (LINEAR,), sd)
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
        with pytest.raises(WeightsError, match="rank is"):
            sd.set_loras({"x": 1})


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_float8_files(dtype, sd, tmp_path):
    out, into = weight(networks(sd), LINEAR).shape
    codes = {"lora_down": np.arange(2 * into, dtype=np.uint8).reshape(2, into) % 64, "lora_up": np.full((out, 2), 0x34)}
    entries, data = {}, b""
    for name, value in codes.items():
        place = [len(data), len(data) + value.size]
        entries[f"{LINEAR}.{name}.weight"] = {"dtype": dtype, "shape": value.shape, "data_offsets": place}
        data += value.astype(np.uint8).tobytes()
    (tmp_path / "f.safetensors").write_bytes(single_files.safetensors(entries, data))
    found = load_lora(tmp_path / "f.safetensors", networks(sd), sd.family)
    after = lay_over(networks(sd), [(found, Strength(1, 1))])
    down, up = (float8_values(dtype)[codes[name].astype(int)] for name in ("lora_down", "lora_up"))
    assert_close(weight(after, LINEAR) - weight(networks(sd), LINEAR), up @ down)


class TestBundledEmbeddings:
    def bundle(self, sd, folder, name="foggy", key="string_to_param.*") -> np.ndarray:
        file = lora(folder / "mist.safetensors", (LINEAR,), sd)
        vectors = drawn.normal(name, 2, 128) * np.float32(0.1)
        save_file(load_file(file) | {f"bundle_emb.{name}.{key}": vectors}, file)
        return vectors

    @pytest.mark.parametrize("key", ["string_to_param.*", "emb_params"])
    @pytest.mark.filterwarnings("error")
    def test_they_are_known_while_the_lora_is(self, key, sd, tmp_path, monkeypatch):
        """The picture is that of the LoRA and of the same embedding in a file of its own."""
        monkeypatch.setattr(sd._embeddings, "folders", [tmp_path / "embeddings"])
        vectors = self.bundle(sd, tmp_path, key=key)
        plain, tagged = run(sd, "a foggy house"), run(sd, "a foggy house<lora:mist:1>")
        (tmp_path / "embeddings").mkdir()
        save_file({"emb_params": vectors}, tmp_path / "embeddings" / "foggy.safetensors")
        lora(tmp_path / "mist.safetensors", (LINEAR,), sd)
        expected = run(sd, "a foggy house<lora:mist:1>")
        assert np.array_equal(tagged, expected) and not np.array_equal(tagged, plain)

    def test_they_are_known_to_set_loras(self, sd, tmp_path, monkeypatch):
        monkeypatch.setattr(sd._embeddings, "folders", [])
        self.bundle(sd, tmp_path)
        tagged = run(sd, "a foggy house<lora:mist:1>")
        sd.set_loras({"mist": 1})
        assert np.array_equal(run(sd, "a foggy house"), tagged)
        assert len(sd.generate("a foggy house", num_steps=1, width=64, height=64)) == 1

    def test_of_another_family(self, sd, tmp_path):
        self.bundle(sd, tmp_path)
        tensors = load_file(tmp_path / "mist.safetensors")
        tensors["bundle_emb.foggy.string_to_param.*"] = drawn.normal("x", 2, 1024)
        save_file(tensors, tmp_path / "mist.safetensors")
        with pytest.raises(UnsupportedCheckpointError, match=r"'foggy' is for SD 2\.x"):
            sd.generate_latents("a foggy house<lora:mist:1>")


class TestRefusals:
    def refused(self, sd, tmp_path, tensors, match, error=UnsupportedCheckpointError, metadata=None):
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        before = arrays(sd)
        with pytest.raises(error, match=match):
            sd.set_loras({"x": 1})
        after = arrays(sd)
        assert all(after[key] is before[key] for key in before) and sd.loras == []

    def test_by_its_second_text_encoder(self, sd, tmp_path):
        tensors = part("lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_down.weight", 4, 1280)
        self.refused(sd, tmp_path, tensors, r"'x' is for SDXL, this checkpoint is SD 1\.x")

    @pytest.mark.parametrize("width, family", [(2048, "SDXL"), (1024, r"SD 2\.x"), (99, "text is 99 wide")])
    def test_by_the_width_of_its_text(self, width, family, sd, tmp_path):
        tensors = part(LINEAR, "lora_down.weight", 4, width) | part(LINEAR, "lora_up.weight", 320, 4)
        self.refused(sd, tmp_path, tensors, rf"'x' is for .*{family}.*, this checkpoint is SD 1\.x")

    @pytest.mark.parametrize(
        "key, name",
        [
            ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "FLUX"),
            ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
            ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "Stable Diffusion 3"),
            ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "another architecture"),
        ],
    )
    def test_by_its_keys(self, key, name, sd, tmp_path):
        self.refused(sd, tmp_path, {key: drawn.normal("x", 4, 8)}, f"'x' is for {name}")

    @pytest.mark.parametrize(
        "metadata, name",
        [
            ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
            ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, r"SD 2\.x"),
        ],
    )
    def test_by_its_metadata(self, metadata, name, sd, tmp_path):
        out, into = weight(networks(sd), TEXT).shape
        tensors = part(TEXT, "lora_down.weight", 4, into) | part(TEXT, "lora_up.weight", out, 4)
        self.refused(sd, tmp_path, tensors, f"'x' is for {name}", metadata=metadata)

    def test_of_another_shape(self, sd, tmp_path):
        tensors = part(CONV, "lora_down.weight", 4, 33, 3, 3) | part(CONV, "lora_up.weight", 64, 4, 1, 1)
        self.refused(sd, tmp_path, tensors, r"does not fit this checkpoint at unet\.mid_block.*\(4, 33, 3, 3\)")

    def test_that_matches_nothing(self, sd, tmp_path):
        tensors = part("lora_unet_up_blocks_9_x", "lora_down.weight", 4, 8) | {"more": drawn.normal("x", 2)}
        self.refused(sd, tmp_path, tensors, r"none of its tensors matches.*lora_unet_up_blocks_9_x\.lora_down")

    @pytest.mark.parametrize(
        "key, form", [("oft_blocks", "OFT"), ("a1.weight", "GLoRA"), ("on_input", r"\(IA\)3"), ("boft_r", "OFT")]
    )
    def test_of_other_forms(self, key, form, sd, tmp_path):
        self.refused(sd, tmp_path, {f"{LINEAR}.{key}": drawn.normal("x", 4, 4)}, form)

    def test_what_is_left_out_is_listed(self, sd, tmp_path):
        lora(tmp_path / "x.safetensors", (LINEAR,), sd)
        tensors = part("lora_unet_up_blocks_9_x", "lora_down.weight", 4, 8) | {"more": drawn.normal("x", 2)}
        tensors |= part(CONV, "lora_down.weight", 4, 8, 3, 3)  # without its other half
        out, into = weight(networks(sd), LINEAR).shape
        tensors |= part(LINEAR, "lora_down.weight", 4, into) | part(LINEAR, "lora_up.weight", out, 4)
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.warns(
            AdapterWarning, match=r"'x' holds 3 tensors.*conv1\.lora_down.*up_blocks_9_x\.lora_down.*more"
        ):
            sd.set_loras({"x": 1})

    def test_an_empty_one(self, sd, tmp_path):
        self.refused(sd, tmp_path, {}, "'x' cannot be used: it is empty")

    def test_a_file_cut_at_every_hundredth(self, sd, tmp_path):
        file = lora(tmp_path / "x.safetensors", sd=sd)
        whole = file.read_bytes()
        for hundredth in range(100):
            file.write_bytes(whole[: len(whole) * hundredth // 100])
            with pytest.raises(WeightsError, match=r"x\.safetensors"):
                sd.set_loras({"x": 1})

    @pytest.mark.filterwarnings("ignore::stable_diffusion.adapters.lora.AdapterWarning")
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(st.sampled_from(PARTS), st.lists(st.integers(0, 9), max_size=5), min_size=1))
    def test_shapes_of_any_kind(self, sd, tmp_path, shapes):
        tensors = {f"{layer}.{part}": np.zeros(shape, np.float32) for layer in (LINEAR, CONV)
                   for part, shape in shapes.items()}  # fmt: skip
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UnsupportedCheckpointError):
            sd.set_loras({"x": 1})

    @pytest.mark.parametrize(
        "metadata", [{"unet.lora_alpha": "much"}, {"unet.lora_alpha": 2, "unet.alpha_pattern": []}, 3]
    )
    def test_metadata_of_any_kind(self, metadata, sd, tmp_path):
        lora(tmp_path / "x.safetensors", (LINEAR,), sd)
        tensors = load_file(tmp_path / "x.safetensors")
        save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
        if "much" in str(metadata):
            with pytest.raises(WeightsError, match="'much'"):
                sd.set_loras({"x": 1})
        else:
            sd.set_loras({"x": 1})

    def test_whole_numbers_are_no_weights(self, sd, tmp_path):
        tensors = {f"{LINEAR}.lora_down.weight": np.zeros((2, 2), np.int32)}
        self.refused(sd, tmp_path, tensors, "of type I32", WeightsError)

    @pytest.mark.parametrize("strength", [float("nan"), float("inf"), "0.8", None, True, (1,), (1, "x"), [1, 2]])
    def test_strengths(self, strength, sd, tmp_path):
        lora(tmp_path / "a.safetensors", (LINEAR,), sd)
        with pytest.raises(InputError, match="strength"):
            sd.set_loras({"a": strength})

    @pytest.mark.parametrize("given", [[3], [("a",)], [("a", 1, 2)], [(3, 1)]])
    def test_sources(self, given, sd):
        with pytest.raises(InputError, match="name or file"):
            sd.set_loras(given)


class TestCommandLine:
    """With the embedded model, since it is what the options reach that counts."""

    def paint(self, folder: Path, *options: str, prompt: str = PROMPT) -> tuple[np.ndarray, Parameters]:
        argv = ["txt2img", prompt, "--seed", "1", "--steps", "2", "--width", "64", "--height", "64", "--quiet"]
        assert program.main([*argv, "--output", str(folder / "out.png"), *options]) == 0
        with Image.open(folder / "out.png") as picture:
            return np.array(picture), picture_files.read_parameters(folder / "out.png")

    def test_options_and_tags_do_the_same(self, sd, tmp_path, monkeypatch):
        monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path))
        file = lora(tmp_path / "deep.safetensors", sd=sd)
        plain, parameters = self.paint(tmp_path)
        rest = parameters.extra
        tagged, parameters = self.paint(tmp_path, prompt=PROMPT + "<lora:deep:0.8>")
        assert parameters.prompt == PROMPT + "<lora:deep:0.8>"
        digits = hashlib.sha256(file.read_bytes()[8 + int.from_bytes(file.read_bytes()[:8], "little") :]).hexdigest()
        assert parameters.extra == {"Lora hashes": f"deep: {digits[:12]}"} | rest
        named, parameters = self.paint(tmp_path, "--lora", "deep:0.8")
        assert parameters.extra == {"LoRA": "deep:0.8", "Lora hashes": f"deep: {digits[:12]}"} | rest
        by_path, _ = self.paint(tmp_path, "--lora", f"{file}:0.5", "--lora", f"{file}:0.3")
        assert np.abs(plain.astype(int) - tagged).max() > 2
        assert np.array_equal(tagged, named)
        assert np.abs(tagged.astype(int) - by_path).max() <= 1

    def test_a_vae(self, sd, tmp_path):
        _, parameters = self.paint(tmp_path, "--vae", str(EMBEDDED / "vae"))
        assert parameters.extra["VAE"] == "vae"

    @pytest.mark.parametrize("option", [["--lora", "nothing"], ["--vae", "nothing"]])
    def test_what_is_missing(self, option, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert program.main(["txt2img", PROMPT, *option]) == 1
        assert "'nothing'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "text, read",
        [("a", ("a", 1)), ("a:0.5", ("a", 0.5)), ("a:b:-1", ("a:b", -1)), ("a:b", ("a:b", 1)), ("C:/a", ("C:/a", 1))],
    )
    def test_forms(self, text, read):
        assert program.build_parser().parse_args(["txt2img", "x", "--lora", text]).loras == [read]


def test_every_layer_has_a_name(sd):
    """The two namings together name every layer, and no name means two."""
    paths = {path for path, module in networks(sd).unet.named_modules() if path and "weight" in module}
    table = file_keys.modules("unet", networks(sd).unet)
    assert set(table.values()) == paths
    originals = {path for name, path in table.items() if name.startswith(("input_", "middle_", "output_", "time_embed_",
                                                                           "out_"))}  # fmt: skip
    assert originals == paths
