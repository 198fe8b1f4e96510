"""Small random pipelines of every family, made by diffusers and transformers themselves, for the live comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .. import drawn

TOKENIZER = Path(__file__).parents[2] / "stable_diffusion" / "checkpoints" / "postcards-tiny" / "tokenizer"

# Unlike numbers where a mix-up would otherwise not show: widths, heads, depths, groups.
UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 48, 64),
    "norm_num_groups": 16,
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
}
UNETS = {
    "sd1": UNET,
    "sd2": {
        **UNET, "attention_head_dim": (2, 3, 4), "use_linear_projection": True, "upcast_attention": True,
    },
    "sdxl": {
        **UNET,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
        "cross_attention_dim": 64 + 48,
    },
    "inpainting": {**UNET, "in_channels": 9},
    "lcm": {**UNET, "time_cond_proj_dim": 32},
    "uneven": {
        # Keys that no common checkpoint changes, each of them honoured (or, the last, without effect in the reference).
        **UNET,
        "layers_per_block": (1, 2, 3),
        "transformer_layers_per_block": (2, 1, 1),
        "only_cross_attention": (True, False, False),
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "act_fn": "mish",
        "norm_eps": 1e-4,
        "mid_block_scale_factor": 1.5,
        "time_embedding_dim": 80,
        "center_input_sample": True,
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
        "resnet_out_scale_factor": 1.25,
    },
    "no_middle": {**UNET, "mid_block_type": None},
}  # fmt: skip

VAE = {
    "sample_size": 128,
    "block_out_channels": (16, 24, 32, 32),
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
VAES = {
    "plain": VAE,
    "no_quant": {**VAE, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
    "statistics": {**VAE, "latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (0.9, 1.1, 1.2, 0.8)},
    "shifted": {**VAE, "shift_factor": 0.1, "scaling_factor": 0.36, "act_fn": "gelu"},
}

TEXT = {
    "vocab_size": 742,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "bos_token_id": 740,
    "eos_token_id": 741,
    "pad_token_id": 741,
    "hidden_act": "quick_gelu",
    "projection_dim": 24,
}
TEXTS = {
    "quick_gelu": TEXT,
    "gelu": {**TEXT, "hidden_act": "gelu", "pad_token_id": 0},
    "old_eos": {**TEXT, "eos_token_id": 2, "layer_norm_eps": 1e-4},
}
TEXT_2 = {**TEXT, "hidden_size": 48, "num_attention_heads": 3, "hidden_act": "gelu", "eos_token_id": 2}


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


def relative_error(ours, theirs) -> float:
    """max |a - b| / max |b|; tensors (B, C, H, W) of torch are turned to channels last first."""
    theirs = theirs.detach().float().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    if theirs.ndim == 4 and np.shape(ours) != theirs.shape:
        theirs = theirs.transpose(0, 2, 3, 1)
    ours = np.asarray(ours, dtype=np.float32)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
