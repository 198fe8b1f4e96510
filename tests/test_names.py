"""Names of weights: every parameter of every family goes to a file's name and back, in every spelling there is."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten

from stable_diffusion.adapters import file_keys
from stable_diffusion.backend import mx, nn
from stable_diffusion.clip import CLIPTextModel
from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, UNetConfig
from stable_diffusion.model_io import export, names
from stable_diffusion.model_io.load_file import source_of
from stable_diffusion.model_io.name_table import TRANSPOSED, Names, Row, table
from stable_diffusion.model_io.strict import add_source, give
from stable_diffusion.model_io.tensor_file import open_tensors
from stable_diffusion.unet import UNet
from stable_diffusion.vae import Autoencoder

from .shapes import TEXT, UNETS, VAES

PACKAGE = Path(__file__).parents[1] / "stable_diffusion"
MIDDLE = "mid_block.attentions.0"
ORIGINALS = [name for name in UNETS if name != "uneven"]  # a single file's levels have all as many layers


def unet(name: str) -> UNet:
    return UNet(UNetConfig.from_dict(UNETS[name]))


def vae(name: str) -> Autoencoder:
    return Autoencoder(AutoencoderConfig.from_dict(VAES[name]))


def text(projection: bool) -> CLIPTextModel:
    kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return CLIPTextModel(CLIPTextConfig.from_dict({**TEXT, "architectures": (kind,)}))


def spellings(model: nn.Module, original: Names) -> list[tuple[Names, Names]]:
    """The tables to write and to read folders and single files with."""
    if isinstance(model, UNet):
        return [(names.unet(model.config), names.UNET), (names.original_unet(model.config), original)]
    folder = names.VAE if isinstance(model, Autoencoder) else names.TEXT_ENCODER
    return [(folder, folder), (original, original)]


def original_unet(model: UNet) -> Names:
    """As a loader comes by it: from the names in the file alone."""
    keys = export.renamed(model, names.original_unet(model.config))
    return names.original_unet_of(names.unet_layout(keys))


CASES = [
    *((f"U-Net {name}", lambda name=name: (model := unet(name), original_unet(model))) for name in ORIGINALS),
    *((f"VAE {name}", lambda name=name: (vae(name), names.original_vae(4))) for name in VAES),
    *((f"text {p}", lambda p=p: (text(p), names.OPEN_CLIP_TEXT)) for p in (False, True)),
]


@pytest.mark.parametrize("build", [build for _, build in CASES], ids=[name for name, _ in CASES])
class TestParameters:
    def test_there_and_back(self, build):
        """Each parameter has one place in the file, and no two have the same."""
        model, original = build()
        parameters = [name for name, _ in tree_flatten(model.parameters())]
        for writing, reading in spellings(model, original):
            places = {name: writing.write(name) for name in parameters}
            assert len({(place.theirs, place.part) for place in places.values()}) == len(parameters)
            keys = dict.fromkeys(place.theirs for place in places.values())
            found = [place for key in keys for place in reading.read(key)]
            assert sorted(place.ours for place in found) == sorted(parameters)
            assert all(places[place.ours].part == place.part for place in found)

    def test_the_tensors(self, build, tmp_path):
        """What is written and read again is the same network, to the bit, and has torch's shapes in between."""
        model, original = build()
        before = dict(tree_flatten(model.parameters()))
        for writing, reading in spellings(model, original):
            tensors = export.renamed(model, writing)
            assert sum(value.size for value in tensors.values()) == sum(value.size for value in before.values())
            mx.save_safetensors(str(tmp_path / "file.safetensors"), tensors)
            other = type(model)(model.config)
            other.apply(mx.zeros_like)
            read_into(other, tmp_path / "file.safetensors", reading)
            after = dict(tree_flatten(other.parameters()))
            assert before.keys() == after.keys()
            assert all(np.array_equal(before[name], after[name]) for name in before)


def read_into(model: nn.Module, path: Path, reading: Names) -> None:
    with open_tensors(path) as file:
        sources: dict = {}
        for key, stored in file.tensors.items():
            for place in reading.read(key):
                part = stored.rows(*place.part) if place.part else stored
                add_source(sources, place.ours, source_of(file, part, place.form == TRANSPOSED))
        give(model, sources, str(path), mx.float32)


def test_forms():
    """The tensors that lie otherwise in a file than here."""
    unet_places = {name: names.original_unet(unet(name).config) for name in ("sd1", "sdxl")}
    projection = "down_blocks.1.attentions.0.proj_in.weight"
    assert unet_places["sd1"].write(projection).form == "kernel"
    assert unet_places["sdxl"].write(projection).form == ""
    assert unet_places["sdxl"].write("mid_block.attentions.0.transformer_blocks.0.ff.proj_in.weight").form == ""
    attention = "encoder.mid_block.attentions.0.attention.to_q.weight"
    assert (names.VAE.write(attention).form, names.original_vae(4).write(attention).form) == ("", "kernel")
    assert names.OPEN_CLIP_TEXT.write("text_projection.weight").form == "transposed"
    key = names.OPEN_CLIP_TEXT.write("layers.2.self_attn.k_proj.bias")
    assert (key.theirs, key.part) == ("transformer.resblocks.2.attn.in_proj_bias", (1, 3))


@pytest.mark.parametrize(
    ("reading", "key", "ours"),
    [
        (names.VAE, f"decoder.{MIDDLE}.query.weight", f"decoder.{MIDDLE}.attention.to_q.weight"),
        (names.VAE, f"encoder.{MIDDLE}.proj_attn.bias", f"encoder.{MIDDLE}.attention.to_out.bias"),
        (names.TEXT_ENCODER, "encoder.layers.1.mlp.fc2.bias", "layers.1.fc2.bias"),
        (names.TEXT_ENCODER, "embeddings.position_embedding.weight", "position_embedding.weight"),
    ],
)  # fmt: skip
def test_old_spellings_are_read_and_not_written(reading, key, ours):
    (place,) = reading.read(key)
    assert place.ours == ours
    assert reading.write(ours).theirs != key


def test_keys_that_hold_no_weights():
    assert names.TEXT_ENCODER.read("text_model.embeddings.position_ids") == []
    assert names.TEXT_ENCODER.read("text_model.embeddings.positions") != []


@pytest.mark.parametrize("line", ["a b c", "a.{n} b", "a b.{n}", "a.{n} b_{q,k}.{n}.{n} fused"])
def test_a_row_that_makes_no_sense(line):
    with pytest.raises(ValueError, match="not a row"):
        Row.parse(line)


def test_pieces_are_whole_segments():
    rows = table("to.{n} x.{n}.y", "out z")
    assert [place.ours for place in rows.read("a.to.12.out.weight")] == ["a.x.12.y.z.weight"]
    for name in ("into.1", "a.to.1b", "out_.a", "b.to_out"):
        assert rows.read(name)[0].ours == rows.write(name).theirs == name


# --- Adapters


def modules(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if path and "weight" in module]


@pytest.mark.parametrize("name", UNETS)
def test_every_spelling_of_the_unets_modules(name):
    """kohya's, peft's and diffusers' keys lead to the module that they were written for, and to no other."""
    model = unet(name)
    diffusers, old, original = names.unet_spellings(model.config)
    listed = file_keys.modules("unet", model)
    for path in modules(model):
        theirs = [each.write(path).theirs for each in (diffusers, old, original)]
        keys = [
            *(f"lora_unet_{names.flat(each)}.lora_down.weight" for each in theirs),
            *(f"unet.{each}.lora_A.weight" for each in theirs),
            *(f"base_model.model.{each}.lora_B.default.weight" for each in theirs),
            f"unet.{theirs[1]}.lora.up.weight",
            f"diffusion_model.{theirs[2]}.lora_A.weight",
        ]
        for key in keys:
            part = file_keys.parse(key)
            assert part and listed[part.flat] == path, key
        assert [place.ours for place in original.read(theirs[2])] == [path]


@pytest.mark.parametrize("projection", [False, True])
def test_every_spelling_of_the_text_encoders_modules(projection):
    model = text(projection)
    listed = file_keys.modules("text_encoder", model)
    for path, each in itertools.product(modules(model), names.text_spellings()):
        theirs = each.write(path).theirs
        for key in (
            f"lora_te1_{names.flat(theirs)}.lora_up.weight",
            f"text_encoder.{theirs}.lora_A.weight",
            f"text_encoder.{theirs}.lora_linear_layer.down.weight",
        ):
            part = file_keys.parse(key)
            assert part and listed[part.flat] == path, key
    assert listed["text_model_encoder_layers_0_self_attn_to_out"] == "layers.0.self_attn.out_proj"
    assert listed["encoder_layers_2_mlp_fc1"] == "layers.2.fc1"


def test_an_lcms_guidance_has_all_its_names():
    listed = file_keys.modules("unet", unet("lcm"))
    assert listed["time_embed_cond_proj"] == listed["time_embedding_cond_proj"] == "time_embedding.cond_proj"


# --- Nobody else knows them

FOREIGN = re.compile(
    r"input_blocks|output_blocks|middle_block|in_layers|emb_layers|skip_connection|nin_shortcut|resblocks|attn_1\b|"
    r"to_out\.0|downsamplers|upsamplers|net\.0\.proj|proj_attn|text_model\.|in_proj_|\bc_fc\b|lora_down|lora_A"
)
EXCEPTIONS = {
    "model_io/names.py",
    "model_io/describe.py",  # the marks by which files are told apart, most of them of models that are not built here
    "adapters/lora_file.py",  # how they are written: a LoRA's file as kohya's scripts and peft have it
    "adapters/file_keys.py",  # how an adapter's keys begin and end: whose they are, and which part of an adapter
    "selftest/parts.py",  # a LoRA file as kohya writes it, to be read back
}


def test_foreign_names_stand_in_one_file():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if FOREIGN.search(path.read_text(encoding="utf-8"))
    }
    assert found == EXCEPTIONS


def test_each_pair_stands_once():
    """In the text of the file: no line says again what another one says."""
    tree = ast.parse((PACKAGE / "model_io" / "names.py").read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    rows = [line for each in texts if each.startswith("\n    ") for line in each.splitlines() if line.strip()]
    pairs = [tuple(row.split()[:2]) for row in rows]
    assert len(pairs) > 50
    assert len(set(pairs)) == len(pairs)
