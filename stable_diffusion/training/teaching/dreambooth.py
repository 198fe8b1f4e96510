"""DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): a subject under a rare word, while its class stays as it was.

The model itself paints the class's pictures ahead of the first step. By default a LoRA learns; with `full` all of the
U-Net does, and the output is a whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ... import ops
from ...errors import InputError
from ...model_io.convert import write_checkpoint
from ...model_io.hub import Progress
from ...pictures.reading import open_picture
from ...pipeline import StableDiffusion
from ..recipe import Recipe
from ..runs import RUNS
from .base import Base, load_base
from .lora import LoraBase, check_output, conditioner, examples, settings_of, silent
from .made import metadata
from .options import keep
from .pictures import TaughtFolder, TaughtPicture
from .recompute import recompute as recompute_in
from .task import Example, TeachingTask
from .words import Captions

CLASS_FOLDER = "class"
CLASS_STEPS = 20


def new_task(
    data: TaughtFolder,
    output: Path,
    recipe: Recipe,
    model: str = "postcards-tiny",
    trigger: str | None = None,
    caption: str | None = None,
    class_caption: str | None = None,
    class_pictures: int = 50,
    full: bool = False,
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
    """Teach a subject: `output` becomes a LoRA's file, or with `full` a model, as a single file or a folder.

    Raises `InputError` for options that do not fit the data or the file, and what `load_base` raises.
    """
    texts = data.captioned(caption, trigger)
    kinds = [text.strip() for text in (class_caption or "").split("|") if text.strip()]
    if class_pictures and not kinds:
        raise InputError(
            "Say what the subject is without its word (--class-caption 'a lighthouse by the sea'): the model paints "
            "pictures of that, to keep them as they are. --class-pictures 0 does without."
        )
    states = RUNS["dreambooth"].states(output)
    taught: FullBase | LoraBase
    if full:
        taught = FullBase(model, output, recipe, progress)
    else:
        check_output(output)
        taught = LoraBase(model, rank, alpha, layers, convolutions, text_encoders, recipe, progress)
    base = taught.base
    if recompute:
        recompute_in(base.networks)
    made = settings_of(base, data, sample, texts, settings)
    of_class = {"class_caption": class_caption, "class_pictures": class_pictures, "prior_weight": made.prior_weight}
    keep(states, {"model": base.name, "full": full, **taught.options, **of_class, "side": made.side})
    painted = class_examples(base, kinds, class_pictures, len(texts), states / CLASS_FOLDER, progress)
    noted = metadata(base, "lora", output.stem, recipe, made, texts, trigger)
    return TeachingTask(
        "dreambooth", base, taught.captions([*texts, *kinds]), examples(data, texts), painted, made, recipe, states,
        painter=lambda: taught.painter, write=partial(taught.write, output, format, noted),
    )  # fmt: skip


def class_examples(
    base: Base, captions: Sequence[str], count: int, first: int, folder: Path, progress: Progress
) -> list[Example]:
    """Pictures of the class, painted by the original model into `folder`, unless an earlier session did.

    Their captions take turns, and are numbered from `first`. Raises what painting raises, and OSError.
    """
    painter = base.painter()
    found = []
    with ops.use("usual"):
        for i in range(count):
            path = folder / f"{i:05d}.png"
            if not path.is_file():
                progress(f"Painting picture {i + 1} of {count} of the class", i / count)
                (picture,) = painter.generate(
                    captions[i % len(captions)], num_steps=CLASS_STEPS, seed=i, prompt_language="plain"
                )
                picture.save(path)
            found.append(Example(TaughtPicture(path, open_picture(path).size, None), first + i % len(captions)))
    return found


class FullBase:
    """A model of which all of the U-Net is taught, and how it is written."""

    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, model: str, output: Path, recipe: Recipe, progress: Progress):
        self.base = load_base(model, recipe.precision, progress)
        write_checkpoint(self.base.checkpoint, self.base.path, output, check_only=True)
        self.base.networks.unet.unfreeze()

    def captions(self, texts: Sequence[str]) -> Captions:
        """Captions by number."""
        return Captions(conditioner(self.base), texts, learnt=False)

    @cached_property
    def painter(self) -> StableDiffusion:
        """Paints with the network as it is at that moment."""
        return self.base.painter(self.base.taught())

    def write(self, output: Path, form: str, noted: dict[str, str]) -> None:
        """Write the model in float16, from the networks as they are. Raises OSError."""
        write_checkpoint(self.base.taught(), self.base.path, output, force=True)
