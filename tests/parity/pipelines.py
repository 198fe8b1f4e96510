"""Small random pipelines of every family, made by diffusers and transformers themselves, for the live comparison."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .. import drawn
from ..networks import GUIDANCE
from ..shapes import TEXT_2, TEXTS, UNETS, VAES

TOKENIZER = Path(__file__).parents[2] / "stable_diffusion" / "checkpoints" / "postcards-tiny" / "tokenizer"


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights by name (tests/drawn.py); a fresh module's zeros and ones would hide what they are multiplied with."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(drawn.weight(name, tuple(parameter.shape))))
    return model.eval()


def unet(name: str) -> UNet2DConditionModel:
    return randomise(UNet2DConditionModel(**UNETS[name]))


def vae(name: str = "plain") -> AutoencoderKL:
    return randomise(AutoencoderKL(**VAES[name]))


def text_encoder(config: dict, with_projection: bool = False) -> torch.nn.Module:
    kind = CLIPTextModelWithProjection if with_projection else CLIPTextModel
    return randomise(kind(CLIPTextConfig(**config)))


@torch.no_grad()
def run_unet(model: UNet2DConditionModel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The reference's prediction for the inputs of shapes.py, channels last."""
    extras = {}
    if "pooled" in inputs:
        added = {"text_embeds": torch.from_numpy(inputs["pooled"]), "time_ids": torch.from_numpy(inputs["time_ids"])}
        extras["added_cond_kwargs"] = added
    if model.config.time_cond_proj_dim:
        embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        weight = torch.full((2,), GUIDANCE - 1)
        extras["timestep_cond"] = embed(None, weight, embedding_dim=model.config.time_cond_proj_dim)
    t, text = torch.from_numpy(inputs["t"]), torch.from_numpy(inputs["text"])
    return channels_last(model(channels_first(inputs["x"]), t, text, **extras).sample)


@torch.no_grad()
def run_vae(model: AutoencoderKL, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    posterior = model.encode(channels_first(inputs["picture"])).latent_dist
    decoded = model.decode(channels_first(inputs["z"])).sample
    results = {"mean": posterior.mean, "deviation": posterior.std, "decoded": decoded}
    return {key: channels_last(value) for key, value in results.items()}


@torch.no_grad()
def run_text_encoder(model: torch.nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    output = model(torch.from_numpy(ids).long(), output_hidden_states=True)
    pooled = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
    results = {"last": output.last_hidden_state, "penultimate": output.hidden_states[-2], "pooled": pooled}
    return {key: value.numpy() for key, value in results.items()}


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.numpy().transpose(0, 2, 3, 1)


SCHEDULERS = {
    "sd1": PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ),
    "sd2": DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ),
    "sdxl": EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    ),
    "lcm": LCMScheduler(),
}


def save(folder: Path, family: str) -> Path:
    """Write a pipeline of `family` ("sd1", "sd2", "sdxl" or "lcm") as a diffusers folder, and return the folder."""
    from shutil import copytree

    unet(family).save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vae")
    xl = family == "sdxl"
    text = TEXTS["gelu"] if family == "sd2" else TEXTS["quick_gelu"]
    text_encoder(text).save_pretrained(folder / "text_encoder")
    copytree(TOKENIZER, folder / "tokenizer")
    SCHEDULERS[family].save_pretrained(folder / "scheduler")
    kinds = {"sdxl": "StableDiffusionXLPipeline", "lcm": "LatentConsistencyModelPipeline"}
    index = {
        "_class_name": kinds.get(family, "StableDiffusionPipeline"),
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", type(SCHEDULERS[family]).__name__],
    }
    if xl:
        text_encoder(TEXT_2, with_projection=True).save_pretrained(folder / "text_encoder_2")
        copytree(TOKENIZER, folder / "tokenizer_2")
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
