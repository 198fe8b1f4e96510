"""Everything a generation can be asked for: read from a command line, form, JSON or picture; sent to engine and record.

Each setting is one field of `Request`. Its `Setting` defines how it is checked, its names on the command line, in the
engine and in records, and its help text. Needs neither MLX nor Streamlit, and imports numpy and Pillow only once there
is a picture, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checks import MAX_SEED, MAX_SIDE, MAX_TEXT, Choice, FilePath, Flag, Number, Text, Whole, interval, number, text
from .config import UNET_PREDICTIONS
from .errors import InputError, SamplerError
from .hires import MAX_SCALE, Hires
from .pictures import FITS, MASKED_CONTENTS, TILINGS
from .pictures.formats import WRITTEN
from .record import keys, passes
from .record.parameters import Parameters
from .record.used import Used
from .setting import (
    BLEND,
    HIRES,
    HOW,
    LARGER,
    MACHINE,
    MASK,
    PICTURE,
    PRIVACY,
    SEVERAL,
    SIDES,
    TILES,
    WHAT,
    WHITE,
    Setting,
    setting,
)  # fmt: skip
from .steering import STEERED_BY, USUAL_SCALES, Steering
from .text import dynamic
from .text.prompt import A1111, LANGUAGES, Blend

if TYPE_CHECKING:
    from PIL import Image

    from .pictures.inpainting import Inpainting
    from .record.inputs import InputFile
    from .sampler import Sampler

Report = Callable[[str, float | None], None]  # a message, and the fraction that is done

PROMPTS = ("prompt", "negative", "hires_prompt", "hires_negative")  # all that a picture is painted from
GRID = 8  # pixels; widths and heights are multiples of this


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


def _unmasked(request: Request) -> bool:
    return request.picture is not None and request.mask is None


def _twice(request: Request) -> bool:
    return request.hires is not None


def _blended(request: Request) -> bool:
    return bool(request.blend_prompt) and request.blend_share > 0


def _target(name: str) -> Any:
    return setting(
        None, Whole(GRID, MAX_SIDE, GRID), f"{name} of the target in pixels, in place of a factor; with both, what "
        "exceeds their shape is cropped", title=f"Target {name}", group=HIRES, metavar="N", unset=0, usual="by shape",
        shown=(0, 4096),
    )  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The settings of one generation.

    `styles` are names. `texts` are the prompts of all pictures, in the order of `PROMPTS`, where they differ
    (prompts.py draws them); `template` is what a prompt was drawn from. Sizes are in pixels; None means the
    checkpoint's own. A seed of None is drawn at random (`with_seeds`). `loras` are names or files with their strengths.
    Input picture (RGB) and mask (white where repainted, any size) are decoded; the files they were read from go into
    the record. `previews` and `file_format` are the page's; `attention` changes
    no picture and is not recorded.
    """

    prompt: str = setting("", Text(MAX_TEXT))
    negative: str = setting("", Text(MAX_TEXT), "what to keep out of the picture", group=WHAT, metavar="TEXT")
    prompt_language: str = setting(
        A1111, Choice(LANGUAGES),
        "a1111: (red:1.3), [red], [red:blue:0.5], [red|blue], AND and BREAK mean what they mean there, at any length; "
        "plain: the prompts are taken literally, up to 75 tokens",
        title="Prompt language", group=WHAT, metavar="NAME", call="prompt_language", key="Prompt language",
    )  # fmt: skip
    blend_prompt: str = setting(
        "", Text(MAX_TEXT), "a second text to mix into the prompt, by their embeddings: a frame between the two",
        group=BLEND, title="Blended with", metavar="TEXT", key=keys.BLEND_PROMPT, counts=_blended,
    )  # fmt: skip
    blend_share: float = setting(
        0.0, Number(0, 1), "the share of the second text, from 0 to 1", title="Share of the second text", group=BLEND,
        metavar="S", key=keys.BLEND_SHARE, counts=_blended,
    )  # fmt: skip
    dynamic_prompts: bool | None = setting(
        None, Flag(),
        "draw {red|blue}, {2$$a|b|c} and __wildcard__ in the prompts, by the seed, anew for every picture; off takes "
        "braces and underscores as they are typed",
        title="Dynamic prompts", group=WHAT, usual="on where a prompt has a choice, a wildcard or a variable", unset="",
    )  # fmt: skip
    default_negative: bool = setting(
        True, Flag(), "add the model's default negative prompt, and that of $STABLE_DIFFUSION_NEGATIVE",
        title="Default negative prompt", group=WHAT,
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
    combinations: bool = setting(
        False, Flag(), "paint every combination of what dynamic prompts may draw, N of each",
        title="All combinations", group=SEVERAL,
    )  # fmt: skip
    variation_strength: float = setting(
        0.0, Number(0, 1),
        "small variations of one picture: how far to turn the seed's noise towards another seed's, from 0 to 1; all "
        "pictures then have the same seed",
        title="Variation strength", group=SEVERAL, metavar="S", key=keys.VARIATION_STRENGTH,
    )  # fmt: skip
    variation_seed: int | None = setting(
        None, Whole(-1, MAX_SEED), "the other seed; picture i gets it + i", group=SEVERAL, metavar="N", unset=-1,
        title="Variation seed", usual="-1, a new one", key=keys.VARIATION_SEED,
        counts=lambda request: request.variation_strength > 0,
    )  # fmt: skip
    vary_all_draws: bool = setting(
        False, Flag(),
        "turn later noise as well, which samplers such as Euler a add, so that at a strength of 1 the picture is the "
        "other seed's own; A1111 turns the first noise alone",
        title="Vary later noise too", group=SEVERAL, key=keys.VARIATION_OF_ALL,
        counts=lambda request: request.variation_strength > 0,
    )  # fmt: skip
    batch_size: int = setting(
        1, Whole(1, 256),
        "pictures to paint in parallel: faster on a GPU, more memory; the same pictures up to rounding",
        group=SEVERAL, metavar="N", page=False,
    )  # fmt: skip

    hires_scale: float | None = setting(
        None, Number(1, MAX_SCALE),
        "enlarge the painted picture by this factor, and paint over it in a second pass: fine detail in a composition "
        "that the model could not paint at that size",
        title="Upscale by", group=HIRES, metavar="F", unset=0.0, usual="off", key="Hires upscale", shown=(1.0, 4.0),
        counts=lambda request: _twice(request) and not (request.hires_width or request.hires_height),
    )  # fmt: skip
    hires_width: int | None = _target("width")
    hires_height: int | None = _target("height")
    hires_upscaler: str = setting(
        "Latent", Text(),
        "what enlarges: a latent mode, or an upscaler that `upscalers` lists", title="Upscaler", group=HIRES,
        metavar="NAME", key="Hires upscaler", counts=_twice, always=True,
    )  # fmt: skip
    hires_steps: int = setting(
        0, Whole(0, 1000), "steps of the second pass; 0: as many as in the first", title="Hires steps", group=HIRES,
        metavar="N", key="Hires steps", counts=_twice, shown=(0, 150),
    )  # fmt: skip
    hires_strength: float = setting(
        0.7, Number(0, 1),
        "how much the second pass may change: latent modes want 0.5 or more, upscalers of pictures 0.2 to 0.4",
        title="Hires denoising strength", group=HIRES, metavar="S", counts=_twice, shown=(0.05, 1.0),
    )  # fmt: skip
    hires_sampler: str | None = setting(
        None, Text(), "the second pass's sampler", title="Hires sampler", group=HIRES, metavar="NAME", unset="",
        usual="the first's", counts=_twice,
    )  # fmt: skip
    hires_cfg: float | None = setting(
        None, Number(0, math.inf), "the second pass's CFG; 0: the first's", title="Hires CFG", group=HIRES, metavar="W",
        unset=0.0, usual="the first's", key="Hires CFG Scale", counts=_twice, shown=(0.0, 20.0),
    )  # fmt: skip
    hires_prompt: str = setting(
        "", Text(MAX_TEXT), "the second pass's prompt, with LoRA tags of its own", title="Hires prompt", group=HIRES,
        metavar="TEXT", key="Hires prompt", counts=_twice,
    )  # fmt: skip
    hires_negative: str = setting(
        "", Text(MAX_TEXT), "the second pass's negative prompt", title="Hires negative prompt", group=HIRES,
        metavar="TEXT", key="Hires negative prompt", counts=_twice,
    )  # fmt: skip

    styles: tuple[str, ...] = ()
    texts: tuple[tuple[str, ...], ...] = dataclasses.field(default=(), repr=False)
    template: str = setting("", Text(), key=keys.TEMPLATE, page=False)
    negative_template: str = setting("", Text(), key=keys.NEGATIVE_TEMPLATE, page=False)

    model: str = "postcards-tiny"
    loras: tuple[tuple[str, float], ...] = ()
    vae: str | None = setting(
        None, FilePath(),
        "a VAE in place of the model's own: a name in models/VAE, a file, a folder in diffusers' form, or a hub id",
        title="VAE", group=HOW, metavar="FILE", load="vae", usual="the model's", unset="",
    )  # fmt: skip
    refiner: str | None = setting(
        None, FilePath(),
        "a second model that paints the last part, such as SDXL's refiner, or any other with the same latents: as "
        "--model takes them",
        title="Refiner", group=HOW, metavar="NAME", usual="none", unset="",
    )  # fmt: skip
    refiner_switch: float = setting(
        0.8, Number(0, 1), "the share of the noise schedule after which the refiner takes over",
        title="Refiner takes over at", group=HOW, metavar="S", call="refiner_switch", key="Refiner switch at",
        counts=lambda request: request.refined, always=True,
    )  # fmt: skip
    prediction_type: str | None = setting(
        None, Choice(UNET_PREDICTIONS),
        "what the model was trained to predict, if its file does not say or is wrong",
        title="Prediction type", group=HOW, load="prediction_type", key="Prediction type", usual="as the file says",
        unset="",
    )  # fmt: skip
    zero_terminal_snr: bool | None = setting(
        None, Flag(),
        "whether the model's noise schedule ends in pure noise, where its file does not say or says it wrongly; many "
        "models that predict v do",
        title="Zero terminal SNR", group=HOW, load="zero_terminal_snr", key="Zero terminal SNR",
        usual="as the file says", unset="",
    )  # fmt: skip
    clip_skip: int | None = setting(
        None, Whole(0, 12),
        "read the prompt from the text encoder's N-th layer from the end: 1 is the last, 2 the penultimate; 0 is the "
        "one the model was trained with",
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
        "how much of the contrast added by guidance to remove, from 0 to 1; about 0.7 suits v-prediction models",
        title="Guidance rescale", group=HOW, metavar="S", call="guidance_rescale", key="CFG Rescale",
    )  # fmt: skip
    guidance_start: float = setting(
        0.0, Number(0, 1),
        "the share of the steps, from 0 to 1, that run without guidance at the beginning: the negative prompt and CFG "
        "do not count there, and a step does half the work",
        title="Guidance from", group=HOW, metavar="S", call="guidance_start", key="Skip Early CFG",
    )  # fmt: skip
    guidance_end: float = setting(
        1.0, Number(0, 1), "the share of the steps after which there is no guidance any more",
        title="Guidance until", group=HOW, metavar="S", call="guidance_end", key="Guidance end",
    )  # fmt: skip
    guidance_min_sigma: float = setting(
        0.0, Number(0, math.inf),
        "the noise level (sigma, from about 15 in the first step down to 0) below which there is no guidance",
        title="Guidance down to sigma", group=HOW, metavar="SIGMA", call="guidance_min_sigma", key=keys.NGMS,
        shown=(0.0, 15.0),
    )  # fmt: skip
    deepcache_interval: int = setting(
        1, Whole(1, 1000),
        "DeepCache: compute the whole U-Net in every N-th step only, and reuse its deep features in the others: "
        "faster, but another picture; 1 is off, 2 or 3 is usual",
        title="DeepCache interval", group=HOW, metavar="N", call="deepcache_interval", key="DeepCache interval",
        shown=(1, 20),
    )  # fmt: skip
    deepcache_branch: int = setting(
        0, Whole(0, 1000),
        "DeepCache: the skip connection, counted from the input, down to which every step computes; a higher one is "
        "slower and closer to the picture without",
        title="DeepCache branch", group=HOW, metavar="N", call="deepcache_branch", key="DeepCache branch",
        shown=(0, 11), counts=lambda request: request.deepcache_interval > 1,
    )  # fmt: skip
    steer_by: str | None = setting(
        None, Choice(STEERED_BY),
        "steer postcards by the gradient of a small network that comes along, beside the prompt's own guidance or in "
        "place of it (--cfg 0): classifier, of noisy latents, or clip, of how well picture and text fit",
        title="Steer by", group=HOW, usual="off", key="Steer by", unset="", page=False,
    )  # fmt: skip
    steer_scale: float | None = setting(
        None, Number(0, math.inf), "how strongly to steer: s in eps - s sigma gradient", title="Steer scale", group=HOW,
        metavar="S", usual=" and ".join(f"{by} {scale:g}" for by, scale in USUAL_SCALES.items()), key="Steer scale",
        counts=lambda request: request.steer_by is not None, page=False,
    )  # fmt: skip
    steer_text: str = setting(
        "", Text(), "what to steer towards", title="Steer towards", group=HOW, metavar="TEXT", usual="the prompt",
        key="Steer towards", counts=lambda request: request.steer_by is not None, page=False,
    )  # fmt: skip
    sampler: str | Sampler = "euler"
    eta: float | None = setting(
        None, Number(0, 1),
        "how much noise to add again at each step, from 0 to 1, for the samplers that do: Euler a, DPM2 a, DPM++ 2S a, "
        "DPM++ 3M SDE, DDIM, TCD (where it is called gamma)",
        title="Eta", group=HOW, metavar="S", call="eta", key="Eta", usual="the sampler's own", unset=-1.0,
    )  # fmt: skip

    picture: Image.Image | None = dataclasses.field(default=None, compare=False, repr=False)
    picture_file: InputFile | None = dataclasses.field(default=None, compare=False, repr=False)
    strength: float = setting(
        0.7, Number(0, 1), "how much may change: 0 nothing, 1 everything", title="Denoising strength",
        group=PICTURE, metavar="S", usual="the model's, usually 0.7; with --by or --tile 0.1",
        counts=lambda request: request.picture is not None,
    )  # fmt: skip
    by: float | None = setting(
        None, Number(1, 8),
        "paint at the picture's own size, enlarged by this factor; best with --tile and a strength of 0.1 to 0.35",
        title="Enlarge by", group=LARGER, metavar="F", unset=0.0, usual="off", key="SD upscale by", shown=(0.0, 8.0),
        counts=_unmasked,
    )  # fmt: skip
    upscaler: str = setting(
        "Lanczos", Text(), "what enlarges the picture: a name that `upscale --list` shows", title="Upscaler",
        group=LARGER, metavar="NAME", key="SD upscale upscaler", always=True,
        counts=lambda request: _unmasked(request) and bool(request.by),
    )  # fmt: skip
    picture_enlarged: Image.Image | None = dataclasses.field(default=None, compare=False, repr=False)
    tile: int | None = setting(
        None, Whole(GRID, MAX_SIDE, GRID),
        "show the network square tiles of this side in pixels, blended at every step: memory for one tile at any size; "
        "the model's own side is best",
        title="Tile", group=TILES, metavar="N", unset=0, usual="off", call="tile", key="Tile size", shown=(0, 2048),
        counts=lambda request: request.mask is None,
    )  # fmt: skip
    tile_overlap: int = setting(
        64, Whole(GRID, MAX_SIDE, GRID), "how far tiles overlap at least, in pixels", title="Tile overlap",
        group=TILES, metavar="N", call="tile_overlap", key="SD upscale overlap", shown=(8, 512), always=True,
        counts=lambda request: request.tile is not None and request.mask is None,
    )  # fmt: skip
    tiling: str = setting(
        "off", Choice(tuple(TILINGS)),
        "seamless: copies of the picture meet without a seam beside each other (x), on top of each other (y), or both; "
        "for textures, wallpapers and panoramas",
        title="Seamless", group=HOW, call="tiling", key="Tiling",
        counts=lambda request: request.tiling != "off" and not (_masked(request) and request.only_masked),
        words=(("off", "False"), ("x", "x"), ("y", "y"), ("both", "True")),
    )  # fmt: skip
    fit: str = setting(
        "crop", Choice(FITS),
        "how PICTURE is fitted to the painted size: cropped, padded with white, or stretched",
        group=PICTURE, key="Resize mode", counts=lambda request: request.mask is None,
    )  # fmt: skip
    mask: Image.Image | None = dataclasses.field(default=None, compare=False, repr=False)
    mask_file: InputFile | None = dataclasses.field(default=None, compare=False, repr=False)
    masked_content: str = setting(
        "original", Choice(MASKED_CONTENTS),
        "what the masked part starts from at a strength below 1: the original, noise, or the surrounding colours",
        group=MASK, call="masked_content", key="Masked content", counts=_masked, always=True,
        words=(("original", "original"), ("noise", "latent noise"), ("fill", "fill")),
    )  # fmt: skip
    mask_blur: float = setting(
        4.0, Number(0, 256), "how softly old and new blend, in pixels of the picture", group=MASK, metavar="N",
        title="Mask blur", key="Mask blur", counts=_masked, always=True, shown=(0, 64),
    )  # fmt: skip
    only_masked: bool = setting(
        False, Flag(),
        "paint only the area around the white, at the model's full size: more detail in small parts",
        group=WHITE, key="Inpaint area", counts=_masked, always=True,
        words=((False, "Whole picture"), (True, "Only masked")),
    )  # fmt: skip
    padding: int = setting(
        32, Whole(0, 4096), "with --only-masked, pixels of context around the white", group=WHITE, metavar="N",
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
        "keep one network at a time in memory, if it can be reloaded from the model's folder, and paint a batch one "
        "row at a time: slower, the same pictures up to rounding",
        title="Low memory", group=MACHINE, load="low_memory",
    )  # fmt: skip
    bits: int | None = setting(
        None, Choice((8, 4)),
        "quantise the large layers to 8 or 4 bits: less memory; pictures differ slightly (8) or clearly (4)",
        title="Bits", group=MACHINE, metavar="N", load="bits", key="Bits", unset=0,
        usual="as in the checkpoint",
    )  # fmt: skip
    file_format: str = setting(
        "png", Choice(tuple(each.key for each in WRITTEN)),
        "all keep the parameters inside the file. PNG is lossless; JPEG and WebP are smaller", title="File format",
    )  # fmt: skip
    attention: bool = setting(
        False, Flag(),
        "record where in each picture each word acts, beside the painting: a step takes somewhat longer. The command "
        "line writes NAME.attention.png and NAME.attention.npz next to each picture",
        title="Show where each word acts",
    )  # fmt: skip
    no_record: bool = setting(
        False, Flag(),
        "write into the pictures neither how nor from what they were made: nobody can read their prompts there, and "
        "nothing can regenerate them",
        title="Keep no record in pictures", group=PRIVACY,
    )  # fmt: skip
    previews: tuple[str, ...] = ("auto", "latents")

    def __post_init__(self) -> None:
        for name, each in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or DEFAULTS[name] is not None:
                each.check(name, value)
        interval("guidance_start", self.guidance_start, "guidance_end", self.guidance_end)

    # --- From ...

    @classmethod
    def from_values(cls, values: Mapping[str, Any], **more: Any) -> Request:
        """From a form or a command line: values by field, `unset` for None; other names are ignored."""
        found = {name: values[name] for name in DEFAULTS if name in values}
        return cls(
            **{name: SETTINGS[name].from_form(value) if name in SETTINGS else value for name, value in found.items()}
            | more
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """From JSON: values by field. Raises `InputError` for an unknown name, and suggests similar ones."""
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
        styles = values.get("styles", [])
        if not isinstance(styles, list) or not all(isinstance(name, str) for name in styles):
            raise InputError(f"styles = {styles!r} should be a list of names.")
        return cls.from_values(values, loras=checked, previews=previews, styles=tuple(styles))

    @classmethod
    def from_record(cls, parameters: Parameters) -> tuple[Request, list[str]]:
        """From a picture's record; also returns notes, in words, on what was not understood.

        The record only names its model, LoRAs, VAE and input files; finding them is up to the caller.
        """
        found, notes = read_record(parameters)
        return cls(**found), notes

    # --- ... to the engine ...

    @property
    def hires(self) -> Hires | None:
        """The second pass, if one is asked for: by a factor or a target, and without an input picture."""
        if self.picture is not None or not (self.hires_scale or self.hires_width or self.hires_height):
            return None
        names = [field.name for field in dataclasses.fields(Hires)]
        return Hires(**{name: getattr(self, f"hires_{name}") for name in names if getattr(self, f"hires_{name}") != ""})

    @property
    def steering(self) -> Steering | None:
        """What steers besides the prompt, if that is asked for."""
        return None if self.steer_by is None else Steering(self.steer_by, self.steer_scale, self.steer_text or None)

    def first_pass(self) -> Request:
        """The request of what the first of two passes paints."""
        return dataclasses.replace(self, hires_scale=None, hires_width=None, hires_height=None)

    def with_seeds(self) -> Request:
        """A copy in which missing seeds are drawn at random. Raises `InputError` near the largest seed."""
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

        As in A1111: picture i has seed + i; with a variation, the seed is fixed and the variation's seed counts up.
        """
        assert self.seed is not None, "with_seeds draws one"
        if self.variation_seed is None:
            return {"seed": self.seed + place}
        return {
            "seed": self.seed,
            "variation_seed": self.variation_seed + place,
            "variation_strength": self.variation_strength,
            **({"vary_all_draws": True} if self.vary_all_draws else {}),
        }

    @property
    def text(self) -> str | Blend:
        """The prompt, mixed with the second one if there is one."""
        return Blend(self.prompt, self.blend_prompt, self.blend_share) if _blended(self) else self.prompt

    def batch_from(self, start: int) -> range:
        """The pictures from number `start` that are painted together: up to `batch_size`, and of the same prompts."""
        end = min(start + self.batch_size, self.n_images)
        if self.texts:
            end = next((i for i in range(start, end) if self.texts[i] != self.texts[start]), end)
        return range(start, end)

    def of_picture(self, place: int) -> Request:
        """The request of picture `place` alone, from 0, with its own prompts and seeds; needs `with_seeds`."""
        own = {name: getattr(self, name) for name in PROMPTS}
        own |= zip(PROMPTS, self.texts[place], strict=True) if self.texts else {}
        return dataclasses.replace(
            self,
            **own,
            template=self.template if own["prompt"] == self.prompt else self.prompt,
            negative_template=self.negative_template if own["negative"] == self.negative else self.negative,
            texts=(),
            n_images=1,
            **{name: value for name, value in self.seeds_of(place).items() if name.endswith("seed")},
        )

    def to_load(self, refiner: bool = False) -> dict[str, Any]:
        """The arguments of `StableDiffusion`, other than the model, that differ from its defaults.

        A `refiner` gets those about the machine, not those about the first model's file.
        """
        return {
            each.load: getattr(self, name)
            for name, each in SETTINGS.items()
            if each.load and getattr(self, name) != DEFAULTS[name] and not (refiner and each.group != MACHINE)
        }

    @property
    def refined(self) -> bool:
        """Whether another model takes over."""
        return self.refiner not in (None, self.model)

    def enlarged(self, report: Report | None = None) -> Request:
        """A copy with the input picture enlarged by its upscaler, if that is asked for and not yet done.

        `report(message, fraction)` may raise. Raises `InputError`, and `CheckpointError` for the upscaler.
        """
        if not self.by or not _unmasked(self) or self.picture_enlarged is not None:
            return self
        from .upscaling.enlarging import enlarge

        def progress(done: int, total: int) -> None:
            if report is not None:
                report(f"Enlarging with {self.upscaler}", done / total)

        return dataclasses.replace(self, picture_enlarged=enlarge(self.picture, self.upscaler, self.by, None, progress))

    def to_call(self, default_size: tuple[int, int], refiner: Any = None) -> Call:
        """The arguments of `generate_latents`, without seeds and counts.

        `default_size` is the model's own; `refiner` the loaded one.
        """
        arguments: dict[str, Any] = {
            each.call: getattr(self, name)
            for name, each in SETTINGS.items()
            if each.call and each.counts(self) and getattr(self, name) is not None
        }
        arguments |= {"text": self.text, "negative_text": self.negative or None, "sampler": self.sampler}
        arguments |= {} if refiner is None else {"refiner": refiner}
        arguments |= {} if self.steering is None else {"guidance": self.steering}
        size = self.painted_size(default_size)
        if self.picture is None:
            return Call(arguments | ({} if self.hires is None else {"hires": self.hires}), None, size)
        from .pictures.inpainting import Inpainting
        from .pictures.reading import fit

        arguments |= {"width": size[0], "height": size[1], "denoising_strength": self.strength}
        if self.mask is None:
            picture = self.enlarged().picture_enlarged or self.picture
            return Call(arguments | {"input_image": fit(picture, *size, self.fit)}, None, size)
        inpainting = Inpainting(
            self.picture, self.mask, *size, self.mask_blur, self.only_masked, self.padding, self.invert
        )
        return Call(arguments | {"input_image": inpainting.picture, "mask_image": inpainting.mask}, inpainting, size)

    @property
    def decoding(self) -> dict[str, str]:
        """The arguments of `decode` and `preview` besides the latents."""
        return {"tiling": self.tiling} if SETTINGS["tiling"].counts(self) else {}

    def painted_size(self, default_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) to paint at: as requested, else the model's; with a mask, in the picture's own shape."""
        if self.width and self.height:
            return self.width, self.height
        width, height = default_size
        if self.picture is not None and self.mask is None and (self.by or self.tile):
            width, height = (max(GRID, int(side * (self.by or 1)) // GRID * GRID) for side in self.picture.size)
        elif self.mask is None:
            return self.width or width, self.height or height
        elif self.picture is not None and not self.only_masked:
            from .pictures.inpainting import suitable_size

            width, height = suitable_size(self.picture.size, default_size)
        if self.width:
            return self.width, max(round(self.width * height / width / GRID), 1) * GRID
        if self.height:
            return max(round(self.height * width / height / GRID), 1) * GRID, self.height
        return width, height

    # --- ... and to the record

    def to_record(self, used: Used, size: tuple[int, int], **seeds: Any) -> Parameters:
        """The record of a picture; `size` is what the first pass paints, `seeds` are the picture's `seeds_of`."""
        from .record.inputs import record
        from .sampler import a1111_name  # not at the top, since it imports MLX

        sampler, schedule = used.sampler or a1111_name(self.sampler)
        own = dataclasses.replace(self, **seeds)
        extra = record(self.picture_file, self.mask_file)
        for name, each in SETTINGS.items():
            value = getattr(own, name)
            if each.key and each.counts(own) and value is not None and (each.always or value != DEFAULTS[name]):
                extra[each.key] = each.write(value)
        if own.guidance_min_sigma:
            extra[keys.NGMS_ALL] = str(True)
        strength = self.strength if self.picture is not None else None
        if self.hires is not None:
            strength = self.hires_strength
            extra |= passes.written(self.hires, None if self.hires_sampler is None else a1111_name(self.hires_sampler))
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
            strength=strength,
            extra=extra | keys.of_used(used),
        )


SETTINGS: dict[str, Setting] = {
    field.name: field.metadata["setting"] for field in dataclasses.fields(Request) if field.metadata
}
DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Request)}
_MADE = ("picture", "picture_file", "mask", "mask_file", "texts", "template", "negative_template")  # by the program
JSON_FIELDS = tuple(name for name in DEFAULTS if name not in _MADE)
RECORD_KEYS = frozenset([*(each.key for each in SETTINGS.values() if each.key), *passes.KEYS])
_PLAIN_FIELDS = ("prompt", "negative", "steps", "cfg", "seed", "width", "height", "strength")  # of Parameters, too


@dataclass(frozen=True)
class Call:
    """A request prepared for a model: the arguments of `generate_latents`, and how to finish what it paints.

    `size` is (width, height) of what is painted first, as records have it.
    """

    arguments: dict[str, Any]
    inpainting: Inpainting | None
    size: tuple[int, int]

    @property
    def unchanged(self) -> Image.Image | None:
        """What stands for the painted picture where nothing may change, at a denoising strength of 0; else None."""
        return self.arguments["input_image"] if self.arguments.get("denoising_strength") == 0 else None

    def finish(self, painted: Image.Image) -> Image.Image:
        """The picture to save, given what was painted."""
        if self.inpainting is None:
            return painted
        return self.inpainting.finish(painted) if self.unchanged is None else self.inpainting.original


def read_record(parameters: Parameters) -> tuple[dict[str, Any], list[str]]:
    """The values in a record, by field of `Request`, and notes, in words, on what was not understood.

    A1111 omits its defaults, so if one setting of a mask is recorded, the missing ones have their defaults. The prompts
    were painted as they are recorded, so that braces in them are not drawn from again.
    """
    from .sampler import key_of, sampler_from_a1111, takes_eta  # not at the top, since it imports MLX

    found: dict[str, Any] = {}
    notes: list[str] = []
    texts = {each.key: parameters.extra[each.key] for each in SETTINGS.values() if each.key in parameters.extra}
    if any(SETTINGS[name].key in texts for name in ("mask_blur", "masked_content", "only_masked")):
        found = {name: DEFAULTS[name] for name in ("mask_blur", "masked_content", "only_masked", "padding", "invert")}
    second = passes.read(parameters.extra)
    for name in _PLAIN_FIELDS:
        value = getattr(parameters, name)
        field = "hires_strength" if name == "strength" and second is not None else name
        try:
            found |= {} if value is None else {field: SETTINGS[field].check(field, value)}
        except InputError:
            shown = value[:100] if isinstance(value, str) else value
            notes.append(f"{SETTINGS[name].title or name} {shown} is not offered here, and was left as it is.")
    pairs = {"sampler": (parameters.sampler, parameters.schedule)}
    if second is not None:
        pairs["hires_sampler"] = second.sampler or parameters.sampler, second.schedule or parameters.schedule
        for name, side in (("hires_width", second.width), ("hires_height", second.height)):
            try:
                found |= {} if side is None else {name: SETTINGS[name].check(name, side)}
            except InputError:
                notes.append(f"{passes.RESIZE} {side} is not offered here, and was left out.")
        if second.sampler is None and second.schedule is None:
            del pairs["hires_sampler"]
    for name, (sampler, schedule) in pairs.items():
        try:
            found |= {name: key_of(sampler_from_a1111(sampler, schedule))} if sampler else {}
        except SamplerError:
            wanted = " ".join(filter(None, (sampler, schedule)))
            notes.append(f"The sampler {wanted!r} is not offered here; the chosen one was left.")
    typed = (parameters.prompt, parameters.negative, parameters.extra.get(keys.BLEND_PROMPT, ""))
    if any(map(dynamic.has_syntax, typed)):
        found["dynamic_prompts"] = False
    for name, each in SETTINGS.items():
        if each.key in texts:
            try:
                found[name] = each.read(texts[each.key])
            except InputError:
                notes.append(f"{each.key} {texts[each.key][:100]!r} was not understood, and was left as it is.")
    if found.get("guidance_min_sigma") and parameters.extra.get(keys.NGMS_ALL) != str(True):
        notes.append(f"{keys.NGMS} skipped guidance in every second step; here it is skipped in every step below it.")
    if "eta" in found and "sampler" in found and not takes_eta(found["sampler"]):
        notes.append(f"Eta {keys.plain(found.pop('eta'))} is not offered for {parameters.sampler} here.")
    return found, notes


def option_of(name: str) -> str:
    """The command line's option for a field."""
    return f"--{name.replace('_', '-')}"


def to_options(values: Mapping[str, Any], groups: Collection[str]) -> list[str]:
    """The command line's options for these values by field, limited to the groups a command has."""
    options = []
    for name, value in values.items():
        each = SETTINGS.get(name)
        if each is None or each.group not in groups or value is None:
            continue
        if isinstance(value, bool) and not value and DEFAULTS[name] is not False:
            options.append(option_of(name).replace("--", "--no-", 1))
        elif not isinstance(value, bool):
            options.append(f"{option_of(name)}={value if isinstance(value, str) else keys.plain(value)}")
        elif value and DEFAULTS[name] is not True:
            options.append(option_of(name))
    return options
