"""Attention maps against the same ones recorded by hooks in diffusers, on small random networks: within 1e-4."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers.models.attention_processor import AttnProcessor2_0  # noqa: E402

from stable_diffusion import AttentionMaps, PictureMaps, StableDiffusion  # noqa: E402
from stable_diffusion.pictures.heat import resized  # noqa: E402

from .. import drawn  # noqa: E402
from . import pipelines  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH, HEIGHT, STEPS, CFG_WEIGHT = 104, 72, 3, 5.0  # latents of 13 x 9: odd sides
PROMPT, NEGATIVE = "a hot-air balloon over green hills at sunset", "a blue tent"
LONG = "a red house, " + "pine tree, " * 30 + "and a lighthouse"
NOISE = drawn.normal("noise", 1, HEIGHT // 8, WIDTH // 8, 4)


class Hook(AttnProcessor2_0):
    """Records softmax(q k^T) of one layer's last row, which is the prompt's: (heads, N, tokens) for each call."""

    def __init__(self):
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **more):
        q = attn.head_to_batch_dim(attn.to_q(hidden_states[-1:]))
        k = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states[-1:]))
        self.weights.append(torch.softmax(attn.scale * q @ k.transpose(1, 2), dim=-1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, **more)


@torch.no_grad()
def reference(folder, **texts) -> dict[str, list[torch.Tensor]]:
    """The weights of each cross-attention layer, call by call."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    hooks = {name: Hook() for name in pipe.unet.attn_processors if ".attn2." in name}
    pipe.unet.set_attn_processor({**pipe.unet.attn_processors, **hooks})
    pipe(num_inference_steps=STEPS, guidance_scale=CFG_WEIGHT, width=WIDTH, height=HEIGHT, output_type="latent",
         latents=torch.from_numpy(NOISE.transpose(0, 3, 1, 2).copy()), **texts)  # fmt: skip
    return {name: hook.weights for name, hook in hooks.items()}


def recorded(sd: StableDiffusion, prompt: str, **options) -> PictureMaps:
    maps = AttentionMaps()
    options = {"num_steps": STEPS, "cfg_weight": CFG_WEIGHT, "width": WIDTH, "height": HEIGHT, **options}
    for step in sd.generate_latents(prompt, NEGATIVE, latents=NOISE, sampler="euler", attention=maps, **options):
        np.asarray(step.latents)
    return maps.pictures[0]


def expected(
    weights: dict[str, list[torch.Tensor]], places: list[int], steps=range(STEPS), within: str = ""
) -> np.ndarray:
    """Each head's, layer's and step's map of each token, enlarged bicubically; the mean of all, without the middle."""
    height, width = NOISE.shape[1:3]
    found = []
    for name, calls in weights.items():
        if name.startswith(within or ("down", "up")):
            for call in (calls[step] for step in steps):
                scale = next(s for s in (1, 2, 4) if -(-height // s) * -(-width // s) == call.shape[1])
                maps = (
                    call[..., places].permute(0, 2, 1).reshape(len(call), -1, -(-height // scale), -(-width // scale))
                )
                found.append(torch.nn.functional.interpolate(maps, (height, width), mode="bicubic"))
    return torch.cat([each.mean(dim=1) for each in found]).mean(dim=0).numpy()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_maps_of_words(family, tmp_path):
    folder = pipelines.save(tmp_path, family)
    weights = reference(folder, prompt=PROMPT, negative_prompt=NEGATIVE)
    sd = StableDiffusion(folder, float16=False)
    maps = recorded(sd, PROMPT)
    assert len({each.shape[1] for calls in weights.values() for each in calls}) == len(set(maps.levels.values())) > 1
    first = 1
    for number, word in enumerate(maps.words):
        places = list(range(first, first := first + len(sd.tokenizer.encode(word.text))))
        for options, where in (
            ({}, {}), ({"stages": [1]}, {"steps": [1]}), ({"levels": ["mid_block"]}, {"within": "mid_block"}),
            ({"levels": ["up_blocks.1"], "stages": [0, 2]}, {"within": "up_blocks.1", "steps": [0, 2]}),
        ):  # fmt: skip
            ours, theirs = maps.heat_map(number, **options), expected(weights, places, **where)
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), (word, options)
    assert first > len(maps.words) + 1, "a word of several tokens"


def test_a_long_prompt(tmp_path):
    """Several chunks: the reference is given what our text encoder makes of them."""
    folder = pipelines.save(tmp_path, "sd1")
    sd = StableDiffusion(folder, float16=False)
    texts = [np.array(sd.encode_text(LONG)), np.concatenate([np.array(sd.encode_text(x)) for x in (NEGATIVE, "")], 1)]
    names = ("prompt_embeds", "negative_prompt_embeds")
    weights = reference(folder, **dict(zip(names, map(torch.from_numpy, texts), strict=True)))
    maps = recorded(sd, LONG)
    last = len(maps.words) - 1
    assert maps.words[last].text == "lighthouse"
    length = sd.encode_text(LONG).shape[1]
    candidates = [expected(weights, [place]) for place in range(77, length)]
    errors = [np.abs(maps.heat_map("lighthouse") - each).max() / each.max() for each in candidates]
    assert length == 154 and min(errors) <= 1e-4 < sorted(errors)[1]


@pytest.mark.parametrize("shape", [(4, 4, 9, 13), (5, 7, 9, 13), (9, 13, 4, 5), (1, 1, 3, 2), (2, 3, 512, 64)])
def test_bicubic_interpolation(shape):
    x = drawn.normal("maps", 2, *shape[:2])
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x)[None], shape[2:], mode="bicubic")[0].numpy()
    assert np.abs(resized(x, *shape[2:]) - theirs).max() <= 1e-6 * np.abs(theirs).max()
