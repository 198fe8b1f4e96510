"""StableDiffusion.generate: finished pictures with their records, many prompts in one batch."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stable_diffusion import Blend, StableDiffusion
from stable_diffusion.errors import CheckpointNotFoundError, InputError, PictureError
from stable_diffusion.pictures.arrays import to_picture
from stable_diffusion.record import picture_files
from stable_diffusion.unet import UNet

from . import drawn

RED, BLUE, BOAT = "a red house on green hills", "a blue tent at night", "a boat by the sea"
FEW = {"num_steps": 4, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The rows of the first call of every generation."""
    rows: list[int] = []
    prepare, predict = UNet.prepare, UNet.predict
    monkeypatch.setattr(UNet, "prepare", lambda self, *rest: rows.append(0) or prepare(self, *rest))

    def counting(self, x, *rest):
        rows[-1] = len(x)
        return predict(self, x, *rest)

    monkeypatch.setattr(UNet, "predict", counting)
    return rows


def alone(sd: StableDiffusion, text: str | Blend, negative: str | None = None, **options) -> np.ndarray:
    """The picture of `generate_latents` and `decode`."""
    for step in sd.generate_latents(text, negative, **{**FEW, **options}):  # noqa: B007
        pass
    return np.asarray(to_picture(np.asarray(sd.decode(step.latents))[0]))


def same(picture: Image.Image, expected: np.ndarray) -> bool:
    """Within one level on 99.9 % of all values."""
    return (np.abs(np.asarray(picture, int) - expected) <= 1).mean() >= 0.999


def lora(folder, sd, name: str) -> None:
    save_file(
        {
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": drawn.normal(
                f"{name} down", 4, width(sd)
            ),
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight": drawn.normal(
                f"{name} up", width(sd), 4
            ),
        },
        folder / f"{name}.safetensors",
    )


def width(sd: StableDiffusion) -> int:
    return sd._unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]


def test_one_picture(sd):
    (picture,) = sd.generate(RED, "clouds", seed=3, **FEW)
    assert np.array_equal(picture.image, alone(sd, RED, "clouds", seed=3))
    assert picture.image.mode == "RGB" and picture.image.size == (64, 64)


def test_several_of_one_prompt(sd):
    pictures = sd.generate(RED, n_images=2, seed=3, **FEW)
    for step in sd.generate_latents(RED, n_images=2, seed=3, **FEW):  # noqa: B007
        pass
    for picture, values in zip(pictures, np.asarray(sd.decode(step.latents)), strict=True):
        assert np.array_equal(picture.image, to_picture(values))
    assert [picture.parameters.seed for picture in pictures] == [3, 4]
    assert [picture.parameters.extra["Batch pos"] for picture in pictures] == ["0", "1"]


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m_karras", "heun"])
def test_a_list_is_one_batch_of_the_pictures_that_each_is_alone(sd, batches, sampler):
    prompts, negatives = [RED, f"[{BLUE}:{BOAT}:2]", f"a ({BOAT}:1.2)"], ["clouds", None, "[fog|rain]"]
    options = {**FEW, "sampler": sampler, "cfg_weight": 5.0}
    pictures = sd.generate(prompts, negatives, seed=7, **options)
    assert batches == [6]
    for i, picture in enumerate(pictures):
        assert same(picture.image, alone(sd, prompts[i], negatives[i], **{**options, "seed": 7 + i}))
        assert (picture.parameters.prompt, picture.parameters.seed) == (prompts[i], 7 + i)
        assert picture.parameters.negative == (negatives[i] or "") and "Batch size" not in picture.parameters.extra


def test_n_images_of_each_count_on_through_the_list(sd):
    pictures = sd.generate([RED, BLUE], "fog", n_images=2, seed=10, **FEW)
    assert [(each.parameters.prompt, each.parameters.seed) for each in pictures] == [
        (RED, 10), (RED, 11), (BLUE, 12), (BLUE, 13)
    ]  # fmt: skip
    for picture in pictures:
        made = picture.parameters
        assert same(picture.image, alone(sd, made.prompt, "fog", seed=made.seed))


def test_what_cannot_share_a_batch_is_painted_apart(sd, batches, tmp_path, monkeypatch):
    for name in ("one", "two"):
        lora(tmp_path, sd, name)
    monkeypatch.setattr(sd._overlay, "folders", [tmp_path])
    prompts = [
        RED,
        f"{RED} <lora:one:1>",
        f"{RED} AND {BLUE}",
        "house, " * 60,
        f"{BLUE} <lora:one:1>",
        f"{RED} <lora:two:1>",
        f"{BLUE} AND {RED}",
        f"{RED} AND {BLUE}:0.5",
        Blend(RED, BLUE, 0.5),
    ]
    pictures = sd.generate(prompts, seed=5, **FEW)
    # Plain and blended; the LoRA one; AND; two chunks; the LoRA two; AND of other weights.
    assert batches == [4, 4, 6, 2, 2, 3]
    for i, picture in enumerate(pictures):
        assert same(picture.image, alone(sd, prompts[i], seed=5 + i)), prompts[i]
    # A batch of one is bit-equal.
    for i in (3, 5, 7):
        assert np.array_equal(pictures[i].image, alone(sd, prompts[i], seed=5 + i))
    assert pictures[1].parameters.extra["Lora hashes"] != pictures[5].parameters.extra["Lora hashes"]
    assert "Lora hashes" not in pictures[0].parameters.extra


def test_embeddings_count_in_chunks(sd, batches, tmp_path, monkeypatch):
    monkeypatch.setattr(sd._embeddings, "folders", [tmp_path])
    size = sd._conditioner.encoders[0].config.hidden_size
    save_file({"emb_params": drawn.normal("foggy", 70, size)}, tmp_path / "foggy.safetensors")
    prompts = [RED, "a foggy house on green hills at sunset"]
    pictures = sd.generate(prompts, seed=5, **FEW)
    assert batches == [2, 2]
    for i, picture in enumerate(pictures):
        assert np.array_equal(picture.image, alone(sd, prompts[i], seed=5 + i))
    assert "TI hashes" in pictures[1].parameters.extra and "TI hashes" not in pictures[0].parameters.extra


def test_variations_noise_and_starts_are_each_pictures_own(sd):
    prompts = [RED, f"{BLUE} AND {BOAT}", BOAT]
    varied = {"variation_seed": 40, "variation_strength": 0.4}
    for i, picture in enumerate(sd.generate(prompts, seed=5, **varied, **FEW)):
        assert same(picture.image, alone(sd, prompts[i], seed=5, variation_seed=40 + i, variation_strength=0.4))
        assert picture.parameters.extra["Variation seed"] == str(40 + i) and picture.parameters.seed == 5
    noise = drawn.normal("noise", 3, 8, 8, 4)
    for i, picture in enumerate(sd.generate(prompts, latents=noise, seed=5, **FEW)):
        assert same(picture.image, alone(sd, prompts[i], latents=noise[i : i + 1], seed=5 + i))
    start = drawn.normal("start", 3, 8, 8, 4)
    for i, picture in enumerate(sd.generate(prompts, input_latents=start, seed=5, **FEW)):
        assert same(picture.image, alone(sd, prompts[i], input_latents=start[i : i + 1], seed=5 + i))
        assert picture.parameters.strength == 0.7


def test_masks(sd):
    picture = np.rint(np.abs(drawn.normal("picture", 64, 64, 3)) * 80).clip(0, 255).astype(np.uint8)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    options = {"input_image": picture, "mask_image": mask, "masked_content": "fill", "denoising_strength": 0.8}
    for i, each in enumerate(sd.generate([RED, BLUE], seed=2, **options, **FEW)):
        assert same(each.image, alone(sd, (RED, BLUE)[i], seed=2 + i, **options))
        assert each.parameters.extra["Masked content"] == "fill" and each.parameters.strength == 0.8


def test_the_record(sd, tmp_path):
    options = {"sampler": "dpmpp_2m_karras", "cfg_weight": 5.5, "guidance_rescale": 0.5, "clip_skip": 2, **FEW}
    (picture,) = sd.generate(Blend(RED, BLUE, 0.25), "fog", seed=9, prompt_language="plain", **options)
    made = picture.parameters
    assert (made.prompt, made.negative, made.steps, made.sampler, made.schedule) == (
        RED,
        "fog",
        4,
        "DPM++ 2M",
        "Karras",
    )
    assert (made.cfg, made.seed, made.size, made.model, made.strength) == (5.5, 9, "64x64", "postcards-tiny", None)
    extra = made.extra
    assert (extra["CFG Rescale"], extra["Clip skip"], extra["Prompt language"]) == ("0.5", "2", "plain")
    assert (extra["Blend prompt"], extra["Blend share"], extra["Precision"]) == (BLUE, "0.25", "float32")
    path = picture.save(tmp_path / "a" / "picture.png")
    assert picture_files.read_parameters(path) == made and np.array_equal(Image.open(path), picture.image)
    with pytest.raises(PictureError, match="should end in"):
        picture.save(tmp_path / "picture.tif")


def test_how_the_model_was_asked_for():
    sd = StableDiffusion(float16=False, bits=8, prediction_type="v_prediction")
    (picture,) = sd.generate(RED, num_steps=1, width=64, height=64)
    assert (picture.parameters.extra["Bits"], picture.parameters.extra["Prediction type"]) == ("8", "v_prediction")


@pytest.mark.parametrize(
    "arguments, options, match",
    [
        (([],), {}, "0 texts"),
        (([RED, BLUE], ["fog"]), {}, "2 texts with 1 negative texts"),
        (([RED, 3],), {}, "text should be a string, not 3"),
        ((3,), {}, "text should be a string, not 3"),
        (([RED, BLUE], [None, 3]), {}, "negative_text should be a string, not 3"),
        (([RED] * 100,), {"n_images": 3}, "the number of pictures = 300"),
        (([RED, "(a:1001)"],), {}, "The weight 1001"),
        (([RED, BLUE],), {"clip_skip": 99}, "clip_skip"),
        (([RED, BLUE],), {"latents": np.zeros((1, 8, 8, 4))}, r"\(2, 8, 8, 4\)"),
        (([RED, BLUE],), {"seed": 2**64 - 1}, "seed"),
    ],
)
def test_what_is_refused(sd, batches, arguments, options, match):
    with pytest.raises(InputError, match=match):
        sd.generate(*arguments, **{**FEW, **options})
    assert batches == []


def test_nothing_is_painted_where_one_lora_is_missing(sd, batches):
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        sd.generate([RED, f"{RED} <lora:nowhere:1>"], **FEW)
    assert batches == []


def test_an_unknown_setting(sd):
    with pytest.raises(TypeError, match="strengh"):
        sd.generate(RED, strengh=0.5)
