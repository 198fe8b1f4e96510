"""Attention maps of a generation: what is recorded for which picture, word, stage and level; no bit changes."""

from __future__ import annotations

import base64
import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from stable_diffusion import AttentionMaps, Blend, Hires, InputError, PictureMaps, StableDiffusion, backend, ops
from stable_diffusion import __main__ as program
from stable_diffusion import attention as module
from stable_diffusion.ops import lanes
from stable_diffusion.pictures import heat
from stable_diffusion.record import picture_files
from stable_diffusion.request import Request
from stable_diffusion.service import word_maps
from stable_diffusion.service.worker import Worker

from .pretend import over
from .test_toy_network import toy

PROMPT = "a red house on green hills at sunset"
FEW = {"negative_text": "clouds", "num_steps": 4, "seed": 3, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def recorded(sd: StableDiffusion, prompt: str | Blend = PROMPT, stages: int | None = None, **options) -> AttentionMaps:
    maps = AttentionMaps(stages)
    for step in sd.generate_latents(prompt, attention=maps, **FEW | options):
        mx.eval(step.latents)
    return maps


def latents(sd: StableDiffusion, **options) -> np.ndarray:
    for step in sd.generate_latents(PROMPT, **FEW | options):
        mx.eval(step.latents)
    return np.array(step.latents)


def assert_same(found: PictureMaps, expected: PictureMaps, tolerance: float = 1e-5) -> None:
    assert found.words == expected.words and found.levels == expected.levels
    for name in expected.levels:
        assert np.abs(found.level_maps(name) - expected.level_maps(name)).max() <= tolerance


def names(maps: PictureMaps) -> list[str]:
    return [word.text for word in maps.words]


def test_nothing_that_is_painted_changes(sd):
    for options in ({}, {"n_images": 3}, {"cfg_weight": 1.0}, {"deepcache_interval": 2}):
        assert np.array_equal(latents(sd, attention=AttentionMaps(), **options), latents(sd, **options))


def test_words_steps_and_levels(sd):
    (maps,) = recorded(sd).pictures
    assert names(maps) == PROMPT.split() and maps.stages == ((1, 1), (2, 2), (3, 3), (4, 4)) and maps.size == (8, 8)
    assert maps.levels == {
        "down_blocks.1": (4, 4), "down_blocks.2": (2, 2), "mid_block": (2, 2), "up_blocks.0": (2, 2),
        "up_blocks.1": (4, 4),
    }  # fmt: skip
    for name in maps.levels:
        values = maps.level_maps(name)
        assert (values > 0).all() and (values.sum(axis=1) < 1).all()
    assert np.abs(maps.heat_map("house", stages=[0]) - maps.heat_map("house", stages=[3])).max() > 1e-3
    middle = maps.heat_map("house", levels=["mid_block"], size=(2, 2))
    assert np.allclose(middle, maps.level_maps("mid_block")[:, 2].mean(axis=0), atol=1e-6)


def test_a_word_is_found_by_its_text_or_number(sd):
    (maps,) = recorded(sd, "a red house and a Red tent").pictures
    assert maps.find("RED") == [1, 5] and maps.find("red tent") == [5, 6]
    assert np.allclose(maps.heat_map("red"), (maps.heat_map(1) + maps.heat_map(5)) / 2)
    assert np.allclose(maps.heat_map([1, 5]), maps.heat_map("red"))
    for wrong, message in (("boat", "no word 'boat'"), (7, "from 0 to 6"), ([], "from 0 to 6"), ("", "no word")):
        with pytest.raises(InputError, match=message):
            maps.heat_map(wrong)
    with pytest.raises(InputError, match="no level 'up'"):
        maps.heat_map(0, levels=["up"])
    with pytest.raises(InputError, match="stage"):
        maps.heat_map(0, stages=[4])


def test_stages_gather_steps(sd):
    one, each = (recorded(sd, stages=stages, num_steps=7).pictures[0] for stages in (3, None))
    assert one.stages == ((1, 3), (4, 5), (6, 7))
    for number, (first, last) in enumerate(one.stages):
        expected = each.heat_map("house", stages=range(first - 1, last))
        assert np.allclose(one.heat_map("house", stages=[number]), expected, atol=1e-6)
    assert recorded(sd, stages=100).pictures[0].stages[-1] == (4, 4)
    with pytest.raises(InputError, match="stages"):
        AttentionMaps(0)


def test_only_the_prompt_is_shown_not_the_negative_text(sd):
    """Where one step has no guidance there are no rows for it, and with pictures of their own there are more."""
    options = {"num_steps": 1, "latents": np.asarray(mx.random.normal((1, 8, 8, 4), key=mx.random.key(1)))}
    expected = recorded(sd, cfg_weight=1.0, **options).pictures[0]
    for more in ({"cfg_weight": 7.0}, {"cfg_weight": 7.0, "negative_text": None}, {"guidance_start": 1.0}):
        assert_same(recorded(sd, **options | more).pictures[0], expected)


def test_every_picture_of_a_batch_has_its_own(sd):
    batch = recorded(sd, n_images=3).pictures
    for i, maps in enumerate(batch):
        assert_same(maps, recorded(sd, seed=FEW["seed"] + i).pictures[0], 1e-4)
    assert np.abs(batch[0].heat_map("house") - batch[1].heat_map("house")).max() > 1e-3
    maps = AttentionMaps()
    few = {"num_steps": 2, "seed": 1, "width": 64, "height": 64}
    found = sd.generate(["a red house", "a boat AND the sea", "a tent"], attention=maps, **few)
    assert [names(each.attention) for each in found] == [
        ["a", "red", "house"],
        ["a", "boat", "the", "sea"],
        ["a", "tent"],
    ]
    assert maps.pictures == tuple(each.attention for each in found)
    assert sd.generate("a tent", num_steps=1, width=64, height=64)[0].attention is None


def test_parts_schedules_and_long_prompts(sd):
    (maps,) = recorded(sd, "a [red|blue] house AND green hills:0.5").pictures
    assert [(word.text, word.part) for word in maps.words] == [
        ("a", 0), ("red", 0), ("blue", 0), ("house", 0), ("green", 1), ("hills", 1),
    ]  # fmt: skip
    there = maps.level_maps("up_blocks.1").max(axis=(2, 3)) > 0
    assert there[:, 1].tolist() == [True, False, True, False] and there[:, 2].tolist() == [False, True, False, True]
    assert there[:, [0, 3, 4, 5]].all()
    assert not maps.heat_map("blue", stages=[0]).any() and np.isfinite(maps.heat_map("blue")).all()
    (maps,) = recorded(sd, "a house BREAK " + "tree " * 80 + "sea").pictures
    assert len(maps.words) == 83 and maps.heat_map("sea").max() > 0
    (maps,) = recorded(sd, Blend("a house", "the sea", 0.5)).pictures
    assert names(maps) == ["a", "house", "the", "sea"] and np.array_equal(maps.heat_map(0), maps.heat_map(2))
    (maps,) = recorded(sd, "").pictures
    assert maps.words == () and maps.levels == {}


def test_samplers_with_several_calls_a_step_and_a_second_pass(sd):
    heun, euler = (recorded(sd, sampler=name).pictures[0].heat_map("house").mean() for name in ("heun", "euler"))
    assert 0.5 < heun / euler < 2
    (maps,) = recorded(sd, hires=Hires(scale=2, steps=2)).pictures
    assert maps.size == (16, 16) and maps.levels["up_blocks.1"] == (8, 8)


def test_lanes_and_low_memory_record_the_same(sd, monkeypatch):
    expected = recorded(sd, n_images=2).pictures
    frugal = StableDiffusion(float16=False, low_memory=True)
    for found, other in zip(recorded(frugal, n_images=2).pictures, expected, strict=True):
        assert_same(found, other, 1e-4)
    shares, each = [], lanes.each
    two = dataclasses.replace(backend.blas(), threads=2, fixed=False, set_threads=lambda threads: None)
    monkeypatch.setattr(backend, "_blas", two)
    monkeypatch.setattr(backend, "product_threads", lambda: 2)
    monkeypatch.setattr(
        lanes, "each", lambda function, parts, *rest: shares.append(len(parts)) or each(function, parts, *rest)
    )
    with ops.use("cpu"):
        for found, other in zip(recorded(sd, n_images=2).pictures, expected, strict=True):
            assert_same(found, other, 1e-4)
    assert 2 in shares


def test_blocks_change_nothing(monkeypatch):
    q, k = (mx.random.normal((4, n, 8), key=mx.random.key(n)) for n in (50, 77))
    places = [(1,), (2, 3, 4), (76,)]
    whole = module.word_weights(q, k, places)
    assert whole.shape == (50, 3)
    scores = np.einsum("hnd,hmd->hnm", *(np.asarray(x, np.float64) for x in (q, k))) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    expected = np.stack([weights[..., list(each)].mean(axis=-1).sum(axis=0) for each in places], axis=-1)
    assert np.allclose(whole, expected, atol=1e-6)
    monkeypatch.setattr(module, "SCORES", 4 * 77 * 7)
    assert np.allclose(module.word_weights(q, k, places), whole, atol=1e-6)


def test_what_cannot_record_is_refused_by_name(sd):
    with pytest.raises(InputError, match=r"attention = True should be a stable_diffusion\.AttentionMaps"):
        sd.generate_latents(PROMPT, attention=True)
    with pytest.raises(InputError, match="reads texts with CLIP"):
        toy().generate_latents(PROMPT, attention=AttentionMaps())


def test_files(sd, tmp_path):
    (maps,) = recorded(sd).pictures
    with np.load(maps.save(tmp_path / "maps.npz"), allow_pickle=False) as found:
        assert found["words"].tolist() == PROMPT.split()
        assert np.array_equal(found["heat_maps"][2], maps.heat_map(2))
        assert np.array_equal(found["level/up_blocks.1"], maps.level_maps("up_blocks.1"))
    assert [path.name for path in tmp_path.iterdir()] == ["maps.npz"]
    sheet = maps.sheet(Image.new("RGB", (64, 48), "red"))
    assert sheet.width > 5 * 64 and sheet.height > 2 * 48


def test_an_overlay_glows_where_the_map_is_strong():
    spot = np.zeros((4, 4), np.float32)
    spot[1, 2] = 0.25
    shown = np.asarray(heat.overlay(Image.new("RGB", (40, 40), (120, 120, 120)), spot), np.int64)
    assert shown[15, 25].sum() > 600 > 250 > shown[35, 5].sum()
    flat = heat.overlay(Image.new("RGB", (8, 8), "white"), np.ones((2, 2), np.float32))
    assert np.ptp(np.asarray(flat), axis=(0, 1)).max() == 0


def test_small_copies_to_look_at(sd):
    (maps,) = recorded(sd, stages=2, num_steps=3).pictures
    small = maps.smaller(64)
    assert small.n_bytes < maps.n_bytes and small.words == maps.words and small.levels == maps.levels
    assert np.allclose(small.heat_map("house"), maps.heat_map("house"), rtol=2e-3)
    assert set(maps.smaller(2).levels.values()) == {(2, 2)}
    assert maps.smaller(2).heat_map("house").mean() == pytest.approx(maps.heat_map("house").mean(), rel=0.05)
    assert np.array_equal(heat.pooled(np.arange(15.0).reshape(3, 5), 3), [[3, 5, 6.5], [10.5, 12.5, 14]])
    (many,) = recorded(sd, "tree " * 150, num_steps=1).pictures
    assert len(many.words) == 150 and len(many.smaller(64).words) == module.MAX_WORDS


def test_the_command_line_writes_them_next_to_each_picture(tmp_path, capsys):
    options = "--steps 2 --width 64 --height 64 --n-images 2 --batch-size 2 --seed 3 --attention".split()
    assert program.main(["txt2img", "a red house", *options, "--output", str(tmp_path / "house.png")]) == 0
    for name in ("house-1", "house-2"):
        assert Image.open(tmp_path / f"{name}.attention.png").width > 4 * 64
        with np.load(tmp_path / f"{name}.attention.npz") as found:
            assert found["words"].tolist() == ["a", "red", "house"] and found["heat_maps"].shape == (3, 8, 8)
    assert len(list(tmp_path.iterdir())) == 6
    assert program.main(["txt2img", "", *options, "--output", str(tmp_path / "none") + "/"]) == 0
    assert len(list((tmp_path / "none").iterdir())) == 2, "an empty prompt has no words"


def test_where_no_step_is_run_there_are_no_maps(sd, tmp_path, capsys):
    plain, out = Image.new("RGB", (64, 64), "red"), tmp_path / "out.png"
    few = {"num_steps": 2, "seed": 1, "width": 64, "height": 64, "input_image": plain, "denoising_strength": 0.0}
    assert sd.generate("a house", attention=AttentionMaps(), **few)[0].attention is None
    plain.save(tmp_path / "in.png")
    options = ["--strength", "0", "--attention", "--output", str(out)]
    assert program.main(["img2img", str(tmp_path / "in.png"), "a house", *options]) == 0 and out.is_file()


def test_the_worker_records_them_if_asked(tmp_path, monkeypatch):
    worker = Worker(tmp_path)
    try:
        size = {"width": 64, "height": 64, "steps": 12, "seed": 3}
        asked, plain = (worker.submit(Request("a red house AND hills", attention=on, **size)) for on in (True, False))
        over(asked, plain)
        assert plain.pictures[0].attention is None and not asked.error
        (picture,) = asked.pictures
        maps = picture.attention
        assert [word.text for word in maps.words] == ["a", "red", "house", "hills"] and len(maps.stages) == 10
        assert picture.n_bytes > maps.n_bytes > 0
        assert picture.path.read_bytes() != b"" and "ttention" not in str(picture_files.read_parameters(picture.path))
        monkeypatch.setattr("stable_diffusion.service.worker.MAX_FRAME_BYTES", 0)
        over(worker.submit(Request("a", **size)))
        assert picture.attention is None and len(picture.frames) == 1
    finally:
        worker.close()


def test_what_the_page_gets(sd):
    (maps,) = recorded(sd, "a [red|blue] house", width=96, height=64).pictures
    found = word_maps.maps_of_words(maps)
    assert [each["text"] for each in found] == ["a", "red", "blue", "house"] and word_maps.shape(maps) == (43, 64)
    numbers = np.frombuffer(base64.b64decode(found[3]["map"]), np.uint8)
    assert len(numbers) == 43 * 64 and (numbers.min(), numbers.max()) == (0, 255)
    weights = maps.heat_map(3, size=(64, 43))
    shown = found[3]["low"] + numbers.reshape(43, 64) / 255 * (found[3]["high"] - found[3]["low"])
    assert np.abs(shown - weights).max() < (found[3]["high"] - found[3]["low"]) / 255
    assert word_maps.maps_of_words(maps, stage=0)[2]["high"] == 0, "it is not in the text at the first step"
    assert 0 <= word_maps.telling(maps) < 4
    assert word_maps.stage_title(maps, word_maps.ALL) == "All steps" and word_maps.stage_title(maps, 1) == "Step 2"
    titles = [word_maps.level_title(maps, name) for name in ("", "down_blocks.1", "mid_block", "up_blocks.1")]
    assert titles == ["All levels", "Down, 6 × 4", "Middle, 3 × 2", "Up, 6 × 4"]
