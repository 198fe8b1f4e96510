"""The networks to train: their sizes, how they are initialised, and how they are written to a checkpoint folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import atomic
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..config import AutoencoderConfig, CLIPTextConfig, SchedulerConfig, UNetConfig
from ..errors import CheckpointNotFoundError
from ..layers import Conv2d, ResnetBlock
from ..model_io import names
from ..model_io.export import to_folder
from ..model_io.load_folder import read_json
from ..model_io.load_vae import DECODER_PARTS
from ..model_io.strict import load_weights
from ..recipes import INDEX_KEY
from ..unet import Transformer2D, UNet
from ..vae import Autoencoder

VAE = AutoencoderConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 128),
    norm_num_groups=8,
)
TEXT_ENCODER = CLIPTextConfig(
    hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, projection_dim=128
)
UNET = UNetConfig(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(64, 128, 160),
    layers_per_block=1,
    attention_head_dim=4,
    norm_num_groups=16,
    cross_attention_dim=128,
)
# Stable Diffusion's betas end at 0.012, at which a 16x16 latent still tells day from night.
SCHEDULER = SchedulerConfig(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.02,
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    steps_offset=1,
    set_alpha_to_one=False,  # as in Stable Diffusion, for DDIM and PNDM
    skip_prk_steps=True,
)

# For each part's folder, the class and the library that read it.
CLASSES = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}
LIBRARIES = {
    "unet": "diffusers", "vae": "diffusers", "scheduler": "diffusers",
    "text_encoder": "transformers", "tokenizer": "transformers",
}  # fmt: skip


def new_autoencoder(config: AutoencoderConfig, seed: int) -> Autoencoder:
    """An untrained autoencoder, its weights drawn with `seed`."""
    mx.random.seed(seed)
    model = Autoencoder(config)
    _initialise(model)
    for module in model.modules():
        if isinstance(module, Conv2d | nn.Linear):
            # Variance 1 / inputs preserves a signal's scale; PyTorch's 1 / (3 inputs) loses it within a dozen layers.
            module.weight = module.weight * math.sqrt(3)
    if config.use_quant_conv:
        # Little noise at first, or the decoder learns to ignore the latents.
        is_variance = mx.arange(2 * config.latent_channels) >= config.latent_channels
        model.quant_conv.bias = mx.where(is_variance, -5.0, 0.0)
    return model


def load_autoencoder(folder: Path) -> Autoencoder:
    """The network of a vae/ folder, in float32.

    Raises `CheckpointNotFoundError` where there is none, and what loading a checkpoint raises.
    """
    file = folder / "diffusion_pytorch_model.safetensors"
    if not file.is_file():
        raise CheckpointNotFoundError(
            f"There is no autoencoder at {str(folder)!r}: train one first (train vae), or choose one with --vae."
        )
    model = Autoencoder(AutoencoderConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json")))
    load_weights(model, [file], names.VAE, mx.float32)
    return model


class TextToLatents(nn.Module):
    """The two networks that are trained together: text encoder and U-Net."""

    def __init__(self, text_config: CLIPTextConfig, unet_config: UNetConfig, seed: int):
        super().__init__()
        mx.random.seed(seed)
        self.text_encoder = CLIPTextModel(text_config)
        self.unet = UNet(unet_config)
        _initialise(self)

    def __call__(self, x: mx.array, t: mx.array, ids: mx.array) -> mx.array:
        """The U-Net's prediction for x (B, h, w, C) at times t (B,) with texts' ids (B, 77)."""
        text = self.text_encoder(ids).last_hidden_state
        return self.unet(x, t, self.unet.project_text(text))


def _initialise(model: nn.Module) -> None:
    """Initialise as PyTorch does (uniform to 1 / sqrt(inputs), biases too), but zero the last layer of each skip.

    So every block starts as the identity (Dhariwal and Nichol 2021, appendix), and a U-Net predicts 0. CLIP's
    embeddings have a deviation of 0.02 (Radford et al. 2021).
    """
    initialise_embeddings(model)
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.weight = mx.zeros_like(module.conv2.weight)
        elif isinstance(module, Transformer2D):
            module.proj_out.weight = mx.zeros_like(module.proj_out.weight)
            module.proj_out.bias = mx.zeros_like(module.proj_out.bias)
        elif isinstance(module, UNet):
            module.conv_out.weight = mx.zeros_like(module.conv_out.weight)


def initialise_embeddings(model: nn.Module) -> None:
    """Draw embeddings with a deviation of 0.02, as CLIP's were."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight = mx.random.normal(module.weight.shape) * 0.02


def write_part(folder: Path, part: str, model: nn.Module, **changes: Any) -> None:
    """Write one network in float16 in diffusers' folder layout; `changes` update its configuration."""
    values = {k: v for k, v in dataclasses.asdict(model.config).items() if v is not None} | changes
    if part == "text_encoder":
        end = values["eos_token_id"]
        values |= {"model_type": "clip_text_model", "bos_token_id": end - 1, "pad_token_id": end}
    else:
        values["_class_name"] = CLASSES[part]
    write_json(folder / part / "config.json", values)
    tensors = {name: value.astype(mx.float16) for name, value in to_folder(part, model).items()}
    path = folder / part / ("model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors")
    with atomic.written(path) as temporary:
        mx.save_safetensors(str(temporary), tensors, {"format": "pt"})


def write_decoder(folder: Path, model: Autoencoder) -> None:
    """Write a VAE's decoder alone: config.json and weights, float16. It is used with the encoder of a checkpoint."""
    values = {k: v for k, v in dataclasses.asdict(model.config).items() if v is not None}
    write_json(folder / "config.json", values | {"_class_name": CLASSES["vae"]})
    tensors = {
        name: value.astype(mx.float16)
        for name, value in to_folder("vae", model).items()
        if name.startswith(DECODER_PARTS)
    }
    with atomic.written(folder / "diffusion_pytorch_model.safetensors") as temporary:
        mx.save_safetensors(str(temporary), tensors, {"format": "pt"})


def write_index(
    folder: Path,
    scheduler: SchedulerConfig,
    kind: str = "EulerDiscreteScheduler",
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Write what turns the parts into a pipeline: model_index.json and the scheduler's configuration.

    `kind` is the scheduler's class. A model made for few steps says in `recipe` how it is painted with (recipes.py);
    diffusers ignores keys with an underscore.
    """
    classes = {**CLASSES, "scheduler": kind, "tokenizer": "CLIPTokenizer"}
    index: dict[str, Any] = {name: [LIBRARIES[name], classes[name]] for name in sorted(classes)}
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    index |= {INDEX_KEY: dict(recipe)} if recipe else {}
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **index})
    values = {k: v for k, v in dataclasses.asdict(scheduler).items() if v is not None}
    # diffusers' DDIM would otherwise clip latents as if they were pixels.
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": kind, "clip_sample": False, **values})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    atomic.write_whole(path, json.dumps(values, indent=2) + "\n")
