"""The model that is taught: loaded, checked to be one that can be, and copied so that the original stays whole."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import backend, families
from ...adapters.lora import shared_copy
from ...backend import mx, nn
from ...catalogue import from_file, from_folder
from ...clip import CLIPTextModel
from ...errors import UnsupportedCheckpointError
from ...model_io.checkpoint import Checkpoint
from ...model_io.hub import Progress
from ...model_io.locate import load, locate
from ...model_io.quantised import quantisation_of
from ...pipeline import StableDiffusion
from ...unet import UNet
from ..optimisation import weights_dtype

TEACHABLE = ("epsilon", "v_prediction")


class TaughtNetworks(nn.Module):
    """The networks of a checkpoint, as one module; all weights are frozen at first."""

    def __init__(self, unet: UNet, text_encoders: Sequence[CLIPTextModel]):
        super().__init__()
        self.unet = unet
        self.text_encoders = list(text_encoders)
        self.freeze()


@dataclass(frozen=True)
class Base:
    """A loaded checkpoint, and copies of its networks that may be changed: they share its arrays."""

    checkpoint: Checkpoint
    name: str
    path: Path
    dtype: mx.Dtype
    networks: TaughtNetworks

    @property
    def side(self) -> int:
        """The side in pixels of the squares that the model was trained on."""
        width, height = self.checkpoint.default_size
        return round((width * height) ** 0.5 / 64) * 64

    def taught(self) -> Checkpoint:
        """The checkpoint with the networks that are being taught in place of its own."""
        encoders = tuple(self.networks.text_encoders)
        return dataclasses.replace(self.checkpoint, unet=self.networks.unet, text_encoders=encoders, reloads={})

    def painter(self, checkpoint: Checkpoint | None = None) -> StableDiffusion:
        """Paints with the original networks, or with those of `taught`, as they are at that moment."""
        chosen = checkpoint or dataclasses.replace(self.checkpoint, reloads={})
        return StableDiffusion.from_checkpoint(chosen, self.name, dtype=self.dtype)


def load_base(model: str | os.PathLike, precision: str, progress: Progress | None = None) -> Base:
    """Load a checkpoint to teach, its weights in `precision` ("auto", "float32", "bfloat16", "float16").

    Raises `UnsupportedCheckpointError` for one that should not be taught as it is: quantised, made for few steps, for
    inpainting, a refiner; and what loading raises.
    """
    dtype = weights_dtype(precision)
    name, path = locate(model, dtype != mx.float32, progress)
    refuse_distilled(name, path)
    checkpoint = load(path, dtype, progress)
    refuse(name, checkpoint)
    backend.prepare()
    networks = TaughtNetworks(shared_copy(checkpoint.unet), [shared_copy(each) for each in checkpoint.text_encoders])
    return Base(checkpoint, name, path, dtype, networks)


def refuse(name: str, checkpoint: Checkpoint) -> None:
    """Raise `UnsupportedCheckpointError` for networks that cannot be taught."""
    unet, scheduler = checkpoint.unet, checkpoint.scheduler
    if not isinstance(unet, UNet) or families.get(checkpoint.family).refines:
        raise UnsupportedCheckpointError(f"{name!r} cannot be taught: choose an SD 1.x, SD 2.x or SDXL model.")
    if found := quantisation_of(unet):
        raise UnsupportedCheckpointError(
            f"{name!r} is quantised to {found.bits} bits, which cannot learn. Teach the model that it was made from; "
            f"the result works with the quantised one too."
        )
    if unet.in_channels != checkpoint.vae.config.latent_channels:
        raise UnsupportedCheckpointError(
            f"{name!r} is for inpainting. Teach the model that it was made from; the result works with both."
        )
    if unet.embeds_guidance:
        raise UnsupportedCheckpointError(_distilled(name, "LCM"))
    if scheduler.prediction_type not in TEACHABLE:
        raise UnsupportedCheckpointError(
            f"{name!r} predicts {scheduler.prediction_type!r}; only models that predict {' or '.join(TEACHABLE)} can "
            f"be taught."
        )


def refuse_distilled(name: str, path: Path) -> None:
    """Raise `UnsupportedCheckpointError` for a model that was made for few steps, as its name or files tell."""
    entry = from_file(path, path.name) if path.is_file() else from_folder(path, name)
    if entry and entry.recipe:
        raise UnsupportedCheckpointError(_distilled(name, entry.recipe.title))


def _distilled(name: str, title: str) -> str:
    return (
        f"{name!r} was made for few steps ({title}), and teaching it in the usual way would undo that. Teach the model "
        f"that it was made from, and use the result with this one."
    )
