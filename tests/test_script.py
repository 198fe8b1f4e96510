"""The texts of one generation, step by step: schedules, turns, compositions and blends on the embedded model."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from stable_diffusion import Blend, StableDiffusion
from stable_diffusion.backend import mx
from stable_diffusion.errors import InputError
from stable_diffusion.text.conditioning import TextConditioner, weighed
from stable_diffusion.text.prompt import BlendedText, parse, step_text
from stable_diffusion.text.script import Script, write_script
from stable_diffusion.unet import UNet

from . import drawn

RED, BLUE = "a red house on green hills", "a blue tent at night"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion(float16=False)


def run(sd: StableDiffusion, text: str | Blend, **options) -> list[np.ndarray]:
    """The latents of each step of a short generation."""
    options = {"num_steps": 4, "width": 64, "height": 64, "seed": 1, **options}
    return [np.array(step.latents) for step in sd.generate_latents(text, **options)]


def same(a: list[np.ndarray], b: list[np.ndarray], within: float = 1e-4) -> bool:
    return len(a) == len(b) and all(np.abs(x - y).max() <= within for x, y in zip(a, b, strict=True))


def script(
    text: str | Blend,
    negative: str | None = "",
    steps: int = 3,
    cfg: float = 7.5,
    embedded: bool = False,
    language: str = "a1111",
) -> Script:
    against = None if negative is None else parse(negative, language, negative=True)
    return write_script([parse(text, language)], [against], steps, cfg, embedded)


def texts(found: Script) -> tuple[str | Blend | None, ...]:
    """The texts of a script as they are typed."""
    return tuple(
        Blend(each.start.text, each.end.text, each.share) if isinstance(each, BlendedText) else each and each.text
        for each in found.texts
    )


def guided(found: Script) -> bool:
    return len(found.rows[0]) > len(found.weights)


class TestScript:
    def test_rows_are_negative_then_text(self):
        assert script("a", "b") == Script((step_text("b"), step_text("a")), ((0, 1),) * 3, (1.0,), 1)
        assert texts(script("a", None)) == (None, "a")

    def test_a_text_that_is_also_the_negative_stands_twice(self):
        """Networks may tell the two apart."""
        found = script("a", "a")
        assert found == Script((step_text("a"), step_text("a")), ((0, 1),) * 3, (1.0,), 1)
        assert found.negatives == {0}
        assert script("[a|b]", "[c:d:2]").negatives == {0, 3} and script("a", "b", cfg=1.0).negatives == set()

    def test_without_guidance_there_is_no_negative(self):
        assert script("a", "b", cfg=1.0) == Script((step_text("a"),), ((0,),) * 3, (1.0,))
        assert texts(script("a", "b", embedded=True)) == ("a",)

    def test_schedules_of_both(self):
        found = script("[a|b]", "[c:d:2]")
        assert texts(found) == ("c", "a", "b", "d")
        assert found.rows == ((0, 1), (0, 2), (3, 1))

    def test_a_composition_has_a_negative_whatever_the_guidance(self):
        found = script("a:0.5 AND b", "c", cfg=1.0)
        assert texts(found) == ("c", "a", " b") and found.weights == (0.5, 1.0) and guided(found)
        assert not guided(script("a AND b", embedded=True))

    def test_and_is_a_word_of_a_negative_text(self):
        assert texts(script("a", "b AND c")) == ("b AND c", "a")

    def test_plain_language_has_no_signs(self):
        found = script("[a|b] AND (c:9999)", "[d:e:1]", language="plain")
        assert texts(found) == ("[d:e:1]", "[a|b] AND (c:9999)")
        assert found.pieces == ["[d:e:1]", "[a|b] AND (c:9999)"]

    def test_a_blend_follows_both_schedules(self):
        found = script(Blend("[a:b:1]", "c", 0.5), None)
        assert texts(found) == (None, Blend("a", "c", 0.5), Blend("b", "c", 0.5))
        assert found.pieces == ["a", "c", "b", "c"]

    def test_pictures_of_a_batch_have_texts_of_their_own(self):
        prompts, negatives = [parse("[a|b]"), parse("c"), parse("[a|b]")], [parse("d"), None, None]
        found = write_script(prompts, negatives, 2, 7.5, False)
        assert texts(found) == ("d", None, "a", "c", "b")
        assert found.rows == ((0, 1, 1, 2, 3, 2), (0, 1, 1, 4, 3, 4))  # negatives, then texts, picture by picture
        both = write_script([parse("a AND b"), parse("c AND d")], [None, None], 1, 7.5, False)
        assert texts(both) == (None, "a", "c", " b", " d") and both.rows == ((0, 0, 1, 2, 3, 4),)

    @pytest.mark.parametrize("text", ["(a:1001)", "(" * 100 + "a", "a:99999 AND b", "(" * 9000 + "a"])
    def test_weights_that_no_encoder_can_bear(self, text):
        with pytest.raises(InputError, match=r"The weight .* should lie between -1000 and 1000"):
            script(text)
        assert script(text, language="plain").texts


def test_a_text_without_signs_gives_the_plain_picture_bit_for_bit(sd):
    a = run(sd, RED, negative_text="clouds", n_images=2)
    assert same(a, run(sd, RED, negative_text="clouds", n_images=2, prompt_language="plain"), within=0)


def test_a_schedule_changes_the_text_at_its_step(sd):
    """The first two steps are those of the first text alone; then it goes on from there with the second."""
    found, red, blue = run(sd, f"[{RED}:{BLUE}:2]"), run(sd, RED), run(sd, BLUE)
    assert same(found[:2], red[:2]) and not same(found[2:], red[2:], 1e-3) and not same(found[2:], blue[2:], 1e-3)
    assert same(found, run(sd, f"[{RED}:{BLUE}:0.5]"))
    assert same(run(sd, f"[{RED}:{BLUE}:0]"), blue) and same(run(sd, f"[{RED}:{BLUE}:4]"), red)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde", "dpmpp_2m", "pndm"])
def test_a_samplers_second_look_belongs_to_its_step(sd, sampler):
    found, red = run(sd, f"[{RED}:{BLUE}:2]", sampler=sampler), run(sd, RED, sampler=sampler)
    assert same(found[:2], red[:2]) and not same(found[2:], red[2:], 1e-3)


def test_image_to_image_counts_the_steps_that_are_run(sd):
    picture = np.rint(np.abs(drawn.normal("picture", 64, 64, 3)) * 80).clip(0, 255).astype(np.uint8)
    options = {"input_image": picture, "num_steps": 8, "denoising_strength": 0.5}
    found, red = run(sd, f"[{RED}:{BLUE}:0.5]", **options), run(sd, RED, **options)
    assert len(found) == 4 and same(found[:2], red[:2]) and not same(found[2:], red[2:], 1e-3)


def test_turns(sd):
    """Step 1 is the first text's, step 2 the second's; a single step further they meet no more."""
    found = run(sd, f"[{RED}|{BLUE}]")
    assert same(found[:1], run(sd, RED)[:1])
    assert same(found, run(sd, f"[{RED}:[{BLUE}:[{RED}:{BLUE}:3]:2]:1]"))


def test_a_scheduled_negative_text(sd):
    found = run(sd, RED, negative_text="[clouds:night:2]")
    assert same(found[:2], run(sd, RED, negative_text="clouds")[:2])
    assert not same(found[2:], run(sd, RED, negative_text="clouds")[2:], 1e-4)


def test_each_text_is_encoded_and_projected_once(sd, monkeypatch):
    encoded, projected = [], []
    encode, project = TextConditioner.__call__, UNet.project_text
    monkeypatch.setattr(TextConditioner, "__call__", lambda self, text: encoded.append(text) or encode(self, text))
    monkeypatch.setattr(UNet, "project_text", lambda self, text: projected.append(text.shape[0]) or project(self, text))
    run(sd, "[a house|a tent|a tree]", negative_text="clouds", num_steps=9, n_images=2)
    assert sorted(each.text for each in encoded) == ["a house", "a tent", "a tree", "clouds"] and projected == [4]


class TestComposition:
    def test_a_part_that_weighs_nothing(self, sd):
        assert same(run(sd, f"{RED} AND {BLUE}:0"), run(sd, RED), 1e-4)
        assert not same(run(sd, f"{RED} AND {BLUE}:0.5"), run(sd, RED), 1e-2)

    def test_the_same_text_in_shares(self, sd):
        assert same(run(sd, f"{RED}:0.25 AND {RED}:0.75"), run(sd, RED), 1e-3)
        assert same(run(sd, f"{RED} AND {RED}", cfg_weight=3.0), run(sd, RED, cfg_weight=6.0), 1e-3)

    def test_several_pictures(self, sd):
        both = run(sd, f"{RED} AND {BLUE}", n_images=2)[-1]
        assert np.abs(both[1] - run(sd, f"{RED} AND {BLUE}", seed=2)[-1][0]).max() < 1e-3

    def test_without_guidance_it_is_still_about_the_negative(self, sd):
        parts = [run(sd, text, cfg_weight=1.0, num_steps=1)[0] for text in (RED, BLUE, "night")]
        found = run(sd, f"{RED}:0.7 AND {BLUE}:0.6", negative_text="night", cfg_weight=1.0, num_steps=1)[0]
        expected = parts[2] + 0.7 * (parts[0] - parts[2]) + 0.6 * (parts[1] - parts[2])
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


class TestBlends:
    def test_it_lies_between_its_ends(self, sd):
        red, blue = run(sd, RED)[-1], run(sd, BLUE)[-1]
        far = [np.abs(run(sd, Blend(RED, BLUE, share))[-1] - red).mean() for share in (0.0, 0.2, 0.5, 1.0)]
        assert far[0] == 0 and far[0] < far[1] < far[2] < far[3] == np.abs(blue - red).mean()

    def test_a_long_and_a_short_text(self, sd):
        steps = run(sd, Blend(RED, "house, " * 60, 0.5), negative_text="clouds BREAK night BREAK rain")
        assert all(np.isfinite(each).all() for each in steps)

    def test_loras_of_both_ends(self, sd, tmp_path, monkeypatch):
        monkeypatch.setattr(sd._overlay, "folders", [tmp_path])
        with pytest.raises(Exception, match="left"):
            sd.generate_latents(Blend("a <lora:left:1>", "b", 0.5))
        with pytest.raises(Exception, match="right"):
            sd.generate_latents(Blend("a", "b <lora:right:1>", 0.5))


class TestTogetherWithEmbeddings:
    @pytest.fixture
    def vectors(self, sd, tmp_path, monkeypatch):
        monkeypatch.setattr(sd._embeddings, "folders", [tmp_path])
        values = drawn.normal("foggy", 2, sd._conditioner.encoders[0].config.hidden_size) * np.float32(0.1)
        for name in ("foggy", "hand (new)"):
            save_file({"emb_params": values}, tmp_path / f"{name}.safetensors")
        return values

    def test_a_word_with_a_weight(self, sd, vectors):
        weights = np.ones((1, 77), np.float32)
        weights[0, 2:4] = 1.5
        expected = weighed(sd.encode_text("a foggy house"), weights)
        assert mx.abs(sd.encode_text("a (foggy:1.5) house") - expected).max() < 1e-5

    def test_a_word_in_a_schedule(self, sd, vectors):
        before = run(sd, "a house")
        found = run(sd, "a [:foggy :2]house")
        assert same(found[:2], before[:2]) and not same(found[2:], before[2:], 1e-4)

    def test_a_name_with_brackets_is_escaped(self, sd, vectors):
        escaped, plain = sd.encode_text(r"a hand \(new\)"), sd.encode_text("a hand (new)", prompt_language="plain")
        assert mx.array_equal(escaped, plain)
        assert not mx.array_equal(escaped, sd.encode_text("a foggy hand"))


def test_tags_leave_no_trace_in_brackets(sd, tmp_path, monkeypatch):
    prompt = parse("(a <lora:x:0.5>house:1.3) AND [b:<lora:y>c:2]")
    assert [part.text for part in prompt.parts] == ["(a house:1.3)", " [b:c:2]"]
    assert [name for name, _ in prompt.loras] == ["x", "y"]
