"""What a single file holds, from its header alone: keys, shapes and marks. Loads no MLX and reads no weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import families
from ..errors import ConfigError, UnsupportedCheckpointError, WeightsError
from ..families import FAMILIES, Family
from .names import UNET_PREFIX as UNET
from .names import VAE_PREFIX as VAE
from .names import averaged_name, has_averages_alone
from .tensor_file import HeaderText, StoredTensor, TensorFile, open_tensors

CONV_IN = UNET + "input_blocks.0.0.weight"
PREDICTION_TYPES = {"v": "v_prediction", "v_prediction": "v_prediction", "eps": "epsilon", "epsilon": "epsilon",
                    "x0": "sample", "sample": "sample"}  # fmt: skip
MAX_YAML = 1 << 20
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# What this engine does not load although it has a U-Net in LDM's layout: by the first part of a key, and by a key.
FOREIGN_ROOTS = {
    "control_model": "a ControlNet",
    "adapter": "a T2I-Adapter",
    "noise_augmentor": "Stable unCLIP",
    "embedder": "Stable unCLIP",
    "depth_model": "Stable Diffusion's depth-to-image model",
    "low_scale_model": "Stable Diffusion's upscaler",
    "cc_projection": "Zero123",
    "edm_mean": "Playground 2.5, an EDM model,",
    "edm_vpred": "CosXL, an EDM model,",
}
FOREIGN_KEYS = {
    "cond_stage_model.roberta.embeddings.word_embeddings.weight": "AltDiffusion",
    UNET + "input_blocks.1.0.time_mixer.mix_factor": "Stable Video Diffusion",
    UNET + "input_blocks.1.0.temopral_conv.conv1.0.weight": "ModelScope's text-to-video model",
}
REFINER = "conditioner.embedders.0.model."
CHANNELS = {
    4: "",
    5: "Stable Diffusion's depth-to-image model",
    7: "Stable Diffusion's upscaler",
    8: "InstructPix2Pix",
    9: "",
}
# Everything else, by tell-tale keys, in the order in which they are looked for.
FOREIGN = (
    (r"lora_(up|down|mid|[AB])\b|\.lora\.(up|down)\.|\b(hada_w1_a|lokr_w1|dora_scale)|\boft_(blocks|diag)", "a LoRA"),
    (r"^(control_model|controlnet_cond_embedding|controlnet_(down|mid)_block|input_hint_block)\b", "a ControlNet"),
    (r"^(adapter\.|(adapter\.)?body\.\d+\.(resnets|block\d|in_conv))", "a T2I-Adapter"),
    (r"^(image_proj|ip_adapter)\b", "an IP-Adapter"),
    (r"^(emb_params|string_to_param\b.*|string_to_token\b.*|clip_[lg])$", "a textual-inversion embedding"),
    (r"motion_modules?\.", "an AnimateDiff motion module"),
    (r"distilled_guidance_layer\.", "Chroma"),
    (r"(^|\.)(single_stream_modulation|early_stream_modulations)\b", "FLUX.2"),
    (r"(^|\.)(double_blocks\.0\.img_attn|single_transformer_blocks\.0)\.", "FLUX"),
    (r"(^|\.)joint_blocks\.0\.", "Stable Diffusion 3"),
    (r"(^|\.)double_layers\.0\.attn\.w[12]q\b", "AuraFlow"),
    (r"^clip_txt_mapper\.|channelwise\.0\.weight$", "Stable Cascade"),
    (r"txt_in\.(text_norm|individual_token_refiner)", "Qwen-Image or HunyuanVideo"),
    (r"(^|\.)cap_embedder\.0\.weight$", "Lumina or Z-Image"),
    (r"(^|\.)patchify_proj\.", "LTX-Video"),
    (r"(^|\.)head\.modulation$", "Wan"),
    (r"\.cross_attn\.(q|kv)_linear\.", "PixArt or Sana"),
    (r"^net\.x_embedder\.", "Cosmos"),
    (r"^model_ema\.", "averaged weights (model_ema.) without a U-Net that is known here"),
    (
        r"^((first_stage_model|vae)\.)?(encoder|decoder|taesd_(en|de)coder)\.(layers\.)?\d+\.",
        "a tiny VAE (TAESD) alone",
    ),
    (r"^((first_stage_model|vae)\.)?(encoder|decoder)\.(conv_in|down|mid|up)", "a VAE alone"),
    (r"^(input_blocks|down_blocks|diffusion_model\.input_blocks)\.0\.", "a U-Net alone"),
    (r"^(text_model|(transformer\.|model\.)?(text_model\.|encoder\.layers|resblocks))", "a text encoder alone"),
    (r"^(cond_stage_model|conditioner)\.", "a text encoder alone"),
)


@dataclass(frozen=True)
class Description:
    """What a listing shows of a file. `family` is "" for files that this engine does not load; `kind` is in words."""

    family: str  # a key of families.FAMILIES, or ""
    kind: str  # "Stable Diffusion XL, inpainting", "a LoRA", ...
    precision: str  # of the U-Net, or of the first tensor: "float16", ...
    prediction_type: str  # "epsilon", "v_prediction" or "sample"; "" if family is
    zero_terminal_snr: bool
    size: int | None  # pixels along a side, if the file says so
    missing: tuple[str, ...]  # of "vae", "text_encoder" and "text_encoder_2"
    size_bytes: int


def describe(path: str | os.PathLike) -> Description:
    """A file's kind, from its header. Raises a subclass of `CheckpointError` for a file without one."""
    path = Path(path)
    with open_tensors(path, check=False) as file:
        try:
            take_averages(file)
            return describe_open(file)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise WeightsError(f"{path} is damaged: its header makes no sense. Download or copy it again.") from None


def take_averages(file: TensorFile) -> None:
    """In an open file that has only averages of the U-Net, rename them to the U-Net's own names."""
    if has_averages_alone(file.tensors):
        file.tensors = {averaged_name(key): tensor for key, tensor in file.tensors.items()}


def describe_open(file: TensorFile) -> Description:
    """`describe` for an open file, after `take_averages`."""
    tensors = file.tensors
    first = tensors.get(CONV_IN) or next((t for t in tensors.values() if t.dtype in PRECISIONS), None)
    precision = PRECISIONS.get(first.dtype, first.dtype) if first else ""
    foreign = _foreign(tensors)
    if foreign:
        return Description("", foreign, precision, "", False, None, (), file.size)
    family = _family(tensors)
    original = read_original_config(file.path)
    prediction_type, zero_snr = _prediction(file, family, original)
    missing = tuple(part for part, encoder in family.encoders.items() if not _has(tensors, encoder.prefix))
    missing += () if VAE + "decoder.conv_in.weight" in tensors else ("vae",)
    kind = family.long_title
    if tensors[CONV_IN].shape[1] == 9:
        kind += ", inpainting"
    elif UNET + "time_embed.cond_proj.weight" in tensors:
        kind += ", latent consistency"
    return Description(family.key, kind, precision, prediction_type, zero_snr, _pixels(file), missing, file.size)


def _foreign(tensors: Mapping[str, StoredTensor]) -> str:
    """What a file holds other than a checkpoint for this engine, in words; "" for such a checkpoint."""
    if CONV_IN in tensors:
        found = [kind for root, kind in FOREIGN_ROOTS.items() if _has(tensors, root)]
        found += [kind for key, kind in FOREIGN_KEYS.items() if key in tensors]
        if _has(tensors, REFINER) and _by_text_encoder(tensors) is None:
            found.append("the refiner of Stable Diffusion XL")
        shape = tensors[CONV_IN].shape
        channels = shape[1] if len(shape) == 4 else 0
        return found[0] if found else CHANNELS.get(channels, f"a U-Net of {channels} input channels")
    names = "\n".join(tensors)
    for pattern, kind in FOREIGN:
        if re.search(pattern, names, re.MULTILINE):
            return kind
    return f"nothing that is known here ({len(tensors)} tensors, the first is {next(iter(tensors), 'none')[:80]!r})"


def _by_text_encoder(tensors: Mapping[str, StoredTensor]) -> Family | None:
    """The family whose text encoder, or one of them, is in a file, by its prefix."""
    known = ((family, encoder) for family in FAMILIES.values() for encoder in family.text_encoders)
    return next((family for family, encoder in known if _has(tensors, encoder.prefix)), None)


def _family(tensors: Mapping[str, StoredTensor]) -> Family:
    """By the text encoder; of a file that has none, by the width of the text that the U-Net attends to."""
    family = _by_text_encoder(tensors)
    if family:
        return family
    width = next((t.shape[-1] for key, t in tensors.items() if key.endswith("attn2.to_k.weight") and t.shape), 0)
    family = families.of_width(width)
    if not family:
        raise UnsupportedCheckpointError(
            f"The file has no text encoder, and its U-Net attends to text of width {width}, which is of no family that "
            f"is known here."
        )
    return family


def _has(tensors: Mapping[str, StoredTensor], prefix: str) -> bool:
    if isinstance(tensors, HeaderText):
        return tensors.has_prefix(prefix)
    return any(key.startswith(prefix) for key in tensors)


# What the U-Net predicts

# SD 2.x models that predict v have larger values here than those that predict eps; ComfyUI uses it, too.
TELLING_BIAS = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
TELLING_DEVIATION = 0.09
GLOBAL_STEP_OF_EPS = 875000  # of SD 2.0's base model, by which the reference knows it


def _prediction(file: TensorFile, family: Family, original: OriginalConfig) -> tuple[str, bool]:
    """The prediction type, and whether the noise schedule ends in pure noise (zero terminal SNR).

    Told by the first that says it: the .yaml beside the file, its metadata, its marks, its numbers.
    """
    zero_snr = "ztsnr" in file.tensors
    told = original.prediction_type or PREDICTION_TYPES.get(str(file.metadata.get("modelspec.prediction_type")).lower())
    if told:
        return told, zero_snr
    if "v_pred" in file.tensors:
        return "v_prediction", zero_snr
    if family.marks_v or file.values.get("global_step") == GLOBAL_STEP_OF_EPS:
        return "epsilon", zero_snr
    bias = file.tensors.get(TELLING_BIAS)
    if bias is None or bias.dtype not in PRECISIONS or bias.nbytes > 1 << 20:
        return "v_prediction", zero_snr
    values = file.read(bias)
    values = (values.astype(np.uint32) << 16).view(np.float32) if bias.dtype == "BF16" else values
    return ("v_prediction" if values.astype(np.float32).std() > TELLING_DEVIATION else "epsilon"), zero_snr


def _pixels(file: TensorFile) -> int | None:
    """The side that the metadata names, "512x512"."""
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", str(file.metadata.get("modelspec.resolution")))
    side = int(found[1]) if found and found[1] == found[2] else 0
    return side if side and side % 64 == 0 else None


# The .yaml next to a file


@dataclass(frozen=True)
class OriginalConfig:
    """The entries of LDM's and SGM's own configuration that change a result; None where the file has none."""

    prediction_type: str | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    linear_start: float | None = None
    linear_end: float | None = None
    scale_factor: float | None = None


def read_original_config(path: Path) -> OriginalConfig:
    """The configuration `model.yaml` next to `model.safetensors`; empty if there is no such file.

    Raises `ConfigError` for a file of another kind.
    """
    file = path.with_suffix(".yaml")
    if not file.is_file():
        return OriginalConfig()
    import yaml

    try:
        if file.stat().st_size > MAX_YAML:
            raise ValueError("it is too large")
        params = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["params"]
        network = (params.get("unet_config") or params.get("network_config") or {}).get("params", {})
        values = {
            "prediction_type": _parameterization(params),
            "num_heads": _number(network, "num_heads", int),
            "num_head_channels": _number(network, "num_head_channels", int),
            "linear_start": _number(params, "linear_start", float),
            "linear_end": _number(params, "linear_end", float),
            "scale_factor": _number(params, "scale_factor", float),
        }
    except (yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{file} is not a configuration of the original layout ({reason}); fix or remove it."
        ) from None
    return OriginalConfig(**values)


def _parameterization(params: dict) -> str | None:
    """LDM's `parameterization`, or the class that scales the denoiser's output in SGM's file."""
    value = params.get("parameterization")
    if value is None and "denoiser_config" in params:
        target = str(params["denoiser_config"]["params"]["scaling_config"]["target"])
        value = {"VScaling": "v", "EpsScaling": "eps"}.get(target.rpartition(".")[2], target)
    if value is None:
        return None
    if value not in PREDICTION_TYPES:
        raise ValueError(f"parameterization {value!r} is not among {', '.join(PREDICTION_TYPES)}")
    return PREDICTION_TYPES[value]


def _number(values: dict, key: str, kind: type) -> Any:
    """A positive number, or None; LDM writes -1 where another key decides."""
    value = values.get(key)
    if value is None or value == -1:
        return None
    if type(value) not in (int, float) or value <= 0 or (kind is int and type(value) is not int):
        raise ValueError(f"{key} = {value!r} should be a positive number")
    return kind(value)
