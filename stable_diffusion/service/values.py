"""The form's values as plain data: their bounds, and what may be put back into the form from a file or an address."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from .. import catalogue, families
from ..pictures.reading import FITS
from ..sampler import SAMPLERS, key_of
from . import loras
from .masks import AREAS, CONTENTS, MODES
from .painting import SUFFIXES
from .preview import KINDS

MAX_SEED = 2**53 - 1  # what a browser counts exactly
RANDOM_SEED = -1
OWN_LAYER = 0  # in place of a clip skip: the layer that the checkpoint was trained with
AUTOMATIC = "automatic"  # the schedule that the checkpoint asks for
MAX_TEXT = 20_000  # characters of a prompt; far more than any encoder reads
RATIOS = {"1:1": (1, 1), "4:3": (4, 3), "3:2": (3, 2), "16:9": (16, 9)}
EXAMPLES = {  # prompts to begin with; the embedded model knows nothing but such postcards
    catalogue.DEFAULT: (
        "a red house on green hills at sunset, with clouds",
        "a yellow tent in snowy mountains at night, with stars",
        "a white lighthouse by the sea by day, with a rainbow",
        "a purple hot air balloon in the desert by day, with birds",
    ),
    "": (
        "a lighthouse in a storm, watercolour",
        "a fox asleep in a library, soft morning light",
        "a market street in the rain at night, photograph",
    ),
}
SCHEDULES = {known.key: (AUTOMATIC, *known.schedules) for known in SAMPLERS}

WHOLE = {
    "steps": (1, 150),
    "width": (64, 2048),
    "height": (64, 2048),
    "n_images": (1, 16),
    "seed": (-1, MAX_SEED),
    "clip_skip": (0, 12),
    "variation_seed": (-1, MAX_SEED),
    "mask_blur": (0, 64),
    "mask_padding": (0, 256),
}
REAL = {"cfg": (0.0, 20.0), "strength": (0.0, 1.0), "variation_strength": (0.0, 1.0)}
TEXTS = ("prompt", "negative")
CHOICES: dict[str, Collection[str]] = {
    "fit": FITS,
    "file_format": SUFFIXES,
    "sampler": SCHEDULES,
    "mask_mode": MODES,
    "masked_content": CONTENTS,
    "inpaint_area": AREAS,
}
KEYS = ("model", *TEXTS, "schedule", *WHOLE, *REAL, *CHOICES, "loras", "previews")


def clean(values: Mapping[str, Any], known_models: Collection[str]) -> dict[str, Any]:
    """What of `values` the form can show: of a known name and type, numbers within their bounds; the rest is left out.

    `sampler` may come with its schedule, as the engine's key "dpmpp_2m_karras".
    """
    found: dict[str, Any] = {key: values[key][:MAX_TEXT] for key in TEXTS if isinstance(values.get(key), str)}
    if values.get("model") in known_models:
        found["model"] = values["model"]
    for key, (low, high) in WHOLE.items():
        if _is_number(values.get(key)):
            found[key] = int(min(max(values[key], low), high))
    for key, bounds in REAL.items():
        if _is_number(values.get(key)):
            found[key] = float(min(max(values[key], bounds[0]), bounds[1]))
    sampler, schedule = split_sampler(values.get("sampler"))
    schedule = values.get("schedule") or schedule
    found |= {
        key: value
        for key, value in (*values.items(), ("sampler", sampler))
        if key in CHOICES and isinstance(value, str) and value in CHOICES[key]
    }
    if "sampler" in found:
        found["schedule"] = schedule if schedule in SCHEDULES[found["sampler"]] else AUTOMATIC
    if isinstance(values.get("loras"), (list, tuple)):
        found["loras"] = loras.clean(values["loras"])
    if isinstance(values.get("previews"), (list, tuple)):
        found["previews"] = [kind for kind in KINDS if kind in values["previews"]]
    return found


def split_sampler(key: Any) -> tuple[str | None, str]:
    """The engine's key of a sampler as its class's key and its schedule: "dpmpp_2m_karras" -> dpmpp_2m, karras."""
    for base, schedules in SCHEDULES.items():
        for schedule in schedules:
            if key == join_sampler(base, schedule):
                return base, schedule
    return None, AUTOMATIC


def join_sampler(sampler: str, schedule: str) -> str:
    """The engine's key of a sampler and its schedule."""
    return sampler if schedule == AUTOMATIC else key_of(f"{sampler}_{schedule}")


def examples(model: catalogue.Model) -> tuple[str, ...]:
    """Prompts that a model can do something with."""
    return EXAMPLES.get(model.name, EXAMPLES[""])


def usual_size(model: catalogue.Model) -> tuple[int, int]:
    """The width and height in pixels that a model paints best."""
    side = families.get(model.family).side
    return model.defaults.width or side, model.defaults.height or side


def size_of_ratio(ratio: tuple[int, int], usual: tuple[int, int]) -> tuple[int, int]:
    """A width and height of about `ratio`, with about as many pixels as `usual`."""
    side = math.sqrt(usual[0] * usual[1])
    multiple = 64 if side >= 512 else 8  # the sizes that large checkpoints were trained on
    factor = math.sqrt(ratio[0] / ratio[1])
    width, height = (max(multiple, round(s / multiple) * multiple) for s in (side * factor, side / factor))
    return width, height


def with_default(negative: str, default: str) -> str:
    """A negative prompt with the default one at its end, once."""
    negative = without_default(negative, default)
    return ", ".join(part for part in (negative, default) if part)


def without_default(negative: str, default: str) -> str:
    """A negative prompt as it was typed, when the default one stands at its end."""
    negative = negative.strip()
    if default and negative.endswith(default):
        return negative[: -len(default)].rstrip().removesuffix(",").rstrip()
    return negative


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
