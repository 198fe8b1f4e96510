"""What can be varied along an axis: every setting of `Request` that changes a picture, and what is made of several.

A setting becomes an axis by being one; only what reads its values otherwise is written here.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .. import catalogue
from ..adapters import files
from ..checks import Choice, Flag, Number, Whole
from ..errors import CheckpointNotFoundError, InputError
from ..record import keys
from ..request import DEFAULTS, SETTINGS, Request
from ..sampler import a1111_name, key_of, sampler_by_name, sampler_from_a1111, sampler_names
from ..schedules import TITLES, schedule_by_name
from ..setting import MASK, SIDES, WHITE
from ..text import styles
from . import values

NO_AXES = ("n_images", "batch_size", "combinations", "file_format")  # they change no picture, or how many there are
# A1111's names of axes, by ours; grids are recorded under them.
A1111_NAMES = {
    "cfg": "CFG Scale", "variation_seed": "Var. seed", "variation_strength": "Var. strength",
    "model": "Checkpoint name",
    "prompt_sr": "Prompt S/R", "prompt_order": "Prompt order", "strength": "Denoising", "clip_skip": "Clip skip",
    "schedule": "Schedule type", "sampler": "Sampler", "size": "Size", "vae": "VAE", "style": "Styles", "seed": "Seed",
    "steps": "Steps", "hires_upscaler": "Hires upscaler", "hires_steps": "Hires steps",
    "hires_sampler": "Hires sampler", "guidance_min_sigma": "Negative Guidance minimum sigma",
    "refiner": "Refiner checkpoint", "refiner_switch": "Refiner switch at",
}  # fmt: skip
NONE = "None"  # of a LoRA, a style or a VAE: without one
UNSET = "default"  # of a setting that the model decides
MAX_ORDERED = 6  # entries of a prompt order: 720 orders


@dataclass(frozen=True)
class Kind:
    """Something that can be varied.

    `read` makes values of what was typed, and `apply` a request of a request and one of the values; both raise
    `InputError`. `label` is how a value is written under its column.
    """

    name: str
    title: str
    read: Callable[[str], Sequence[Any]]
    apply: Callable[[Request, Any], Request]
    label: Callable[[Any], str] = str
    options: Callable[[], Sequence[str]] | None = None  # what there is to choose from; "*" stands for all of it
    example: str = ""
    late: int = 1  # applied after those of lower numbers: a schedule after its sampler
    setting: str = ""  # the field of `Request` that it sets

    @property
    def a1111(self) -> str:
        """A1111's name, or its own title."""
        return A1111_NAMES.get(self.name, self.title)


@dataclass(frozen=True)
class Axis:
    """A kind with its values."""

    kind: Kind
    typed: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands at its columns."""
        return tuple(map(self.kind.label, self.values))


@cache
def kinds() -> dict[str, Kind]:
    """Everything that can be varied, by name."""
    own = [_own(name) for name, each in SETTINGS.items() if _is_axis(name)]
    special = [
        Kind("model", "Model", _models, lambda r, v: dataclasses.replace(r, model=v), options=_model_names, late=0,
             example="postcards-tiny, stable-diffusion-v1-5", setting="model"),
        Kind("sampler", "Sampler", _samplers, lambda r, v: dataclasses.replace(r, sampler=v), _sampler_label,
             lambda: list(sampler_names().values()), "Euler, DPM++ 2M Karras", 0, "sampler"),
        Kind("schedule", "Schedule", _schedules, _with_schedule, lambda v: TITLES.get(v, v),
             options=lambda: [UNSET, *TITLES], example="Automatic, Karras"),
        Kind("lora", "LoRA", _loras, lambda r, v: dataclasses.replace(r, loras=v), _loras_label,
             lambda: [NONE, *files.listed(files.LORAS)], "None, watercolour, ink:0.5", 0),
        Kind("lora_weight", "LoRA weight", lambda text: _read_numbers(text, Number(-100, 100)), _with_lora_weight,
             keys.plain, example="0-1 (+0.25)"),
        Kind("style", "Style", _styles, lambda r, v: dataclasses.replace(r, styles=(*r.styles, *v)),
             lambda v: ", ".join(v) or NONE, lambda: [NONE, *styles.listed()], "None, Ink"),
        Kind("size", "Size", _sizes, lambda r, v: dataclasses.replace(r, width=v[0], height=v[1]),
             lambda v: f"{v[0]}x{v[1]}", example="512x512, 768x512"),
        Kind("prompt_sr", "Prompt search and replace", _replacements, _replaced, lambda v: v[1],
             example="red, blue, green: the first is replaced by each", late=2),
        Kind("prompt_order", "Prompt order", _orders, _reordered, lambda v: ", ".join(v[1]),
             example="sunset, clouds: all orders of these pieces", late=2),
    ]  # fmt: skip
    return {kind.name: kind for kind in [*own, *special]}


def _is_axis(name: str) -> bool:
    each = SETTINGS[name]
    return bool(each.group) and each.group not in (MASK, WHITE, SIDES) and name not in NO_AXES


def _own(name: str) -> Kind:
    """The axis of a setting."""
    each = SETTINGS[name]
    options: Callable[[], Sequence[str]] | None = None
    unset = [UNSET] if DEFAULTS[name] is None else []
    example = {"prompt": '"a red house", "a blue boat"', "seed": "1-4", "steps": "5-30 (+5)", "cfg": "3-9 [4]"}.get(
        name, ""
    )
    if name == "vae":
        options = lambda: [NONE, *catalogue.vaes()]  # noqa: E731
    elif isinstance(each.check, Choice):
        options = lambda: [*unset, *(_label(name, option) for option in each.check.options)]  # type: ignore[union-attr]  # noqa: E731
    elif isinstance(each.check, Flag):
        options = lambda: [*unset, "true", "false"]  # noqa: E731
    elif isinstance(each.check, (Whole, Number)):
        low, high = each.shown or (each.check.low, each.check.high)
        example = example or f"{keys.plain(low)}-{keys.plain(high)} [3]" if abs(high) < 1e6 else "1, 2, 3"
    title = each.title or name.replace("_", " ").capitalize()
    return Kind(
        name, title, lambda text: _read_setting(name, text), lambda r, v: dataclasses.replace(r, **{name: v}),
        lambda v: _label(name, v), options, example, setting=name,
    )  # fmt: skip


def _label(name: str, value: Any) -> str:
    if value is None:
        return NONE if name == "vae" else UNSET
    if isinstance(value, bool):
        return str(value).lower()
    return keys.plain(value) if isinstance(value, (int, float)) else str(value)


def _read_setting(name: str, text: str) -> list[Any]:
    each = SETTINGS[name]
    if name in ("seed", "variation_seed"):
        return [secrets.randbelow(2**32) if value == -1 else value for value in _read_numbers(text, each.check)]
    if name in ("hires_sampler", "hires_upscaler"):
        from ..hires_upscalers import upscaler_named

        return [key_of(entry) if name == "hires_sampler" else upscaler_named(entry) for entry in values.entries(text)]
    if isinstance(each.check, (Whole, Number)):
        return [each.from_form(value) for value in _read_numbers(text, each.check)]
    if name == "vae":
        return [None if entry.casefold() == NONE.casefold() else _known_vae(entry) for entry in values.entries(text)]
    unset = {UNSET, NONE.casefold(), str(each.unset).casefold()} if DEFAULTS[name] is None else set()
    return [None if entry.casefold() in unset else each.check.read(entry) for entry in values.entries(text)]


def _known_vae(name: str) -> str:
    source = catalogue.vae_source(name)
    if name not in catalogue.vaes() and not catalogue.expanded(source).exists() and source.count("/") != 1:
        raise InputError(f"there is no VAE {name!r} ({', '.join(catalogue.vaes()) or 'none in models/VAE'})")
    return name


def _read_numbers(text: str, check: Any) -> list[Any]:
    return [check.read(entry) for entry in values.numbers(text, isinstance(check, Whole))]


# --- Those that are not settings


def _model_names() -> list[str]:
    return [model.name for model in catalogue.all() if model.present and not model.problem]


def _models(text: str) -> list[str]:
    return [model.name for model in map(catalogue.find, values.entries(text))]


def _samplers(text: str) -> list[str]:
    return [key_of(sampler_from_a1111(entry)) for entry in values.entries(text)]


def _sampler_label(key: Any) -> str:
    return " ".join(filter(None, a1111_name(key)))


def _schedules(text: str) -> list[str]:
    return [UNSET if entry.casefold() == UNSET else schedule_by_name(entry) for entry in values.entries(text)]


def _with_schedule(request: Request, schedule: str) -> Request:
    base = sampler_by_name(request.sampler).key
    return dataclasses.replace(request, sampler=base if schedule == UNSET else key_of(sampler_by_name(base, schedule)))


def _loras(text: str) -> list[tuple[tuple[str, float], ...]]:
    found: list[tuple[tuple[str, float], ...]] = []
    for entry in values.entries(text):
        if entry.casefold() == NONE.casefold():
            found.append(())
            continue
        name, colon, strength = entry.rpartition(":")
        try:
            value = Number(-100, 100).read(strength) if colon else 1.0
        except InputError:  # the colon is the name's
            name, colon, value = "", "", 1.0
        name = name if colon else entry
        files.find(files.LORAS, name)
        found.append(((name, value),))
    return found


def _loras_label(loras: Any) -> str:
    return ", ".join(f"{name}:{keys.plain(strength)}" if strength != 1 else name for name, strength in loras) or NONE


def _with_lora_weight(request: Request, weight: float) -> Request:
    if not request.loras:
        raise InputError("a LoRA weight needs a LoRA: give one with --lora (on the page, choose one), or as an axis")
    return dataclasses.replace(request, loras=tuple((name, weight) for name, _ in request.loras))


def _styles(text: str) -> list[tuple[str, ...]]:
    known = styles.listed()
    names = values.entries(text)
    return [
        () if name.casefold() == NONE.casefold() else tuple(each.name for each in styles.find([name], known))
        for name in names
    ]


def _sizes(text: str) -> list[tuple[int, int]]:
    found = []
    for entry in values.entries(text):
        match = re.fullmatch(r"(\d{1,5})\s*[x\u00d7*]\s*(\d{1,5})", entry, re.IGNORECASE)
        if match is None:
            raise InputError(f"{entry!r} should be a size such as 512x768")
        sides: list[Any] = [SETTINGS["width"].check.read(side) for side in match.groups()]
        found.append((sides[0], sides[1]))
    return found


def _replacements(text: str) -> list[tuple[str, str]]:
    found = values.entries(text, keep_empty=True)
    if not found[:1] or not found[0]:
        raise InputError("the first entry is what is searched in the prompt, and may not be empty")
    return [(found[0], each) for each in found]


def _replaced(request: Request, pair: tuple[str, str]) -> Request:
    search, replacement = pair
    if search not in request.prompt and search not in request.negative:
        raise InputError(f"{search!r} is neither in the prompt nor in the negative prompt")
    return dataclasses.replace(
        request,
        prompt=request.prompt.replace(search, replacement),
        negative=request.negative.replace(search, replacement),
    )


def _orders(text: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    pieces = tuple(values.entries(text))
    if not 2 <= len(pieces) <= MAX_ORDERED or len(set(pieces)) < len(pieces):
        raise InputError(f"an order takes 2 to {MAX_ORDERED} different pieces of the prompt")
    return [(pieces, order) for order in itertools.permutations(pieces)]


def _reordered(request: Request, pair: tuple[tuple[str, ...], tuple[str, ...]]) -> Request:
    pieces, order = pair
    missing = [piece for piece in pieces if piece not in request.prompt]
    if missing:
        raise InputError(f"{missing[0]!r} is not in the prompt")
    pattern = re.compile("|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True)))
    found = iter(order)
    seen: set[str] = set()

    def put(match: re.Match[str]) -> str:  # the first of each piece; another one stays
        if match[0] in seen:
            return match[0]
        seen.add(match[0])
        return next(found)

    return dataclasses.replace(request, prompt=pattern.sub(put, request.prompt))


# --- Reading an axis


def find(name: str) -> Kind:
    """The kind of a name: its own, its title or A1111's, in any spelling. Raises `InputError`, with similar names."""
    names = {_plain(form): kind for kind in kinds().values() for form in (kind.title, kind.a1111, kind.name)}
    if _plain(name) in names:
        return names[_plain(name)]
    near = dict.fromkeys(names[each].name for each in difflib.get_close_matches(_plain(name), names, 4, 0.5))
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(kinds())}."
    raise InputError(f"{name[:60]!r} is nothing that can be varied. {hint}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9/]", "", name.casefold()).replace("s/r", "sr")


def read(text: str) -> Axis:
    """An axis as typed, "steps=5-30 (+5)"; "sampler=*" takes all there are. Raises `InputError`."""
    name, equals, typed = text.partition("=")
    kind = find(name.strip())
    if not equals or not typed.strip():
        example = f', such as "{kind.name}={kind.example}"' if kind.example else ""
        raise InputError(f"{kind.name} lacks its values{example}.")
    return of_kind(kind, typed.strip())


def of_kind(kind: Kind, typed: str) -> Axis:
    """An axis of a kind, with values as typed. Raises `InputError`."""
    if typed.strip() == "*":
        if kind.options is None:
            raise InputError(f"{kind.name}=*: there is no list of all values. An example is {kind.example!r}.")
        typed = ", ".join(f'"{option}"' if "," in option else option for option in kind.options())
    try:
        found = tuple(kind.read(typed))
    except (InputError, CheckpointNotFoundError) as error:
        example = f" An example is {kind.example!r}." if kind.example else ""
        raise InputError(f"{kind.title}: {str(error).rstrip('.')}.{example}") from None
    if not found:
        raise InputError(f"{kind.title} has no values in {typed[:80]!r}.")
    if len(found) > values.MAX_VALUES:
        raise InputError(f"{kind.title} has {len(found)} values, more than {values.MAX_VALUES}.")
    return Axis(kind, typed, found)
