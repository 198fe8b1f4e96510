"""Small random pipelines written as single files in the original layout, by renaming diffusers' own parameters.

The renames are written here anew, from diffusers' names to the original ones, so that a slip in the engine's tables,
which run the other way, cannot hide.
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stable_diffusion.text.tokenizer_files import CLIP_FOLDER

from .pipelines import randomise

CLIP = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "projection_dim": 64,
}
OPEN_CLIP = {**CLIP, "hidden_size": 128, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 24}

# Unlike numbers, as far as the original layout leaves a choice: 32 groups, 8 heads or 64 channels to a head.
UNET = {
    "sample_size": 64,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}
UNETS = {
    "sd1": UNET,
    "sd2": {
        **UNET,
        "sample_size": 96,
        "block_out_channels": (64, 128, 128),
        "attention_head_dim": (1, 2, 2),
        "use_linear_projection": True,
        "upcast_attention": True,
        "cross_attention_dim": 128,
    },
    "sdxl": {
        **UNET,
        "sample_size": 128,
        "block_out_channels": (64, 128, 192),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 2, 3),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
        "cross_attention_dim": 64 + 128,
    },
    "distilled": {  # SDXL as Segmind has it
        **UNET,
        "sample_size": 128,
        "block_out_channels": (64, 128, 192),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 2, 3),
        "transformer_layers_per_block": [1, [2, 2], [2, 3]],
        "reverse_transformer_layers_per_block": [[2, 1, 3], [2, 1, 1], 1],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
        "cross_attention_dim": 64 + 128,
    },
    "refiner": {
        **UNET,
        "sample_size": 128,
        "block_out_channels": (64, 128, 192),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 2, 3),
        "transformer_layers_per_block": 2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 5 * 8 + 24,
        "cross_attention_dim": 128,
    },
    "inpainting": {**UNET, "in_channels": 9},
    "lcm": {**UNET, "time_cond_proj_dim": 48},
}
VAE = {
    "sample_size": 512,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
# What the scheduler_config.json hold that from_single_file takes for a family: those of Stable Diffusion 1.5, 2.1, XL.
COMMON = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SCHEDULERS = {
    "sd1": {"_class_name": "PNDMScheduler", **COMMON},
    "sd2": {"_class_name": "DDIMScheduler", **COMMON, "prediction_type": "v_prediction"},
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        **COMMON,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
}
SCHEDULERS["refiner"] = SCHEDULERS["sdxl"]
XL = ("sdxl", "refiner")
KINDS = {"sdxl": "StableDiffusionXLPipeline", "refiner": "StableDiffusionXLImg2ImgPipeline",
         "distilled": "StableDiffusionXLPipeline",
         "lcm": "LatentConsistencyModelPipeline",
         "inpainting": "StableDiffusionInpaintPipeline"}  # fmt: skip
FAMILIES = {"inpainting": "sd1", "lcm": "sd1", "distilled": "sdxl"}


def build(name: str) -> dict[str, torch.nn.Module]:
    """The random networks of a pipeline: "sd1", "sd2", "sdxl", "refiner", "inpainting" or "lcm"."""
    family = FAMILIES.get(name, name)
    vae = {**VAE, "scaling_factor": 0.13025 if family in XL else 0.18215}
    networks: dict[str, torch.nn.Module] = {"unet": UNet2DConditionModel(**UNETS[name]), "vae": AutoencoderKL(**vae)}
    text = {**OPEN_CLIP, "num_hidden_layers": 23} if family == "sd2" else CLIP
    if family != "refiner":
        networks["text_encoder"] = CLIPTextModel(CLIPTextConfig(**text))
    if family in XL:  # the refiner's has more than SD 2.x's 24 layers, of which one is left out
        layers = {"num_hidden_layers": 25} if family == "refiner" else {}
        networks["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**OPEN_CLIP | layers))
    return {part: randomise(network) for part, network in networks.items()}


def save_folder(folder: Path, name: str, networks: dict[str, torch.nn.Module], weights: bool = True) -> Path:
    """The pipeline in diffusers' form, with the tokenizers that the family has, for diffusers to read settings from."""
    family = FAMILIES.get(name, name)
    index = {"_class_name": KINDS.get(name, "StableDiffusionPipeline")}
    for part, network in networks.items():
        library = "transformers" if part.startswith("text") else "diffusers"
        index[part] = [library, type(network).__name__]
        if weights:
            network.save_pretrained(folder / part)
        else:
            (folder / part).mkdir(parents=True)
            (network.config.save_pretrained if library == "transformers" else network.save_config)(folder / part)
        if part.startswith("text"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            copytree(CLIP_FOLDER, folder / tokenizer)
            pad = "!" if family == "sd2" or part == "text_encoder_2" else "<|endoftext|>"
            settings = {"pad_token": pad, "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
                        "unk_token": "<|endoftext|>", "model_max_length": 77,
                        "tokenizer_class": "CLIPTokenizer"}  # fmt: skip
            (folder / tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULERS[family]))
    index["scheduler"] = ["diffusers", SCHEDULERS[family]["_class_name"]]
    if family == "refiner":
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
        index |= {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    if family not in XL:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def state_dict(name: str, networks: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """All parameters of a pipeline under the original layout's names."""
    family = FAMILIES.get(name, name)
    tensors = {}
    config = networks["unet"].config
    for key, value in networks["unet"].state_dict().items():
        tensors["model.diffusion_model." + _unet_key(key, config.layers_per_block, config.up_block_types)] = value
    for key, value in networks["vae"].state_dict().items():
        original = _vae_key(key, len(VAE["block_out_channels"]))
        if "attn_1" in original and value.ndim == 2:
            value = value[:, :, None, None]  # the original's attention is of 1x1 convolutions
        tensors["first_stage_model." + original] = value
    if family == "refiner":
        return tensors | _open_clip("conditioner.embedders.0.model.", _text(networks["text_encoder_2"]))
    first = _text(networks["text_encoder"])
    if family == "sd2":
        tensors |= _open_clip("cond_stage_model.model.", first)
        tensors |= _last_layer_of_24("cond_stage_model.model.")
    else:
        prefix = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
        tensors |= {f"{prefix}.transformer.text_model.{key}": value for key, value in first.items()}
    if "text_encoder_2" in networks:
        tensors |= _open_clip("conditioner.embedders.1.model.", _text(networks["text_encoder_2"]))
    return {key: value.detach().clone() for key, value in tensors.items()}


def _text(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}


def stray(family: str) -> dict[str, torch.Tensor]:
    """Keys that real files have beside the three networks."""
    prefix = "conditioner.embedders.1.model" if family == "sdxl" else "cond_stage_model"
    keys = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.diffusion_modelinput_blocks00bias": torch.full((32,), 9.0),
        "betas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "sqrt_recipm1_alphas_cumprod": torch.zeros(1000),
        "posterior_log_variance_clipped": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(2, 3, 4, 4),
        f"{prefix}.logit_scale": torch.tensor(4.6),
    }
    if family in ("sd1", "sdxl"):
        text = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
        keys[f"{text}.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if family == "sd2":
        keys["cond_stage_model.model.text_projection"] = torch.zeros(128, 24)
        keys["cond_stage_model.model.attn_mask"] = torch.zeros(77, 77)
    if family == "sdxl":
        keys["denoiser.sigmas"] = torch.zeros(1000)
    return keys


def _replaced(key: str, pairs: list[tuple[str, str]]) -> str:
    for theirs, original in pairs:
        key = key.replace(theirs, original)
    return key


def _unet_key(key: str, layers: int, up_block_types: tuple[str, ...]) -> str:
    part, _, rest = key.partition(".")
    top = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    if part in top:
        return f"{top[part]}.{rest}"
    if part in ("time_embedding", "add_embedding"):
        stem = "time_embed" if part == "time_embedding" else "label_emb.0"
        return f"{stem}." + _replaced(rest, [("linear_1", "0"), ("linear_2", "2")])
    rest = _replaced(
        rest,
        [("norm1.", "in_layers.0."), ("conv1.", "in_layers.2."), ("time_emb_proj.", "emb_layers.1."),
         ("norm2.", "out_layers.0."), ("conv2.", "out_layers.3."), ("conv_shortcut.", "skip_connection.")],
    ) if ".transformer_blocks." not in rest else rest  # fmt: skip
    if part == "mid_block":
        names = [("resnets.0", "0"), ("attentions.0", "1"), ("resnets.1", "2")]
        return "middle_block." + _replaced(rest, names)
    level, kind, index, tail = rest.split(".", 3)
    start = int(level) * (layers + 1)
    if part == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{start + layers + 1}.0.op.{tail.removeprefix('conv.')}"
        return f"input_blocks.{1 + start + int(index)}.{int(kind == 'attentions')}.{tail}"
    if kind == "upsamplers":
        place = 2 if up_block_types[int(level)].startswith("CrossAttn") else 1
        return f"output_blocks.{start + layers}.{place}.{tail}"
    return f"output_blocks.{start + int(index)}.{int(kind == 'attentions')}.{tail}"


def _vae_key(key: str, levels: int) -> str:
    side, _, rest = key.partition(".")
    if side not in ("encoder", "decoder"):
        return key
    attention = [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
    rest = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if rest.startswith("mid_block.attentions.0."):
        return f"{side}.mid.attn_1." + _replaced(rest.removeprefix("mid_block.attentions.0."), attention)
    if rest.startswith("mid_block.resnets."):
        index, tail = rest.removeprefix("mid_block.resnets.").split(".", 1)
        return f"{side}.mid.block_{int(index) + 1}.{tail}"
    if rest.startswith(("down_blocks.", "up_blocks.")):
        way, level, kind, index, tail = rest.split(".", 4)
        level = level if way == "down_blocks" else str(levels - 1 - int(level))
        way = way.removesuffix("_blocks")
        start = f"{side}.{way}.{level}"
        return f"{start}.block.{index}.{tail}" if kind == "resnets" else f"{start}.{way}sample.{tail}"
    return f"{side}.{rest}"


def _open_clip(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' parameters as OpenCLIP's: query, key and value fused, the projection transposed."""
    names = [("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
             ("embeddings.token_embedding", "token_embedding"), ("final_layer_norm", "ln_final"),
             ("embeddings.position_embedding.weight", "positional_embedding")]  # fmt: skip
    result = {}
    for key, value in tensors.items():
        if key == "text_projection.weight":
            result[prefix + "text_projection"] = value.T.contiguous()
        elif ".q_proj." in key:
            fused = torch.cat([tensors[key.replace(".q_proj.", f".{which}_proj.")] for which in "qkv"])
            name = key.replace(".q_proj.", ".in_proj_")
            result[prefix + _replaced(name, names)] = fused
        elif ".k_proj." not in key and ".v_proj." not in key:
            result[prefix + _replaced(key, names)] = value
    return result


def _last_layer_of_24(prefix: str) -> dict[str, torch.Tensor]:
    """The layer that SD 2.x's files hold and nobody runs."""
    block, width = f"{prefix}transformer.resblocks.23", OPEN_CLIP["hidden_size"]
    return {f"{block}.attn.in_proj_weight": torch.zeros(3 * width, width), f"{block}.ln_1.weight": torch.ones(width)}
