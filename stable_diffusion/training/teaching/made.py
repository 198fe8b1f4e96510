"""What is noted in a taught file's header: kohya's ss_* keys and the model spec, as far as they hold here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from ... import __version__, families
from ...model_io.export import PREDICTIONS
from ..recipe import Recipe
from .base import Base
from .task import Settings

PROGRAM = "stable-diffusion-mlx"


def metadata(
    base: Base, kind: str, title: str, recipe: Recipe, settings: Settings, captions: Sequence[str], trigger: str | None
) -> dict[str, str]:
    """The entries of a file of a `kind` ("lora", "textual-inversion"); none depends on the clock."""
    family = families.get(base.checkpoint.family)
    side = settings.side
    values = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family.architecture}/{kind}",
        "modelspec.implementation": f"{PROGRAM} {__version__}",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": PREDICTIONS[base.checkpoint.scheduler.prediction_type],
        "ss_output_name": title,
        "ss_sd_model_name": base.name,
        "ss_base_model_version": family.lora_base,
        "ss_num_train_images": str(len(captions)),
        "ss_resolution": f"({side}, {side})",
        "ss_enable_bucket": str(settings.buckets),
        "ss_learning_rate": str(recipe.learning_rate),
        "ss_batch_size_per_device": str(recipe.batch),
        "ss_seed": str(recipe.seed),
        "ss_min_snr_gamma": str(settings.min_snr or None),
        "ss_noise_offset": str(settings.offset_noise or None),
        "ss_caption_dropout_rate": str(settings.drop_captions),
        "ss_tag_frequency": json.dumps({title: Counter(captions)}, ensure_ascii=False),
    }
    return values | ({"modelspec.trigger_phrase": trigger} if trigger else {})
