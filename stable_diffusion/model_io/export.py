"""What the files of a checkpoint hold: configurations, tokenizers, weights, in diffusers' folder form and our own.

A checkpoint from a folder keeps its configuration files; for a single file, which has none, they are written from
the configurations that were derived from its tensors.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from .. import __version__, families
from ..backend import mx, nn
from ..config import SchedulerConfig
from ..listing import visible
from ..text.tokenizer_files import CLIP_FOLDER
from . import names, native
from .checkpoint import Checkpoint
from .load_folder import read_index, read_json
from .name_table import KERNEL, TRANSPOSED, Names
from .parts import PARTS_KEY, part_folder
from .quantised import plain_parameters, quantisation_of

# The release whose files these resemble; its inpainting pipeline does not load without the key.
DIFFUSERS = {"_diffusers_version": "0.30.0"}
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
# Keys about the file that a configuration was read from, not about the network.
PASSING = ("_name_or_path", "torch_dtype", "dtype", native.QUANTIZATION)
CLIPPING = ("DDIMScheduler", "LCMScheduler")  # schedulers that would clip latents as if they were pixels
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # as modelspec's metadata have them

Tensors = dict[str, mx.array]
Weights = dict[str, tuple[Tensors, dict[str, str]]]  # by a file's name: tensors, and the metadata of its header


def folder_texts(checkpoint: Checkpoint, source: Path, own: bool) -> dict[str, bytes]:
    """Everything in a folder but the weights, by path; `own`: in our own form, whose weights may be quantised.

    Raises the errors of reading the source's files.
    """
    texts = _copied(checkpoint, source) if source.is_dir() else _composed(checkpoint)
    for part, model in checkpoint.parts.items():
        if own and (found := quantisation_of(model)):
            texts[f"{part}/config.json"][native.QUANTIZATION] = found.to_config()
    return {name: value if isinstance(value, bytes) else _json(value) for name, value in texts.items()}


def diffusers_weights(checkpoint: Checkpoint, dtype: mx.Dtype) -> Weights:
    """The weights as diffusers and transformers read them."""
    weights: Weights = {}
    for part, model in checkpoint.parts.items():
        stem = "diffusion_pytorch_model" if part in CLASSES else "model"
        weights[f"{part}/{stem}.safetensors"] = _cast(to_folder(part, model), dtype), {"format": "pt"}
    return weights


def own_weights(checkpoint: Checkpoint, dtype: mx.Dtype) -> Weights:
    """The weights as the modules here hold them, to be loaded unchanged."""
    return {
        f"{part}/{native.FILE}": (
            _cast(dict(tree_flatten(model.parameters())), dtype),
            {**native.FORMAT, "version": __version__},
        )
        for part, model in checkpoint.parts.items()
    }


def single_file_weights(checkpoint: Checkpoint, dtype: mx.Dtype, name: str) -> Weights:
    """One file in the original layout, with the metadata and marks by which programs know what the U-Net predicts."""
    tensors = _cast(to_single_file(checkpoint), dtype)
    scheduler, side = checkpoint.scheduler, checkpoint.default_size[0]
    family = families.get(checkpoint.family)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": PREDICTIONS.get(scheduler.prediction_type, ""),
    }
    marks = {"v_pred": scheduler.prediction_type == "v_prediction", "ztsnr": scheduler.rescale_betas_zero_snr}
    tensors |= {key: mx.zeros((0,), dtype) for key, marked in marks.items() if marked and family.marks_v}
    return {"": (tensors, metadata)}


def to_folder(part: str, model: nn.Module) -> Tensors:
    """A network's tensors for a diffusers folder, lazy; `part` is "unet", "vae", "text_encoder" or "text_encoder_2"."""
    if part == "unet":
        return renamed(model, names.unet(model.config))
    return renamed(model, names.VAE if part == "vae" else names.TEXT_ENCODER)


def to_single_file(checkpoint: Checkpoint) -> Tensors:
    """The tensors of all networks of a checkpoint as in one file of the original layout, lazy."""
    unet, vae = checkpoint.unet, checkpoint.vae
    tensors = renamed(unet, names.original_unet(unet.config), names.UNET_PREFIX)
    tensors |= renamed(vae, names.original_vae(len(vae.config.block_out_channels)), names.VAE_PREFIX)
    known = families.get(checkpoint.family).text_encoders
    for each, encoder in zip(known, checkpoint.text_encoders, strict=True):
        tensors |= renamed(encoder, names.text_encoder(each.kind), each.prefix)
    return tensors


def renamed(model: nn.Module, table: Names, prefix: str = "") -> Tensors:
    """Parameters under a file's names and in its layout; kernels are torch's (O, I, kH, kW)."""
    found: dict[str, dict[int, mx.array]] = {}  # by the file's name, and by the part of its tensor
    for name, value in plain_parameters(model).items():
        place = table.write(name)
        if value.ndim == 4:
            value = value.transpose(0, 3, 1, 2)
        elif place.form == KERNEL:
            value = value.reshape(*value.shape, 1, 1)
        elif place.form == TRANSPOSED:
            value = value.T
        index, _ = place.part or (0, 1)
        found.setdefault(prefix + place.theirs, {})[index] = value
    return {key: _joined([parts[i] for i in sorted(parts)]) for key, parts in found.items()}


def _joined(parts: list[mx.array]) -> mx.array:
    return mx.concatenate(parts) if len(parts) > 1 else parts[0]


def _copied(checkpoint: Checkpoint, source: Path) -> dict[str, Any]:
    """The configurations and tokenizers of a folder, with the components that are not copied set to none."""
    index = read_index(source)
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in checkpoint.parts if part.startswith("text")]
    kept = {*checkpoint.parts, *tokenizers, "scheduler"}
    texts: dict[str, Any] = {
        "model_index.json": DIFFUSERS
        | {
            key: [None, None] if isinstance(value, list) and key not in kept else value
            for key, value in index.items()
            if key not in (*PASSING, PARTS_KEY)
        },
        "scheduler/scheduler_config.json": read_json(source / "scheduler" / "scheduler_config.json"),
    }
    for part in checkpoint.parts:
        values = read_json(part_folder(source, index, part) / "config.json")
        texts[f"{part}/config.json"] = {k: v for k, v in values.items() if k not in PASSING}
    for name in tokenizers:
        texts |= {f"{name}/{path.name}": path.read_bytes() for path in _files(part_folder(source, index, name))}
    return texts


def _composed(checkpoint: Checkpoint) -> dict[str, Any]:
    """The same for a checkpoint from a single file: CLIP's tokenizers, configurations as diffusers writes them."""
    config = checkpoint.unet.config
    inpainting = config.in_channels == 2 * config.out_channels + 1
    family = families.get(checkpoint.family)
    kind = family.lcm_pipeline if config.time_cond_proj_dim else family.pipeline
    scheduler = _scheduler(checkpoint)
    index: dict[str, Any] = {"_class_name": f"{kind}{'Inpaint' * inpainting}Pipeline", **DIFFUSERS}
    texts: dict[str, Any] = {"model_index.json": index, "scheduler/scheduler_config.json": scheduler}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    if family.refines:
        index |= {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    for part, model in checkpoint.parts.items():
        values = dataclasses.asdict(model.config)
        if part in CLASSES:
            values = {"_class_name": CLASSES[part], **values}
            index[part] = ["diffusers", CLASSES[part]]
        else:
            values["model_type"] = "clip_text_model"
            index[part] = ["transformers", values["architectures"][0]]
        texts[f"{part}/config.json"] = values
    for part, encoder in family.encoders.items():
        name = part.replace("text_encoder", "tokenizer")
        index[name] = ["transformers", "CLIPTokenizer"]
        texts |= {f"{name}/{path.name}": path.read_bytes() for path in _files(CLIP_FOLDER)}
        texts[f"{name}/tokenizer_config.json"] = {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": encoder.pad_token,
        }  # fmt: skip
    index |= {name: [None, None] for name in family.empty_parts}
    return texts


def _scheduler(checkpoint: Checkpoint) -> dict[str, Any]:
    """scheduler_config.json with the values that differ from the scheduler's defaults."""
    family = families.get(checkpoint.family)
    kind = family.lcm_scheduler if checkpoint.unet.config.time_cond_proj_dim else family.scheduler
    values = {key: value for key, value in dataclasses.asdict(checkpoint.scheduler).items() if value is not None}
    defaults = dataclasses.asdict(SchedulerConfig())
    unknown = {"skip_prk_steps", "aligned_sigmas"} | (set() if kind in CLIPPING else {"set_alpha_to_one"})
    changed = {k: v for k, v in values.items() if k == "prediction_type" or (v != defaults[k] and k not in unknown)}
    return {"_class_name": kind, **changed} | ({"clip_sample": False} if kind in CLIPPING else {})


def _cast(tensors: Tensors, dtype: mx.Dtype) -> Tensors:
    return {key: value if value.dtype == mx.uint32 else value.astype(dtype) for key, value in tensors.items()}


def _files(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.is_file() and path.suffix in (".json", ".txt")]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
