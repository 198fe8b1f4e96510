"""Clip skip, long prompts and schedules against diffusers; weights by A1111's formula on transformers' encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from stable_diffusion import StableDiffusion  # noqa: E402
from stable_diffusion.text.prompt import step_text  # noqa: E402

from ..networks import relative_error  # noqa: E402
from . import pipelines  # noqa: E402
from .test_pipeline import HEIGHT, NEGATIVE, PROMPT, WIDTH, assert_same_pictures, reference, same_noise  # noqa: E402, F401

pytestmark = pytest.mark.parity

LONG = "a red house on green hills, " * 14 + "with (clouds:1.4) and a [blue] tent BREAK at night"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: pipelines.save(tmp_path_factory.mktemp(name), name) for name in ("sd1", "sd2", "sdxl")}


def encoders(pipe) -> list:
    """(tokenizer, text encoder) pairs of a pipeline."""
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    return pairs + ([(pipe.tokenizer_2, pipe.text_encoder_2)] if hasattr(pipe, "text_encoder_2") else [])


@pytest.mark.parametrize("family, own, less", [("sd1", 1, 1), ("sd2", 1, 1), ("sdxl", 2, 2)])
def test_clip_skip(family, own, less, folders):
    """Ours counts as A1111 does: 1 is the last layer; the reference counts the layers that are skipped."""
    pipe, sd = reference(folders[family]), StableDiffusion(folders[family], float16=False)
    object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)  # where the reference's pipeline looks still
    for skip in range(1, 4):
        theirs = max(skip, own) - less
        with torch.no_grad():
            expected = pipe.encode_prompt(PROMPT, "cpu", 1, False, clip_skip=theirs or None) if family != "sdxl" else (
                pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False, clip_skip=theirs or None)
            )  # fmt: skip
        assert relative_error(np.array(sd.encode_text(PROMPT, clip_skip=skip)), expected[0].numpy()) < 1e-5


def chunked(tokenizer, words: list[tuple[list[str], list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights (N, 77) of chunks of words, put together with the reference's tokenizer."""
    ids = torch.full((len(words), 77), tokenizer.pad_token_id)
    weights = torch.ones(len(words), 77)
    for i, (parts, part_weights) in enumerate(words):
        tokens = [tokenizer(part, add_special_tokens=False).input_ids for part in parts]
        body = [token for part in tokens for token in part]
        ids[i, : len(body) + 2] = torch.tensor([tokenizer.bos_token_id, *body, tokenizer.eos_token_id])
        spread = [weight for part, weight in zip(tokens, part_weights, strict=True) for _ in part]
        weights[i, 1 : len(spread) + 1] = torch.tensor(spread)
    return ids, weights


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_weights_and_chunks(family, folders):
    """LONG by hand: ten repetitions up to their comma fill the first chunk, BREAK ends the second."""
    pipe = reference(folders[family])
    for _, encoder in encoders(pipe):
        weights = dict(encoder.named_parameters())
        for name in ("final_layer_norm.bias", "encoder.layers.1.mlp.fc2.bias"):  # a mean that tells, as real ones have
            next(weight for key, weight in weights.items() if key.endswith(name)).data += 0.3
    pipe.save_pretrained(folders[family] / "told")
    sd = StableDiffusion(folders[family] / "told", float16=False)
    expected, pooled = [], None
    for tokenizer, encoder in encoders(pipe):
        sentence = "a red house on green hills,"
        fits = 75 // len(tokenizer(sentence, add_special_tokens=False).input_ids)
        ids, weights = chunked(
            tokenizer,
            [
                ([sentence] * fits, [1.0] * fits),
                ([sentence] * (14 - fits) + ["with", "clouds", "and a", "blue", "tent"],
                 [1.0] * (14 - fits) + [1.0, 1.4, 1.0, 1 / 1.1, 1.0]),
                (["at night"], [1.0]),
            ],
        )  # fmt: skip
        with torch.no_grad():
            output = encoder(ids, output_hidden_states=True)
        hidden = output.hidden_states[-2] if family == "sdxl" else output.last_hidden_state
        pooled = output.text_embeds[:1] if hasattr(output, "text_embeds") else None
        means = []
        for z, multipliers in zip(hidden, weights, strict=True):
            after = z * multipliers[:, None]
            means.append(after * (z.mean() / after.mean()))
        expected.append(torch.cat(means))
    found = sd._conditioner(step_text(LONG))
    assert found.text.shape[1] == 3 * 77
    assert relative_error(np.array(found.text), torch.cat(expected, dim=-1)[None].numpy()) < 2e-5
    if pooled is not None:
        assert relative_error(np.array(found.pooled), pooled.numpy()) < 1e-5


def generated(sd: StableDiffusion, text: str, **options) -> np.ndarray:
    for step in sd.generate_latents(text, NEGATIVE, seed=5, width=WIDTH, height=HEIGHT, **options):  # noqa: B007
        pass
    return np.array(sd.decode(step.latents))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_long_prompt_paints_the_references_picture(family, folders, same_noise):  # noqa: F811
    """Its U-Net with our embeddings; the negative prompt is filled up with chunks of the empty one."""
    pipe, sd = reference(folders[family]), StableDiffusion(folders[family], float16=False)
    conditioner = sd._conditioner
    positive, negative = conditioner.read([step_text(LONG), step_text(NEGATIVE)])
    assert np.array_equal(np.array(negative.text[:, 77:154]), np.array(conditioner(step_text("")).text))
    given = {"prompt_embeds": positive.text, "negative_prompt_embeds": negative.text}
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": positive.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    same_noise(5, 1)
    expected = pipe(
        **{name: torch.from_numpy(np.array(value)) for name, value in given.items()},
        height=HEIGHT, width=WIDTH, num_inference_steps=5, guidance_scale=7.5, output_type="np",
    ).images  # fmt: skip
    assert_same_pictures(generated(sd, LONG, num_steps=5), expected)


def test_a_schedule_paints_the_references_picture(folders, same_noise):  # noqa: F811
    """The reference changes its embeddings by a callback, after two of five steps."""
    pipe, sd = reference(folders["sd1"]), StableDiffusion(folders["sd1"], float16=False)
    before, after = "a red house on green hills", "a boat under a night sky"
    with torch.no_grad():
        exchanged = torch.cat(pipe.encode_prompt(after, "cpu", 1, True, negative_prompt=NEGATIVE)[::-1])

    def change(pipe, index, t, tensors):
        return {"prompt_embeds": exchanged} if index == 1 else {}

    same_noise(5, 1)
    expected = pipe(
        before, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_inference_steps=5, guidance_scale=7.5,
        output_type="np", callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"],
    ).images  # fmt: skip
    for when in ("2", "0.4"):
        assert_same_pictures(generated(sd, f"[{before}:{after}:{when}]", num_steps=5), expected)
