"""CLIP (Radford et al. 2021, arXiv:2103.00020): an image encoder and a text encoder with one space for both.

Of N pictures and their N captions, each picture should be nearest to its own caption, and each caption to its own
picture. The text encoder is clip.py's. The image encoder is convolutional, as the paper's ResNets are: for pictures as
small as these it needs fewer examples than a transformer, and its feature maps serve as a perceptual distance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from .. import atomic, ops
from ..backend import mx, nn
from ..clip import CLIPTextModel
from ..config import CLIPTextConfig
from ..errors import CheckpointError, CheckpointNotFoundError, InputError, StableDiffusionError
from ..layers import Conv2d
from ..model_io import names
from ..places import packaged
from ..text.tokenizer import Tokenizer

FOLDER = packaged("checkpoints", "postcards-clip")
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer"
VISION_PREFIX = "vision_model."
FIRST_SCALE, LARGEST_SCALE = math.log(1 / 0.07), math.log(100.0)  # of the logits: the paper's section 2.5
ROWS = 64  # of a batch when many are encoded


@dataclass(frozen=True)
class VisionConfig:
    """The image encoder: `widths` are its channels at a half of the picture's side, a quarter and so on."""

    image_size: int = 64
    widths: tuple[int, ...] = (24, 48, 96)


@dataclass(frozen=True)
class Matches:
    """Retrieval among N pictures with captions: the share whose nearest one is right (recall at 1).

    With equal captions any of their pictures is right; `strict` counts only the own one.
    """

    text_to_image: float
    image_to_text: float
    strict_text_to_image: float
    strict_image_to_text: float
    distinct: int  # captions


class ImageEncoder(nn.Module):
    """Pictures (B, H, W, 3) in [-1, 1], H and W multiples of 2 per level -> a vector each, and maps on the way."""

    def __init__(self, config: VisionConfig, projection_dim: int):
        super().__init__()
        inputs = (3, *config.widths[:-1])
        self.halve = [Conv2d(4 * i, o) for i, o in zip(inputs, config.widths, strict=True)]
        self.refine = [Conv2d(width, width) for width in config.widths]
        self.blend = Conv2d(config.widths[-1], config.widths[-1])
        self.projection = nn.Linear(2 * config.widths[-1], projection_dim, bias=False)
        for layer in (*self.halve, *self.refine, self.blend):
            layer.weight = layer.weight * math.sqrt(6)  # variance 2 / inputs, for ReLU (He et al. 2015)
        self.config = config

    def features(self, x: mx.array) -> list[mx.array]:
        """The feature maps of all levels, (B, H / 2, W / 2, widths[0]) and so on; for any size."""
        relu, maps = ops.ACTIVATIONS["relu"], []
        for halve, refine in zip(self.halve, self.refine, strict=True):
            x = relu(halve(space_to_depth(x)))
            x = x + relu(refine(x))
            maps.append(x)
        return maps

    def __call__(self, x: mx.array) -> mx.array:
        """A vector for each picture, (B, P), not normalised."""
        x = self.features(x)[-1]
        x = x + ops.ACTIVATIONS["relu"](self.blend(x))
        return self.projection(mx.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1))


class CLIPModel(nn.Module):
    """Both encoders, and the logarithm of the logits' scale, which is learnt (1 / temperature)."""

    def __init__(self, text: CLIPTextConfig, vision: VisionConfig):
        super().__init__()
        assert text.projection_dim
        self.text_model = CLIPTextModel(text)
        self.vision_model = ImageEncoder(vision, text.projection_dim)
        self.logit_scale = mx.array(FIRST_SCALE)

    def encode_images(self, pictures: mx.array) -> mx.array:
        """(B, H, W, 3) in [-1, 1] -> unit vectors (B, P), float32."""
        return unit(self.vision_model(pictures))

    def encode_texts(self, ids: mx.array) -> mx.array:
        """Token ids (B, N) -> unit vectors (B, P), float32."""
        return unit(self.text_model(ids).pooled)

    @property
    def scale(self) -> mx.array:
        """What cosines are multiplied by, at most 100."""
        return mx.exp(mx.minimum(self.logit_scale.astype(mx.float32), LARGEST_SCALE))


@dataclass(frozen=True)
class CLIP:
    """A trained CLIP with its tokenizer; in the thread that loaded it."""

    model: CLIPModel
    tokenizer: Tokenizer

    @property
    def side(self) -> int:
        """Of the pictures it was trained with, in pixels."""
        return self.model.vision_model.config.image_size

    def texts(self, captions: Sequence[str]) -> mx.array:
        """Unit vectors (N, P) of captions."""
        ids = shortened(self.tokenizer(list(captions))[0], self.tokenizer.eos_id)
        return _in_parts(self.model.encode_texts, ids)

    def pictures(self, pictures: np.ndarray) -> mx.array:
        """Unit vectors (N, P) of pictures (N, H, W, 3) uint8, squares of the model's side or a multiple of it."""
        return _in_parts(self.model.encode_images, as_input(pictures, self.side))


def unit(x: mx.array) -> mx.array:
    """Vectors (B, P) of length 1, float32."""
    x = x.astype(mx.float32)
    return x * mx.rsqrt(mx.square(x).sum(axis=-1, keepdims=True) + 1e-12)


def contrastive_loss(images: mx.array, texts: mx.array, scale: mx.array) -> mx.array:
    """The symmetric cross-entropy of figure 3 of the paper, for unit vectors (N, P) of N pictures and their captions.

    logits = scale * images texts^T; the mean of the cross-entropies along its rows and along its columns, where the
    right answer is the diagonal (van den Oord et al. 2018's InfoNCE, both ways).
    """
    logits = scale * (images @ texts.T)
    right = mx.diag(logits)
    rows, columns = mx.logsumexp(logits, axis=1) - right, mx.logsumexp(logits, axis=0) - right
    return (rows.mean() + columns.mean()) / 2


def retrieval(images: np.ndarray, texts: np.ndarray, captions: Sequence[str]) -> Matches:
    """How well pictures and captions find each other, from their unit vectors (N, P)."""
    cosines, n = images @ texts.T, np.arange(len(captions))
    found_images, found_texts = cosines.argmax(0), cosines.argmax(1)
    known = np.unique(np.array(captions), return_inverse=True)[1]
    return Matches(
        text_to_image=float((known[found_images] == known).mean()),
        image_to_text=float((known[found_texts] == known).mean()),
        strict_text_to_image=float((found_images == n).mean()),
        strict_image_to_text=float((found_texts == n).mean()),
        distinct=len(set(captions)),
    )


def space_to_depth(x: mx.array) -> mx.array:
    """(B, 2H, 2W, C) -> (B, H, W, 4C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def as_input(pictures: np.ndarray, side: int) -> np.ndarray:
    """(N, k side, k side, 3) uint8 -> (N, side, side, 3) float32 in [-1, 1]. Raises `InputError` for other shapes."""
    count, k = pictures.shape[0], pictures.shape[1] // side
    if pictures.shape[1:] != (k * side, k * side, 3) or k < 1:
        raise InputError(
            f"Pictures of shape {tuple(pictures.shape[1:])} do not fit: this CLIP reads squares of {side}, {2 * side}, "
            "... pixels."
        )
    means = pictures.reshape(count, side, k, side, k, 3).astype(np.float32).mean((2, 4))
    return means / 127.5 - 1.0


def shortened(ids: np.ndarray, end: int, multiple: int = 8) -> np.ndarray:
    """Token ids (B, 77) without the padding that all rows share.

    Attention is causal, so that what follows a text's end has no effect on it.
    """
    longest = int((ids == end).argmax(axis=1).max()) + 1
    return ids[:, : min(ids.shape[1], -(-longest // multiple) * multiple)]


def save(clip: CLIPModel, folder: Path) -> None:
    """Write a model in float16 with the file names, configuration and tensor names of transformers' CLIPModel.

    The image encoder's own names and settings are under vision_model and vision_config.
    """
    encoder = clip.text_model
    text = encoder.config
    end = text.eos_token_id
    values = {
        "model_type": "clip",
        "projection_dim": text.projection_dim,
        "text_config": {"model_type": "clip_text_model", "pad_token_id": end}
        | {k: v for k, v in asdict(text).items() if v is not None},
        "vision_config": asdict(clip.vision_model.config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_whole(folder / CONFIG, json.dumps(values, indent=2) + "\n")
    tensors = {theirs: value.astype(mx.float16) for theirs, value in _renamed(clip).items()}
    with atomic.written(folder / WEIGHTS) as temporary:
        mx.save_safetensors(str(temporary), tensors, {"format": "pt"})


def load(folder: Path = FOLDER) -> CLIP:
    """Read what `save` wrote, in float32, by default the one that comes along.

    Raises `CheckpointNotFoundError` where there is nothing, and `CheckpointError` for files of another kind.
    """
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).exists():
            raise CheckpointNotFoundError(
                f"There is no model of `train clip` at {str(folder)!r}: it would have {CONFIG}, {WEIGHTS} and "
                f"{TOKENIZER}/."
            )
    try:
        values: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        vision: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["vision_config"].items()}
        model = CLIPModel(CLIPTextConfig.from_dict(values["text_config"], str(folder / CONFIG)), VisionConfig(**vision))
        tensors: Any = mx.load(str(folder / WEIGHTS))
    except StableDiffusionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"The files at {str(folder)!r} are not a model of `train clip` ({error}).") from None
    wanted = _renamed(model)
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in wanted.items()}:
        raise CheckpointError(f"{str(folder / WEIGHTS)!r} does not fit the {CONFIG} next to it.")
    own = {name: tensors[theirs].astype(mx.float32) for name, theirs in _table(model).items()}
    own = {name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for name, value in own.items()}
    model.update(tree_unflatten(list(own.items())))
    mx.eval(model.parameters())
    return CLIP(model, Tokenizer.from_files(folder / TOKENIZER))


def _table(clip: CLIPModel) -> dict[str, str]:
    """The name of each parameter here -> its name in a file."""
    table = {}
    for name in dict(tree_flatten(clip.parameters())):
        tower, _, rest = name.partition(".")
        if tower == "text_model":
            table[name] = names.TEXT_ENCODER.write(rest).theirs
        else:
            table[name] = "visual_projection.weight" if rest == "projection.weight" else name
    return table


def _renamed(clip: CLIPModel) -> dict[str, mx.array]:
    """All tensors as in a file; kernels are torch's (O, I, kH, kW)."""
    own = dict(tree_flatten(clip.parameters()))
    kernels = {name: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for name, value in own.items()}
    return {theirs: kernels[name] for name, theirs in _table(clip).items()}


def _in_parts(function: Any, rows: np.ndarray) -> mx.array:
    parts = []
    for i in range(0, len(rows), ROWS):
        parts.append(function(mx.array(rows[i : i + ROWS])))
        mx.eval(parts[-1])
    return mx.concatenate(parts)
