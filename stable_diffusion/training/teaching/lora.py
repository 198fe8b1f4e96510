"""The run that teaches by a LoRA: low-rank changes beside the U-Net's layers, and the text encoders' if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ... import families
from ...adapters import file_keys
from ...adapters.lora_file import LearntLayer, lora_tensors, write_tensors
from ...errors import InputError
from ...model_io.hub import Progress
from ...pipeline import StableDiffusion
from ...text.conditioning import TextConditioner
from ..recipe import Recipe
from ..runs import RUNS
from . import low_rank
from .base import Base, load_base
from .made import metadata
from .options import keep
from .pictures import TaughtFolder
from .recompute import recompute as recompute_in
from .task import Example, Settings, TeachingTask
from .words import Captions

SUFFIX = ".safetensors"


def silent(message: str, fraction: float | None) -> None:
    """Report nothing."""


def new_task(
    data: TaughtFolder,
    output: Path,
    recipe: Recipe,
    model: str = "postcards-tiny",
    trigger: str | None = None,
    caption: str | None = None,
    rank: int = 16,
    alpha: float | None = None,
    layers: str = "transformer",
    convolutions: bool = False,
    text_encoders: bool = False,
    sample: str | None = None,
    format: str = "kohya",
    recompute: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> TeachingTask:
    """Teach by a LoRA: `output` becomes its file. `settings` are further options of the row in runs.py.

    Raises `InputError` for options that do not fit the data or the file, and what `load_base` raises.
    """
    texts = data.captioned(caption, trigger)
    states = RUNS["lora"].states(output)
    check_output(output)
    taught = LoraBase(model, rank, alpha, layers, convolutions, text_encoders, recipe, progress)
    if recompute:
        recompute_in(taught.base.networks)
    made = settings_of(taught.base, data, sample, texts, settings)
    keep(states, {"model": taught.base.name, **taught.options, "side": made.side, "batch": recipe.batch})
    noted = metadata(taught.base, "lora", output.stem, recipe, made, texts, trigger)
    return TeachingTask(
        "lora", taught.base, taught.captions(texts), examples(data, texts), (), made, recipe, states,
        painter=lambda: taught.painter, write=partial(taught.write, output, format, noted),
    )  # fmt: skip


class LoraBase:
    """A model with low-rank changes put beside its layers, and how they are written."""

    def __init__(
        self,
        model: str,
        rank: int,
        alpha: float | None,
        layers: str,
        convolutions: bool,
        text_encoders: bool,
        recipe: Recipe,
        progress: Progress,
    ):
        self.base = load_base(model, recipe.precision, progress)
        self.text_encoders = text_encoders
        alpha = float(rank if alpha is None else alpha)
        self.options = {
            "rank": rank, "alpha": alpha, "layers": layers, "convolutions": convolutions,
            "text_encoders": text_encoders,
        }  # fmt: skip
        networks = self.base.networks
        pattern = "|".join([low_rank.LAYERS[layers], *[low_rank.CONVOLUTIONS] * convolutions])
        found = {file_keys.UNET: low_rank.insert(networks.unet, pattern, rank, alpha, recipe.seed)}
        if text_encoders:
            for i, encoder in enumerate(networks.text_encoders):
                name = (file_keys.TEXT, file_keys.TEXT_2)[i]
                found[name] = low_rank.insert(encoder, low_rank.TEXT_LAYERS, rank, alpha, recipe.seed + 1 + i)
        self.layers = {(name, path): each for name, layers in found.items() for path, each in layers.items()}
        self.alpha = alpha

    def captions(self, texts: Sequence[str]) -> Captions:
        """Captions by number, read by the text encoders as they become."""
        return Captions(conditioner(self.base), texts, self.text_encoders)

    @cached_property
    def painter(self) -> StableDiffusion:
        """Paints with the networks as they are at that moment."""
        return self.base.painter(self.base.taught())

    def write(self, output: Path, form: str, noted: dict[str, str]) -> None:
        """Write the file from the networks as they are. Raises OSError."""
        learnt = {key: LearntLayer(layer.up, layer.down, self.alpha) for key, layer in self.layers.items()}
        checkpoint = self.base.checkpoint
        tensors, header = lora_tensors(learnt, checkpoint.unet, checkpoint.family, form)
        network = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(self.options["rank"]),
            "ss_network_alpha": str(self.alpha),
        }
        write_tensors(output, tensors, network | noted | header)


def conditioner(base: Base) -> TextConditioner:
    """What reads captions with the encoders that are being taught."""
    checkpoint = base.checkpoint
    return TextConditioner(
        checkpoint.tokenizers,
        base.networks.text_encoders,
        xl=families.get(checkpoint.family).pooled,
        zeros_for_none=checkpoint.force_zeros_for_empty_prompt,
    )


def settings_of(
    base: Base, data: TaughtFolder, sample: str | None, texts: Sequence[str], values: dict[str, Any]
) -> Settings:
    """The settings of a run, with the model's side and the sample texts filled in."""
    asked = [text.strip() for text in (sample or "").split("|") if text.strip()]
    prompts = tuple(asked or dict.fromkeys(texts))
    known = {name: value for name, value in values.items() if name in Settings.__dataclass_fields__}
    return Settings(side=data.side or base.side, sample_prompts=prompts, **known)


def examples(data: TaughtFolder, texts: Sequence[str]) -> list[Example]:
    """Each picture with the number of its caption."""
    return [Example(picture, i) for i, picture in enumerate(data.pictures[: len(texts)])]


def check_output(output: Path) -> None:
    """Raise `InputError` unless the file's name ends in .safetensors and it can be one."""
    if output.suffix != SUFFIX or output.is_dir():
        raise InputError(f"output = {str(output)!r} should be a file that ends in {SUFFIX}, such as lantern{SUFFIX}.")
