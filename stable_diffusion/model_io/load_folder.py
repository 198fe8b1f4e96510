"""A folder in diffusers' form -> modules, tokenizers and configurations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .. import families
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..config import AutoencoderConfig, CLIPTextConfig, Config, SchedulerConfig, UNetConfig, edm_kind
from ..errors import CheckpointNotFoundError, ConfigError, UnsupportedCheckpointError, WeightsError
from ..families import FAMILIES
from ..listing import visible
from ..text.tokenizer import Tokenizer
from ..unet import UNet
from ..vae import Autoencoder
from . import ldm, names
from .checkpoint import Checkpoint, assemble, family_of, vae_dtype
from .hub import TEXT_ENCODERS, Progress, names_part, weight_files
from .name_table import Names
from .native import QUANTIZATION, is_own_form, load_own_form
from .parts import part_folder
from .strict import load_weights

# Prefixes of other architectures' pipeline classes in model_index.json.
OTHER_ARCHITECTURES = {
    "Flux": "FLUX",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableCascade": "Stable Cascade",
    "StableVideoDiffusion": "Stable Video Diffusion",
    "PixArt": "PixArt",
    "Sana": "Sana",
    "Kandinsky": "Kandinsky",
    "Kolors": "Kolors",
    "Hunyuan": "Hunyuan",
    "AuraFlow": "AuraFlow",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
    "Chroma": "Chroma",
    "Lumina": "Lumina",
    "CogView": "CogView",
    "Wan": "Wan",
    "IF": "DeepFloyd IF",
    "StableDiffusionControlNet": "a ControlNet pipeline",
    "StableDiffusionUpscale": "Stable Diffusion's upscaler",
    "StableDiffusionLatentUpscale": "Stable Diffusion's latent upscaler",
    "StableDiffusionDepth2Img": "Stable Diffusion's depth-to-image model",
    "StableDiffusionInstructPix2Pix": "InstructPix2Pix",
    "StableDiffusionXLInstructPix2Pix": "InstructPix2Pix XL",
    "StableUnCLIP": "Stable unCLIP",
    "StableDiffusionImageVariation": "Stable Diffusion Image Variations",
}
# Prefixes of those that are built here; AltDiffusion's text encoder is refused by its configuration.
PIPELINES = (*{each.pipeline for each in FAMILIES.values()}, "LatentConsistencyModel", "AltDiffusion")


def load_folder(
    folder: Path,
    dtype: mx.Dtype,
    progress: Progress | None = None,
    check_values: bool = False,
    half_unet: bool = False,
    other_vae: bool = False,
) -> Checkpoint:
    """Load a checkpoint's parts from a folder in diffusers' form; weights stay on disk until needed.

    `half_unet` keeps in float16 those weights of the U-Net that are float16 in the file, whatever the `dtype`;
    `other_vae` reads no VAE's weights, and needs no VAE. Raises subclasses of `CheckpointError` for parts that are
    missing, cut short, of another architecture, or do not fit.
    """
    report = progress or (lambda message, fraction: None)
    index = read_index(folder)
    parts = [part for part in TEXT_ENCODERS if names_part(index, part)]
    tokenizer_names = [part.replace("text_encoder", "tokenizer") for part in parts]
    load = _Loader(folder, index, dtype, check_values, report)
    unet = load("unet", UNetConfig, UNet, names.UNET, keep_half=half_unet)
    family = family_of(unet.config, parts)
    vae_file = part_folder(folder, index, "vae") / "config.json"
    usual = other_vae and not vae_file.is_file()
    values = ldm.usual_vae_config(families.get(family)) if usual else read_json(vae_file)
    vae_config = AutoencoderConfig.from_dict(values, str(vae_file))
    vae = (
        Autoencoder(vae_config)
        if other_vae
        else load("vae", AutoencoderConfig, Autoencoder, names.VAE, vae_dtype(family, vae_config, dtype))
    )
    text_encoders = [load(part, CLIPTextConfig, CLIPTextModel, names.TEXT_ENCODER) for part in parts]
    tokenizers = [Tokenizer.from_files(part_folder(folder, index, name)) for name in tokenizer_names]
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler = SchedulerConfig.from_dict(read_json(scheduler_file), str(scheduler_file))
    zeros = bool(index.get("force_zeros_for_empty_prompt", families.get(family).zeros_for_empty_prompt))
    checkpoint = assemble(repr(str(folder)), family, unet, vae, text_encoders, tokenizers, scheduler, zeros)
    return dataclasses.replace(checkpoint, reloads=load.reloads)


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a folder, its pipeline checked to be one that this engine builds."""
    path = folder / "model_index.json"
    if not path.is_file():
        if not visible(folder):
            raise CheckpointNotFoundError(f"The folder {str(folder)!r} is empty; it should hold a checkpoint.")
        raise CheckpointNotFoundError(
            f"The folder {str(folder)!r} holds no model_index.json, so it is not a checkpoint in diffusers' form."
        )
    index = read_json(path)
    if not isinstance(index, dict):
        raise ConfigError(f"{path} should hold a JSON object.")
    pipeline = str(index.get("_class_name"))
    # The longest prefix counts: StableDiffusion3Pipeline is not a StableDiffusionPipeline.
    foreign = max((name for name in OTHER_ARCHITECTURES if pipeline.startswith(name)), key=len, default=None)
    if foreign or not pipeline.startswith(PIPELINES):
        kind = f"{OTHER_ARCHITECTURES[foreign]} ({pipeline})" if foreign else pipeline
        raise UnsupportedCheckpointError(f"{str(folder)!r} holds {kind}; this engine loads {families.IN_WORDS}.")
    scheduler = index.get("scheduler")
    if isinstance(scheduler, list) and (kind := edm_kind(scheduler[-1] if scheduler else None)):
        raise UnsupportedCheckpointError(f"{str(folder)!r} is {kind}, which is not supported.")
    if not any(names_part(index, part) for part in TEXT_ENCODERS):
        raise UnsupportedCheckpointError(
            f"{str(folder)!r} has no text_encoder; second stages other than SDXL's refiner are not supported."
        )
    return index


def read_json(path: Path) -> Any:
    """A configuration file's content. Raises `ConfigError` if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; download or copy the checkpoint again.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


class _Loader:
    """Loads components one by one, reporting progress."""

    def __init__(self, folder: Path, index: Mapping[str, Any], dtype: mx.Dtype, check_values: bool, report: Progress):
        self.folder = folder
        self.index = index
        self.dtype = dtype
        self.check_values = check_values
        self.report = report
        self.reloads: dict[str, Callable[[], None]] = {}

    def __call__(
        self,
        name: str,
        config_type: type[Config],
        module: Callable,
        table: Names,
        dtype: mx.Dtype | None = None,
        keep_half: bool = False,
    ) -> Any:
        self.report(f"Loading {name}", None)
        folder = part_folder(self.folder, self.index, name)
        config_file = folder / "config.json"
        values = read_json(config_file)
        quantisation = values.pop(QUANTIZATION, None) if isinstance(values, dict) else None
        model: nn.Module = module(config_type.from_dict(values, str(config_file)))
        files = [
            folder / file
            for file in weight_files(_names(folder), float16=self.dtype == mx.float16)
            if file.endswith(".safetensors")
        ]
        if not files:
            raise WeightsError(
                f"{folder} holds no safetensors weights (such as diffusion_pytorch_model.safetensors or "
                f"model.safetensors, with all shards); it holds {', '.join(_names(folder)) or 'nothing'}."
            )
        dtype = dtype or self.dtype
        if is_own_form(files[0]):
            load_own_form(model, files[0], dtype, quantisation, self.check_values, keep_half)
            self.reloads[name] = partial(load_own_form, model, files[0], dtype, keep_half=keep_half)
        else:
            load_weights(model, files, table, dtype, self.check_values, keep_half)
            self.reloads[name] = partial(load_weights, model, files, table, dtype, keep_half=keep_half)
        return model


def _names(folder: Path) -> list[str]:
    return [path.name for path in visible(folder)] if folder.is_dir() else []
