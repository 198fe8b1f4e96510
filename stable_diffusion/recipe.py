"""What a picture's parameters say beyond A1111's own fields, so that the same picture can be made again.

Each key that changes the picture has its name here. A1111's names are kept where it has one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__, backend
from .adapters import files
from .adapters.tags import take_loras
from .backend import mx
from .model_io import hashes

if TYPE_CHECKING:
    from .pipeline import StableDiffusion

PRECISION, VERSION = "Precision", "Version"
BITS, PREDICTION_TYPE = "Bits", "Prediction type"
VAE, VAE_HASH = "VAE", "VAE hash"
LORA, LORA_HASHES, EMBEDDING_HASHES = "LoRA", "Lora hashes", "TI hashes"
CLIP_SKIP = "Clip skip"
VARIATION_SEED, VARIATION_STRENGTH = "Variation seed", "Variation seed strength"
BATCH_SIZE, BATCH_POSITION = "Batch size", "Batch pos"
BLEND_PROMPT, BLEND_SEED, BLEND_FRAMES, BLEND_SHARE = "Blend prompt", "Blend seed", "Blend frames", "Blend share"


def version() -> str:
    """This program, its MLX and the kind of device: pictures are the same to the last bit where all of it is."""
    mlx, device = mx.__version__, "gpu" if backend.has_gpu() else "cpu"  # type: ignore[attr-defined]
    return f"stable_diffusion {__version__} with MLX {mlx} on {device}"


def of_engine(
    sd: StableDiffusion,
    *texts: str,
    bits: int | None = None,
    prediction_type: str | None = None,
    vae: str | os.PathLike | None = None,
) -> dict[str, str]:
    """What a loaded model says of itself for texts that it paints, negative ones too; the rest as it was asked for."""
    extra = {}
    if bits is not None:
        extra[BITS] = str(bits)
    if prediction_type is not None:
        extra[PREDICTION_TYPE] = prediction_type
    if vae is not None:
        extra |= _of_vae(os.fspath(vae))
    if sd.loras:
        extra[LORA] = ", ".join(f"{name}:{plain(strength.unet)}" for name, strength in sd.loras)
    if sd.loras or any(take_loras(text)[1] for text in texts[:1]):
        extra[LORA_HASHES] = _hashes(sd.lora_files(texts[0] if texts else ""))
    if embeddings := sd.embedding_files(*texts):
        extra[EMBEDDING_HASHES] = _hashes(embeddings)
    return extra | {PRECISION: "float16" if sd.float16 else "float32", VERSION: version()}


def of_variation(seed: int, strength: float) -> dict[str, str]:
    """One picture's variation seed; nothing where it counts for nothing."""
    return {VARIATION_SEED: str(seed), VARIATION_STRENGTH: plain(strength)} if strength else {}


def of_batch(size: int, position: int) -> dict[str, str]:
    """The place in a batch: a product of matrices rounds by their size, so the last bit may be the batch's."""
    return {BATCH_SIZE: str(size), BATCH_POSITION: str(position)} if size > 1 else {}


def plain(value: float) -> str:
    """A number with every digit that it has, and no more."""
    return str(int(value) if float(value).is_integer() else float(value))


def _of_vae(vae: str) -> dict[str, str]:
    path = Path(vae).expanduser()
    if not path.exists():
        return {VAE: vae}  # an id of the hub
    return {VAE: path.resolve().name} | ({VAE_HASH: hashes.short_hash(path)} if path.is_file() else {})


def _hashes(paths: dict[str, Path]) -> str:
    return ", ".join(f"{name}: {files.short_hash(path)}" for name, path in paths.items())
