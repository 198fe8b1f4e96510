"""What a single file holds, from its header alone: keys, shapes and marks. Loads no MLX and reads no weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import families, recipes
from ..errors import ConfigError, UnsupportedCheckpointError, WeightsError
from ..families import CLIP, OPEN_CLIP, Family
from . import names
from .names import UNET_PREFIX as UNET
from .names import VAE_PREFIX as VAE
from .names import averaged_name, has_averages_alone
from .tensor_file import FLOAT8, HeaderText, StoredTensor, TensorFile, as_floats, open_tensors

CONV_IN = UNET + "input_blocks.0.0.weight"
PREDICTION_TYPES = {"v": "v_prediction", "v_prediction": "v_prediction", "eps": "epsilon", "epsilon": "epsilon",
                    "x0": "sample", "sample": "sample"}  # fmt: skip
MAX_YAML = 1 << 20
PRECISIONS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    **dict.fromkeys(FLOAT8, "float8"),
}
TRUE = ("true", "1")
NOTHING_KNOWN = "nothing that is known here"

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
    "scaled_fp8": "float8 weights with scales (ComfyUI's scaled fp8)",
}
LABEL_EMB = UNET + "label_emb.0.0.weight"  # takes the pooled text and the sizes
READS_TEXT = ".attn2.to_k.weight"  # (C, width of the text)
PLAIN, INPAINTING = 4, 9  # input channels
CHANNELS = {
    PLAIN: "",
    5: "Stable Diffusion's depth-to-image model",
    7: "Stable Diffusion's upscaler",
    8: "InstructPix2Pix",
    INPAINTING: "",
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
    metadata: Mapping[str, str] = field(default_factory=dict)  # what of it may tell of a model made for few steps
    doubts: tuple[str, ...] = ()  # marks that contradict each other, as sentences that name the option to use


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
    width, family = _family(tensors)
    places = names.text_places(family, partial(has_prefix, tensors))
    contradiction = _contradiction(tensors, width, family, places)
    if contradiction:
        return Description("", contradiction, precision, "", False, None, (), file.size)
    prediction = _prediction(file, family, read_original_config(file.path))
    missing = tuple(part for part in family.encoders if part not in places)
    missing += () if VAE + "decoder.conv_in.weight" in tensors else ("vae",)
    kind = family.long_title
    if tensors[CONV_IN].shape[1] == INPAINTING:
        kind += ", inpainting"
    elif UNET + "time_embed.cond_proj.weight" in tensors:
        kind += ", latent consistency"
    return Description(
        family.key,
        kind,
        precision,
        prediction.type,
        prediction.zero_terminal_snr,
        _pixels(file),
        missing,
        file.size,
        {key: file.metadata[key] for key in recipes.METADATA if key in file.metadata},
        prediction.doubts,
    )


def _foreign(tensors: Mapping[str, StoredTensor]) -> str:
    """What a file holds other than a checkpoint for this engine, in words; "" for such a checkpoint."""
    if CONV_IN in tensors:
        found = [kind for root, kind in FOREIGN_ROOTS.items() if has_prefix(tensors, root)]
        found += [kind for key, kind in FOREIGN_KEYS.items() if key in tensors]
        shape = tensors[CONV_IN].shape
        channels = shape[1] if len(shape) == 4 else 0
        return found[0] if found else CHANNELS.get(channels, f"a U-Net of {channels} input channels")
    keys = "\n".join(tensors)
    for pattern, kind in FOREIGN:
        if re.search(pattern, keys, re.MULTILINE):
            return kind
    return f"{NOTHING_KNOWN} ({len(tensors)} tensors, the first is {next(iter(tensors), 'none')[:80]!r})"


def _family(tensors: Mapping[str, StoredTensor]) -> tuple[int | None, Family]:
    """The width of the text that the U-Net attends to, None if unknown, and the family: by the U-Net's shapes.

    Names decide only for a width that no family has.
    """
    width = _text_width(tensors)
    family = families.of_width(width or 0)
    if family:
        return width, family
    has = partial(has_prefix, tensors)
    first, second = names.text_place(0, has), names.text_place(1, has)
    pooled = LABEL_EMB in tensors or (width is None and second is not None)
    family = families.of_text_encoder(first[1] if first else "", pooled)
    if not family and pooled and (first or second):
        family = families.of_text_encoder(CLIP, pooled)
    if not family:
        raise UnsupportedCheckpointError(
            f"The file has no text encoder, and its U-Net attends to text of width {width or 0}, which no known family "
            f"has."
        )
    return None, family


def _text_width(tensors: Mapping[str, StoredTensor]) -> int | None:
    if isinstance(tensors, HeaderText):
        found = tensors.ending_with(READS_TEXT)
    else:
        found = next((tensor for key, tensor in tensors.items() if key.endswith(READS_TEXT)), None)
    return found.shape[-1] if found and found.shape else None


def _contradiction(
    tensors: Mapping[str, StoredTensor], width: int | None, family: Family, places: Mapping[str, tuple[str, str]]
) -> str:
    """What contradicts that a U-Net that attends to text of this width is of this family, in words, or ""."""
    if width is None:
        return ""
    if family.pooled != (LABEL_EMB in tensors):
        label = "with" if LABEL_EMB in tensors else "without"
        return f"a U-Net that attends to text of width {width} {label} label_emb, which no known family does"
    widths = []
    for part, encoder in family.encoders.items():
        prefix, kind = places.get(part, ("", ""))
        if kind == OPEN_CLIP != encoder.kind:
            return f"a U-Net of {family.long_title} with OpenCLIP's text encoder"
        table = tensors.get(prefix + names.text_encoder(kind).write("token_embedding.weight").theirs)
        widths += [table.shape[-1]] if table and table.shape else []
    if len(widths) == len(family.encoders) and sum(widths) != width:
        found = " and ".join(map(str, widths))
        return f"a U-Net of {family.long_title} with text encoders of another family ({found} wide)"
    return ""


def has_prefix(tensors: Mapping[str, StoredTensor], prefix: str) -> bool:
    """Whether any tensor's name starts with `prefix`."""
    if isinstance(tensors, HeaderText):
        return tensors.has_prefix(prefix)
    return any(key.startswith(prefix) for key in tensors)


# What the U-Net predicts

# SD 2.x models that predict v have larger values here than those that predict eps; ComfyUI uses it, too.
TELLING_BIAS = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
TELLING_DEVIATION = 0.09
GLOBAL_STEP_OF_EPS = 875000  # of SD 2.0's base model, by which the reference knows it


@dataclass(frozen=True)
class _Prediction:
    type: str
    zero_terminal_snr: bool
    doubts: tuple[str, ...]


def _prediction(file: TensorFile, family: Family, original: OriginalConfig) -> _Prediction:
    """What the U-Net predicts, and whether the noise schedule ends in pure noise (zero terminal SNR).

    The first that says it counts: the .yaml next to the file, its marks, its metadata, its numbers.
    """
    in_metadata = PREDICTION_TYPES.get(str(file.metadata.get("modelspec.prediction_type")).lower())
    marked = "v_prediction" if "v_pred" in file.tensors else None
    sources = {
        "the .yaml next to it": original.prediction_type,
        "its mark v_pred": marked,
        "its metadata": in_metadata,
        "its weights": _by_numbers(file, family),
    }
    given = {source: kind for source, kind in sources.items() if kind}
    usual = "epsilon" if family.marks_v or file.tensors[CONV_IN].shape[1] != PLAIN else "v_prediction"
    kind = next(iter(given.values()), usual)
    doubts = []
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{kind} by {source}" for source, kind in given.items())
        other = next(each for each in given.values() if each != kind)
        doubts.append(
            f"What the U-Net predicts is marked in several ways ({listed}); {kind} is assumed. If pictures are noise, "
            f"use --prediction-type {other}."
        )
    zero_snr = "ztsnr" in file.tensors or str(file.metadata.get("ss_zero_terminal_snr")).lower() in TRUE
    if zero_snr and kind == "epsilon":
        doubts.append(
            "The file is marked as having zero terminal SNR, which works with v prediction only, but predicts epsilon. "
            "If pictures are noise, use --prediction-type v_prediction."
        )
    return _Prediction(kind, zero_snr, tuple(doubts))


def _by_numbers(file: TensorFile, family: Family) -> str | None:
    """What the weights show that the U-Net predicts, in families without a mark; None if they show nothing."""
    if family.marks_v or file.tensors[CONV_IN].shape[1] != PLAIN:
        return None
    if file.values.get("global_step") == GLOBAL_STEP_OF_EPS:
        return "epsilon"
    bias = file.tensors.get(TELLING_BIAS)
    if bias is None or bias.dtype not in PRECISIONS or bias.nbytes > 1 << 20:
        return None
    return "v_prediction" if as_floats(file.read(bias), bias.dtype).std() > TELLING_DEVIATION else "epsilon"


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
