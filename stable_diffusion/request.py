"""What a person asks for, in one place: from a command line, a form, JSON or a picture; to the engine and the record.

A setting of a generation is one field of `Request`. Its `Setting` says how it is checked, what it is called on the
command line, by the engine and in pictures, and in which words it is explained. Needs neither MLX nor Streamlit, and
imports neither numpy nor Pillow before a picture is there, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checks import MAX_SEED, Choice, FilePath, Flag, Number, Text, Whole, number, text
from .config import UNET_PREDICTIONS
from .errors import InputError, SamplerError
from .pictures import FITS, MASKED_CONTENTS
from .pictures.formats import WRITTEN
from .record import keys
from .record.parameters import Parameters
from .record.used import Used
from .setting import HOW, MACHINE, MASK, PICTURE, SEVERAL, SIDES, WHAT, WHITE, Setting, setting
from .text.prompt import A1111, LANGUAGES

if TYPE_CHECKING:
    from PIL import Image

    from .pictures.inpainting import Inpainting
    from .record.inputs import InputFile
    from .sampler import Sampler

GRID = 8  # pixels: what widths and heights are multiples of


def _dimension(name: str) -> Any:
    return setting(
        None, Whole(GRID, 8192, GRID), f"{name} in pixels, a multiple of {GRID}", title=name.title(), group=WHAT,
        metavar="N", usual="the model's", call=name, shown=(64, 2048),
    )  # fmt: skip


def _side(name: str) -> Any:
    return setting(
        0, Whole(0, 8192), f"pixels to add at the {name}", group=SIDES, metavar="N", key=f"Outpaint {name}", page=False
    )


def _masked(request: Request) -> bool:
    return request.mask is not None


@dataclass(frozen=True)
class Request:
    """Everything that one generation is asked for.

    Sizes are in pixels; None is the checkpoint's own. A seed of None is drawn (`with_seeds`). `loras` are names or
    files with their strengths. Input picture (RGB) and mask (white where repainted, of any size) are decoded; the files
    that they were read from go into the record. `previews` and `file_format` are the page's.
    """

    prompt: str = setting("", Text())
    negative: str = setting("", Text(), "what to keep out of the picture", group=WHAT, metavar="TEXT")
    prompt_language: str = setting(
        A1111, Choice(LANGUAGES),
        "a1111: (red:1.3), [red], [red:blue:0.5], [red|blue], AND and BREAK mean what they mean there, at any length; "
        "plain: the prompts are taken literally, up to 75 tokens",
        title="Prompt language", group=WHAT, metavar="NAME", call="prompt_language", key="Prompt language",
    )  # fmt: skip
    seed: int | None = setting(
        None, Whole(-1, MAX_SEED), "the same seed and settings give the same picture; picture i gets seed + i",
        title="Seed", group=WHAT, metavar="N", unset=-1, usual="-1, a new one",
    )  # fmt: skip
    width: int | None = _dimension("width")
    height: int | None = _dimension("height")
    n_images: int = setting(
        1, Whole(1, 10_000), "how many pictures", group=SEVERAL, metavar="N", shown=(1, 16),
    )  # fmt: skip
    variation_strength: float = setting(
        0.0, Number(0, 1),
        "small variations of one picture: how far to turn the seed's noise towards another seed's, from 0 to 1; all "
        "pictures then have the same seed",
        title="Variation strength", group=SEVERAL, metavar="S", key=keys.VARIATION_STRENGTH,
    )  # fmt: skip
    variation_seed: int | None = setting(
        None, Whole(-1, MAX_SEED), "that other seed; picture i gets it + i", group=SEVERAL, metavar="N", unset=-1,
        title="Variation seed", usual="-1, a new one", key=keys.VARIATION_SEED,
        counts=lambda request: request.variation_strength > 0,
    )  # fmt: skip
    batch_size: int = setting(
        1, Whole(1, 256),
        "pictures to paint side by side: faster on a GPU, more memory; but for rounding the pictures are the same",
        group=SEVERAL, metavar="N", page=False,
    )  # fmt: skip

    model: str = "postcards-tiny"
    loras: tuple[tuple[str, float], ...] = ()
    vae: str | None = setting(
        None, FilePath(),
        "a VAE in place of the model's own: a name in models/VAE, a file, a folder in diffusers' form, or a hub id",
        title="VAE", group=HOW, metavar="FILE", load="vae", usual="the model's", unset="",
    )  # fmt: skip
    prediction_type: str | None = setting(
        None, Choice(UNET_PREDICTIONS),
        "what the model was trained to predict, where its file does not say or says it wrongly",
        title="Prediction type", group=HOW, load="prediction_type", key="Prediction type", usual="as the file says",
        unset="",
    )  # fmt: skip
    clip_skip: int | None = setting(
        None, Whole(0, 12),
        "read the prompt from the text encoder's N-th layer from the end: 1 is the last, 2 the penultimate; 0 is the "
        "one that the model was trained with",
        title="Clip skip", group=HOW, metavar="N", unset=0, call="clip_skip", key="Clip skip",
        usual="the model's, 1 or for SDXL 2",
    )  # fmt: skip
    steps: int = setting(
        20, Whole(1, 1000), "denoising steps", title="Steps", group=HOW, metavar="N", call="num_steps",
        usual="the model's, usually 20", shown=(1, 150),
    )  # fmt: skip
    cfg: float = setting(
        7.5, Number(0, math.inf), "how closely to follow the prompt; 1 and below: unguided, but twice as fast",
        title="CFG", group=HOW, metavar="W", call="cfg_weight", usual="the model's", shown=(0.0, 20.0),
    )  # fmt: skip
    guidance_rescale: float = setting(
        0.0, Number(0, 1),
        "how much to take back of the contrast that guidance adds, from 0 to 1; about 0.7 suits models that predict v",
        title="Guidance rescale", group=HOW, metavar="S", call="guidance_rescale", key="CFG Rescale",
    )  # fmt: skip
    sampler: str | Sampler = "euler"

    picture: Image.Image | None = dataclasses.field(default=None, compare=False, repr=False)
    picture_file: InputFile | None = dataclasses.field(default=None, compare=False, repr=False)
    strength: float = setting(
        0.7, Number(0, 1), "how much may change: near 0 almost nothing, 1 everything", title="Denoising strength",
        group=PICTURE, metavar="S", usual="the model's, usually 0.7",
        counts=lambda request: request.picture is not None,
    )  # fmt: skip
    fit: str = setting(
        "crop", Choice(FITS),
        "how PICTURE comes to the size that is painted: cut to its shape, padded with white, or distorted",
        group=PICTURE, key="Resize mode", counts=lambda request: request.mask is None,
    )  # fmt: skip
    mask: Image.Image | None = dataclasses.field(default=None, compare=False, repr=False)
    mask_file: InputFile | None = dataclasses.field(default=None, compare=False, repr=False)
    masked_content: str = setting(
        "original", Choice(MASKED_CONTENTS),
        "what the masked part begins from at a strength below 1: what is there, noise, or the colours around it",
        group=MASK, call="masked_content", key="Masked content", counts=_masked, always=True,
        words=(("original", "original"), ("noise", "latent noise"), ("fill", "fill")),
    )  # fmt: skip
    mask_blur: float = setting(
        4.0, Number(0, 256), "how softly new and old meet, in pixels of the picture", group=MASK, metavar="N",
        title="Mask blur", key="Mask blur", counts=_masked, always=True, shown=(0, 64),
    )  # fmt: skip
    only_masked: bool = setting(
        False, Flag(),
        "see and paint the surroundings of the white alone, at the model's full size: more detail in small parts",
        group=WHITE, key="Inpaint area", counts=_masked, always=True,
        words=((False, "Whole picture"), (True, "Only masked")),
    )  # fmt: skip
    padding: int = setting(
        32, Whole(0, 4096), "with --only-masked, how many pixels around the white to see", group=WHITE, metavar="N",
        title="Padding", key="Masked area padding", always=True, shown=(0, 256),
        counts=lambda request: _masked(request) and request.only_masked,
    )  # fmt: skip
    invert: bool = setting(
        False, Flag(), "keep the white, and repaint the rest", group=WHITE, key="Mask mode", counts=_masked,
        words=((False, "Inpaint masked"), (True, "Inpaint not masked")),
    )  # fmt: skip
    left: int = _side("left")
    right: int = _side("right")
    top: int = _side("top")
    bottom: int = _side("bottom")

    float16: bool | None = setting(
        None, Flag(), "half precision: half the memory", group=MACHINE, load="float16", page=False,
        usual="on a GPU yes, on a CPU no",
    )  # fmt: skip
    low_memory: bool = setting(
        False, Flag(),
        "hold one network at a time in memory, where it can be read again from the model's folder, and paint one "
        "row of a batch after the other: slower, the same pictures but for rounding",
        title="Low memory", group=MACHINE, load="low_memory",
    )  # fmt: skip
    bits: int | None = setting(
        None, Choice((8, 4)),
        "keep the large layers as integers of 8 or 4 bits: less memory, slightly (8) or clearly (4) other pictures",
        title="Bits", group=MACHINE, metavar="N", load="bits", key="Bits", unset=0,
        usual="as the checkpoint has them",
    )  # fmt: skip
    file_format: str = setting(
        "png", Choice(tuple(each.key for each in WRITTEN)),
        "each keeps the parameters inside the file. PNG loses nothing; JPEG and WebP are smaller", title="File format",
    )  # fmt: skip
    previews: tuple[str, ...] = ("auto", "latents")

    def __post_init__(self) -> None:
        for name, each in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or DEFAULTS[name] is not None:
                each.check(name, value)

    # --- From ...

    @classmethod
    def from_values(cls, values: Mapping[str, Any], **more: Any) -> Request:
        """From a form or a command line: values by field, with what stands for None there; others are passed over."""
        found = {name: values[name] for name in DEFAULTS if name in values}
        return cls(
            **{name: SETTINGS[name].from_form(value) if name in SETTINGS else value for name, value in found.items()}
            | more
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """From JSON's values by field. Raises `InputError` for a name that is not known, with near ones."""
        for name in values:
            if name not in JSON_FIELDS:
                near = difflib.get_close_matches(name, JSON_FIELDS, 3)
                hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(JSON_FIELDS)}."
                raise InputError(f"There is no setting {name!r}. {hint}")
        loras = values.get("loras", [])
        if not isinstance(loras, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in loras):
            raise InputError(f"loras = {loras!r} should be a list of [name, strength].")
        checked = tuple((text("name", name), number("strength", strength, -100, 100)) for name, strength in loras)
        previews = tuple(values.get("previews", DEFAULTS["previews"]))
        return cls.from_values(values, loras=checked, previews=previews)

    @classmethod
    def from_record(cls, parameters: Parameters) -> tuple[Request, list[str]]:
        """From what a picture says of itself; and, in words, what was not understood, or is not known here.

        Model, LoRAs, VAE and input files are named there only: they are for the caller to find.
        """
        found, notes = read_record(parameters)
        return cls(**found), notes

    # --- ... to the engine ...

    def with_seeds(self) -> Request:
        """The same with seeds drawn where none were asked for. Raises `InputError` near the largest seed."""
        if self.variation_seed is not None and not self.variation_strength:
            raise InputError("variation_seed needs a variation_strength (--variation-strength), such as 0.1.")
        drawn: dict[str, Any] = {"variation_seed": None}
        for name in ("seed", "variation_seed") if self.variation_strength else ("seed",):
            asked = getattr(self, name)
            drawn[name] = secrets.randbelow(2**32 - self.n_images) if asked is None else asked
            if drawn[name] + self.n_images - 1 > MAX_SEED:
                raise InputError(
                    f"{name} = {asked} is too near the largest seed, {MAX_SEED}, for {self.n_images} pictures."
                )
        return dataclasses.replace(self, **drawn)

    def seeds_of(self, place: int) -> dict[str, Any]:
        """The engine's arguments for the seeds of picture `place`, from 0; needs `with_seeds`.

        As A1111 counts: picture i has seed + i; with a variation all have one seed, and the variation's seed counts.
        """
        assert self.seed is not None, "with_seeds draws one"
        if self.variation_seed is None:
            return {"seed": self.seed + place}
        return {
            "seed": self.seed,
            "variation_seed": self.variation_seed + place,
            "variation_strength": self.variation_strength,
        }

    def to_load(self) -> dict[str, Any]:
        """The arguments of `StableDiffusion`, beside the model, that are not its own defaults."""
        return {
            each.load: getattr(self, name)
            for name, each in SETTINGS.items()
            if each.load and getattr(self, name) != DEFAULTS[name]
        }

    def to_call(self, default_size: tuple[int, int]) -> Call:
        """The arguments of `generate_latents`, but for seeds and numbers; the model's own size is `default_size`."""
        arguments: dict[str, Any] = {
            each.call: getattr(self, name)
            for name, each in SETTINGS.items()
            if each.call and each.counts(self) and getattr(self, name) is not None
        }
        arguments |= {"text": self.prompt, "negative_text": self.negative or None, "sampler": self.sampler}
        if self.picture is None:
            return Call(arguments, None)
        from .pictures.inpainting import Inpainting
        from .pictures.reading import fit

        size = self.painted_size(default_size)
        arguments |= {"width": size[0], "height": size[1], "denoising_strength": self.strength}
        if self.mask is None:
            return Call(arguments | {"input_image": fit(self.picture, *size, self.fit)}, None)
        inpainting = Inpainting(
            self.picture, self.mask, *size, self.mask_blur, self.only_masked, self.padding, self.invert
        )
        return Call(arguments | {"input_image": inpainting.picture, "mask_image": inpainting.mask}, inpainting)

    def painted_size(self, default_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) to paint at: as asked for, else the model's; where a mask is in the picture's own shape."""
        if self.width and self.height:
            return self.width, self.height
        width, height = default_size
        if self.mask is None:
            return self.width or width, self.height or height
        if self.picture is not None and not self.only_masked:
            from .pictures.inpainting import suitable_size

            width, height = suitable_size(self.picture.size, default_size)
        if self.width:
            return self.width, max(round(self.width * height / width / GRID), 1) * GRID
        if self.height:
            return max(round(self.height * width / height / GRID), 1) * GRID, self.height
        return width, height

    # --- ... and to the record

    def to_record(self, used: Used, size: tuple[int, int], **seeds: Any) -> Parameters:
        """What a picture of this size says of itself; `seeds` are the picture's `seeds_of`."""
        from .record.inputs import record
        from .sampler import a1111_name  # here, since it takes MLX

        sampler, schedule = a1111_name(self.sampler)
        own = dataclasses.replace(self, **seeds)
        extra = record(self.picture_file, self.mask_file)
        for name, each in SETTINGS.items():
            value = getattr(own, name)
            if each.key and each.counts(own) and value is not None and (each.always or value != DEFAULTS[name]):
                extra[each.key] = each.write(value)
        return Parameters(
            prompt=self.prompt,
            negative=self.negative,
            steps=self.steps,
            sampler=sampler,
            schedule=schedule,
            cfg=self.cfg,
            seed=own.seed,
            width=size[0],
            height=size[1],
            model=used.model,
            model_hash=used.model_hash,
            strength=self.strength if self.picture is not None else None,
            extra=extra | keys.of_used(used),
        )


SETTINGS: dict[str, Setting] = {
    field.name: field.metadata["setting"] for field in dataclasses.fields(Request) if field.metadata
}
DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Request)}
JSON_FIELDS = tuple(name for name in DEFAULTS if not name.startswith(("picture", "mask")) or name in SETTINGS)
RECORD_KEYS = frozenset(each.key for each in SETTINGS.values() if each.key)
_PLAIN_FIELDS = ("prompt", "negative", "steps", "cfg", "seed", "width", "height", "strength")  # of Parameters, too


@dataclass(frozen=True)
class Call:
    """A request made ready for a model: the arguments of `generate_latents`, and the way back into the picture."""

    arguments: dict[str, Any]
    inpainting: Inpainting | None

    def finish(self, painted: Image.Image) -> Image.Image:
        """What is saved of what was painted."""
        return painted if self.inpainting is None else self.inpainting.finish(painted)


def read_record(parameters: Parameters) -> tuple[dict[str, Any], list[str]]:
    """What a picture says, by field of `Request`, and in words what of it was not understood.

    A1111 leaves out what is its default; so where one setting of a mask is said, the others are those defaults.
    """
    from .sampler import key_of, sampler_from_a1111  # here, since it takes MLX

    found: dict[str, Any] = {}
    notes: list[str] = []
    texts = {each.key: parameters.extra[each.key] for each in SETTINGS.values() if each.key in parameters.extra}
    if any(SETTINGS[name].key in texts for name in ("mask_blur", "masked_content", "only_masked")):
        found = {name: DEFAULTS[name] for name in ("mask_blur", "masked_content", "only_masked", "padding", "invert")}
    for name in _PLAIN_FIELDS:
        value = getattr(parameters, name)
        try:
            found |= {} if value is None else {name: SETTINGS[name].check(name, value)}
        except InputError:
            notes.append(f"{SETTINGS[name].title or name} {value} is not offered here, and was left as it is.")
    if parameters.sampler:
        try:
            found["sampler"] = key_of(sampler_from_a1111(parameters.sampler, parameters.schedule))
        except SamplerError:
            wanted = " ".join(filter(None, (parameters.sampler, parameters.schedule)))
            notes.append(f"The sampler {wanted!r} is not offered here; the chosen one was left.")
    for name, each in SETTINGS.items():
        if each.key in texts:
            try:
                found[name] = each.read(texts[each.key])
            except InputError:
                notes.append(f"{each.key} {texts[each.key][:100]!r} was not understood, and was left as it is.")
    return found, notes


def option_of(name: str) -> str:
    """The option of the command line that asks for a field."""
    return f"--{name.replace('_', '-')}"


def to_options(values: Mapping[str, Any], groups: Collection[str]) -> list[str]:
    """The options of the command line that ask for these values by field, of the groups that a command has."""
    said = []
    for name, value in values.items():
        each = SETTINGS.get(name)
        if each is None or each.group not in groups or value is None:
            continue
        if not isinstance(value, bool):
            said.append(f"{option_of(name)}={value if isinstance(value, str) else keys.plain(value)}")
        elif value:
            said.append(option_of(name))
    return said
