"""Small networks of every family, as configurations (of unlike numbers, so that a mix-up shows), and their inputs."""

from __future__ import annotations

import numpy as np

from . import drawn

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
    "distilled": {  # as Segmind's SSD-1B and Vega are
        **UNET,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": [1, [2, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 1, 3], [2, 1, 1], 1],
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


def unet_inputs(name: str, height: int, width: int) -> dict[str, np.ndarray]:
    """Inputs of a U-Net of UNETS, channels last, by the argument's name."""
    config = UNETS[name]
    inputs = {
        "x": drawn.normal("x", 2, height, width, config.get("in_channels", 4)),
        "t": np.array([601.0, 3.0], np.float32),
        "text": drawn.normal("text", 2, 77, config["cross_attention_dim"]),
    }
    if "addition_embed_type" in config:
        inputs["pooled"] = drawn.normal("pooled", 2, TEXT_2["projection_dim"])
        inputs["time_ids"] = np.array([[128, 96, 0, 8, 64, 80], [96, 128, 4, 0, 96, 128]], np.float32)
    return inputs


def vae_inputs() -> dict[str, np.ndarray]:
    """A picture (2, 40, 56, 3) in [-1, 1], and unscaled latents (2, 5, 7, 4)."""
    return {"picture": drawn.normal("picture", 2, 40, 56, 3).clip(-1, 1), "z": drawn.normal("z", 2, 5, 7, 4)}


def text_ids() -> np.ndarray:
    """Two texts (2, 77): one padded with end-of-text, one with 0."""
    ids = np.random.default_rng(0).integers(0, 740, (2, 77)).astype(np.int32)
    ids[0, 9:] = 741
    ids[1, 30], ids[1, 31:] = 741, 0
    return ids
