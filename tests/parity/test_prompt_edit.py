"""Prompt-to-prompt against its equations in diffusers' attention processors, on small random networks: within 1e-4."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from stable_diffusion import PromptEdit, StableDiffusion  # noqa: E402

from .. import drawn  # noqa: E402
from . import pipelines  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH, HEIGHT, STEPS, CFG_WEIGHT = 104, 72, 5, 5.0  # latents of 13 x 9: odd sides
BEFORE, AFTER = "a red house on green hills", "a blue house on green hills at sunset"
SAME = [("a", "a"), ("red", "blue"), ("house", "house"), ("on", "on"), ("green", "green"), ("hills", "hills")]
NEGATIVE = "a tent"
NOISE = drawn.normal("noise", 1, HEIGHT // 8, WIDTH // 8, 4)
CROSS, LAYOUT = 0.6, 0.4  # three steps, two steps


class EditedAttention:
    """One layer for rows (empty, empty, before, after): section 3.2 of the paper, as the reference computes it."""

    def __init__(self, crosses: bool, mapper: torch.Tensor, alphas: torch.Tensor, factors: torch.Tensor):
        self.crosses, self.mapper, self.alphas, self.factors, self.step = crosses, mapper, alphas, factors, 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **more):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        weights = torch.softmax(attn.scale * q @ k.transpose(1, 2), dim=-1).reshape(4, -1, q.shape[1], k.shape[1])
        base, own = weights[2], weights[3]
        done = self.step / STEPS
        if self.crosses:
            if done < CROSS:
                own = (base @ self.mapper) * self.alphas + own * (1 - self.alphas)
            own = own * self.factors
        elif done < LAYOUT:
            own = base
        self.step += 1
        weights = torch.cat([weights[:3], own[None]]).reshape(-1, q.shape[1], k.shape[1])
        return attn.to_out[0](attn.batch_to_head_dim(weights @ v))


@torch.no_grad()
def reference(folder, factor: float) -> np.ndarray:
    """Latents (2, h, w, C) of both pictures."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def spans(text):
        found, first = {}, 1
        for word in text.split():
            length = len(pipe.tokenizer(word, add_special_tokens=False).input_ids)
            found[word] = list(range(first, first + length))
            first += length
        return found, first

    (old, old_end), (new, new_end) = spans(BEFORE), spans(AFTER)
    mapper, alphas, factors = torch.zeros(77, 77), torch.zeros(77), torch.ones(77)
    mapper[0, 0] = alphas[0] = 1
    for before, after in SAME:
        for i in old[before]:
            for j in new[after]:
                if len(old[before]) == len(new[after]):
                    mapper[i, j] = float(i - old[before][0] == j - new[after][0])
                else:
                    mapper[i, j] = 1 / len(new[after])
        alphas[new[after]] = 1
    for j in range(new_end, 77):
        mapper[old_end + j - new_end, j] = alphas[j] = 1
    factors[new["sunset"]] = factor
    crosses = {name: ".attn2." in name for name in pipe.unet.attn_processors}
    pipe.unet.set_attn_processor(
        {name: EditedAttention(each, mapper, alphas, factors) for name, each in crosses.items()}
    )
    noise = torch.from_numpy(np.repeat(NOISE, 2, 0).transpose(0, 3, 1, 2).copy())
    found = pipe([BEFORE, AFTER], negative_prompt=[NEGATIVE] * 2, num_inference_steps=STEPS, guidance_scale=CFG_WEIGHT,
                 width=WIDTH, height=HEIGHT, latents=noise, output_type="latent").images  # fmt: skip
    return found.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_both_pictures(family, factor, tmp_path):
    folder = pipelines.save(tmp_path, family)
    sd = StableDiffusion(folder, float16=False)
    theirs = reference(folder, factor)
    how = PromptEdit(CROSS, LAYOUT, {} if factor == 1 else {"sunset": factor})
    for pair in sd.edit(BEFORE, AFTER, how, negative_text=NEGATIVE, latents=NOISE, sampler="euler", num_steps=STEPS,
                     cfg_weight=CFG_WEIGHT, width=WIDTH, height=HEIGHT):  # fmt: skip
        ours = np.concatenate([np.array(step.latents) for step in pair])
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert np.abs(theirs[0] - theirs[1]).max() > 1e-2 * np.abs(theirs).max()
