"""The table of families: complete, and the only place where one family is told from another."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stable_diffusion import families
from stable_diffusion.adapters import embeddings, lora_family
from stable_diffusion.families import FAMILIES, SD1, SD2, SDXL, SDXL_REFINER
from stable_diffusion.model_io import load_folder, load_vae

ROOT = Path(__file__).parents[1]


def test_nobody_else_compares_their_names():
    literal = re.compile(rf"""(["'])({"|".join(FAMILIES)})\1""")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "stable_diffusion").rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if path.name != "families.py" and literal.search(line)
    ]
    assert found == []


def test_titles_stand_once():
    """A second table of titles would be a second table of families."""
    titles = re.compile("|".join(f'"{re.escape(family.long_title)}"' for family in FAMILIES.values()))
    allowed = {"families.py", "catalogue.py"}  # which calls SDXL's own base model by this name
    found = [path.name for path in (ROOT / "stable_diffusion").rglob("*.py") if titles.search(path.read_text())]
    assert set(found) == allowed


def test_no_mlx():
    code = "import sys, stable_diffusion.families; assert not any(name.startswith('mlx') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_rows_are_complete(family):
    texts = {each.name for each in dataclasses.fields(family) if each.type == "str"}
    trained = {"lora_base"} if family.refines else set()  # for which nobody trains LoRAs
    assert len(texts) > 5 and all(getattr(family, name) for name in texts - trained)
    assert family.text_encoders and family.colours
    assert family.lora_bases or family.refines
    assert len(family.colours[0]) == family.latent_channels
    assert all(len(keys) == len(family.text_encoders) for keys in family.embedding_keys)
    assert family.long_title.rpartition(" ")[2] in families.IN_WORDS


def test_rows_can_be_told_apart():
    for name in ("key", "title", "long_title", "text_width", "architecture"):
        assert len({getattr(family, name) for family in FAMILIES.values()}) == len(FAMILIES)
    prefixes = [encoder.prefix for family in FAMILIES.values() for encoder in family.text_encoders]
    assert not [(a, b) for a in prefixes for b in prefixes if a != b and a.startswith(b)]
    bases = [base for family in FAMILIES.values() for base in family.lora_bases]
    assert not [(a, b) for a in bases for b in bases if a != b and a.startswith(b)]


def test_encoders_by_their_folders():
    assert [encoder.width for encoder in SDXL.encoders.values()] == [768, 1280]
    assert list(SDXL.encoders) == ["text_encoder", "text_encoder_2"]
    assert list(SD2.encoders) == ["text_encoder"] and list(SDXL_REFINER.encoders) == ["text_encoder_2"]


@pytest.mark.parametrize(
    ("width", "pooled", "family"),
    [
        (768, False, SD1), (1024, False, SD2), (2048, True, SDXL), (1280, True, SDXL_REFINER), (128, False, SD1),
        (112, True, SDXL), (112, True, SDXL_REFINER),
    ],
)  # fmt: skip
def test_of_a_network(width, pooled, family):
    assert families.of_network(width, pooled, list(family.encoders)) is family
    assert families.of_network(family.text_width, pooled, ["of", "other", "names"]) is family


def test_of_a_width():
    assert [families.of_width(family.text_width) for family in FAMILIES.values()] == [SD1, SD2, SDXL, SDXL_REFINER]
    assert families.of_width(0) is None and families.of_width(1281) is None


@pytest.mark.parametrize(
    ("name", "width", "family"),
    [
        ("StableDiffusionPipeline", 768, SD1),
        ("StableDiffusionPipeline", None, SD1),
        ("StableDiffusionInpaintPipeline", 1024, SD2),
        ("LatentConsistencyModelPipeline", 768, SD1),
        ("StableDiffusionXLPipeline", 2048, SDXL),
        ("StableDiffusionXLInpaintPipeline", [1, 2], SDXL),
        ("StableDiffusionXLImg2ImgPipeline", 2048, SDXL),
        ("StableDiffusionXLImg2ImgPipeline", 1280, SDXL_REFINER),
        ("StableDiffusion3Pipeline", 768, None),
        ("FluxPipeline", 768, None),
    ],
)
def test_of_a_pipeline(name, width, family):
    assert families.of_pipeline(name, width) is family


def test_a_family_without_a_row():
    """Nothing is known of it but its key, and nothing is demanded of it."""
    unknown = families.get("a toy")
    assert (unknown.key, unknown.title, unknown.text_encoders, unknown.pooled) == ("a toy", "a toy", (), False)
    assert families.get("").title == ""
    assert families.get(SDXL.key) is SDXL


def test_what_others_make_of_the_rows():
    assert lora_family.TEXT_WIDTHS == {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}
    assert embeddings.WIDTHS == {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL"}
    assert lora_family.BASE_MODELS["stable-diffusion-xl"] == lora_family.BASE_MODELS["sdxl"] == "SDXL"
    assert load_vae.TINY == {(0.18215, 4): "madebyollin/taesd", (0.13025, 4): "madebyollin/taesdxl"}
    assert set(load_folder.PIPELINES) == {
        "StableDiffusion", "StableDiffusionXL", "StableDiffusionXLImg2Img", "LatentConsistencyModel", "AltDiffusion",
    }  # fmt: skip
