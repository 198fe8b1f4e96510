"""The form's values as plain data: their bounds, and what may be put back into the form from a file or a URL."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from .. import catalogue, families
from ..checks import MAX_TEXT, Choice, Flag, Number, Text, Whole
from ..errors import InputError
from ..request import DEFAULTS, SETTINGS
from ..sampler import SAMPLERS, key_of, sampler_names
from ..schedules import AUTOMATIC
from ..text.styles import MAX_NAME, MAX_STYLES
from . import loras
from .preview import KINDS

OWN = "automatic"  # the schedule that the checkpoint asks for, by the word that presets have had for it from the first
A1111S = "a1111"  # what A1111's Automatic is for the sampler
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
MORPHS = {  # from where to where a morph leads to begin with
    catalogue.DEFAULT: (
        "a yellow tent on green hills at sunset, with clouds",
        "a white windmill on green hills at sunset, with clouds",
    ),
    "": ("a photograph of a brown dog in a meadow", "a photograph of a white unicorn in a meadow"),
}
SCHEDULES = {known.key: (OWN, A1111S, *known.schedules) if known.schedules else (OWN,) for known in SAMPLERS}
OF_MODEL = ("steps", "cfg", "width", "height", "strength")  # the model's own best values
FORM = {name: each for name, each in SETTINGS.items() if each.page}
EXACT = 2**53 - 1  # the largest integer that a browser counts exactly
TYPED = tuple(name for name, each in FORM.items() if isinstance(each.check, Whole) and each.check.high > EXACT)
KEYS = ("model", "sampler", "schedule", "loras", "styles", "file_format", "previews", *FORM)


def bounds(name: str) -> tuple[Any, Any]:
    """The bounds of a number of the form."""
    each = FORM[name]
    assert isinstance(each.check, (Whole, Number)), f"{name} is not a number"
    kind = int if isinstance(each.check, Whole) else float
    return each.shown or (kind(each.check.low), kind(each.check.high))


def fresh() -> dict[str, Any]:
    """The form's initial values, except those that the model decides."""
    found = {name: each.to_form(DEFAULTS[name]) for name, each in FORM.items() if name not in OF_MODEL}
    return found | {name: str(found[name]) for name in TYPED}


def typed(name: str, text: str) -> int:
    """The number that a text field holds; blank is its unset value. Raises InputError, which names the field."""
    each = FORM[name]
    low, high = bounds(name)
    number = _integer(text) if text.strip() else each.unset
    if number is None or not low <= number <= high:
        raise InputError(f"{each.title}: {text.strip()[:30]!r} should be a whole number from {low} to {high}.")
    return number


def shows(name: str, value: Any) -> bool:
    """Whether the form can show exactly this value: its bounds are narrower than the engine's."""
    found = clean({name: value}, []).get(name)
    return found == (str(value) if name in TYPED else value)


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text) else None


def clean(values: Mapping[str, Any], known_models: Collection[str]) -> dict[str, Any]:
    """The part of `values` that the form can show: known names and types, numbers clamped to their bounds.

    `sampler` may include its schedule, as in the engine's key "dpmpp_2m_karras".
    """
    found = {name: value for name in FORM if (value := _shown(name, values.get(name))) is not None}
    if values.get("model") in known_models:
        found["model"] = values["model"]
    if found.get("refiner") not in (FORM["refiner"].unset, *known_models):
        found.pop("refiner", None)
    if isinstance(values.get("sampler"), str):
        sampler, schedule = split_sampler(values["sampler"])
        sampler = values["sampler"] if values["sampler"] in SCHEDULES else sampler
        schedule = values.get("schedule") or schedule
        if sampler in SCHEDULES:
            found |= {"sampler": sampler, "schedule": schedule if schedule in SCHEDULES[sampler] else OWN}
    if isinstance(values.get("loras"), (list, tuple)):
        found["loras"] = loras.clean(values["loras"])
    if isinstance(values.get("styles"), (list, tuple)):
        names = (name for name in values["styles"] if isinstance(name, str) and 0 < len(name) <= MAX_NAME)
        found["styles"] = list(dict.fromkeys(names))[:MAX_STYLES]
    if isinstance(values.get("previews"), (list, tuple)):
        found["previews"] = [kind for kind in KINDS if kind in values["previews"]]
    return found


def _shown(name: str, value: Any) -> Any:
    """A value as the form shows it, or None for one that it cannot show."""
    each = FORM[name]
    if name == "vae":
        return value if value == each.unset or value in catalogue.vaes() else None
    if name == "hires_sampler":
        return value if value == each.unset or value in sampler_names() else None
    if name in TYPED and isinstance(value, str):
        value = _integer(value)
    if isinstance(each.check, Text):
        return value[:MAX_TEXT] if isinstance(value, str) else None
    if isinstance(each.check, Flag):
        return value if isinstance(value, bool) or (each.unset is not None and value == each.unset) else None
    if isinstance(each.check, Choice):
        options = (*each.check.options, *([] if each.unset is None else [each.unset]))
        return next((option for option in options if type(option) is type(value) and option == value), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    low, high = bounds(name)
    if value == each.unset and name not in TYPED:
        return type(low)(value)
    shown = type(low)(min(max(value, low), high))
    return str(shown) if name in TYPED else shown


def split_sampler(key: Any) -> tuple[str | None, str]:
    """The engine's key of a sampler as its class's key and its schedule: "dpmpp_2m_karras" -> dpmpp_2m, karras."""
    for known in SAMPLERS:
        for schedule in (OWN, *known.schedules):
            if key == join_sampler(known.key, schedule):
                return known.key, schedule
    return None, OWN


def join_sampler(sampler: str, schedule: str) -> str:
    """The engine's key of a sampler and its schedule."""
    return sampler if schedule == OWN else key_of(f"{sampler}_{AUTOMATIC if schedule == A1111S else schedule}")


def examples(model: catalogue.Model) -> tuple[str, ...]:
    """Prompts that suit a model."""
    return EXAMPLES.get(model.name, EXAMPLES[""])


def morph_examples(model: catalogue.Model) -> tuple[str, ...]:
    """The prompts of a morph's stations to begin with, which suit a model."""
    return MORPHS.get(model.name, MORPHS[""])


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
