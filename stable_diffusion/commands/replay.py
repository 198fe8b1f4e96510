"""From a picture's record to the command that regenerates it, and its input files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import catalogue, prompts
from ..compare.plan import MATRIX, PLOT
from ..errors import CheckpointError, InputError, PictureError
from ..record import keys, passes
from ..request import RECORD_KEYS, read_record, to_options
from ..setting import BLEND, HIRES, HOW, LARGER, MACHINE, MASK, PICTURE, SEVERAL, SIDES, TILES, WHAT, WHITE
from . import blend, inpaint, needs, paint

if TYPE_CHECKING:
    from ..record.inputs import InputFile
    from ..record.parameters import Parameters

MODULES = (paint, inpaint, blend)
# The input files of a command, in the order of its arguments, and its groups of settings besides those of all.
STARTS_FROM = {"img2img": ("picture",), "inpaint": ("picture", "mask"), "outpaint": ("picture",)}
GROUPS = {
    "txt2img": (SEVERAL, BLEND, HIRES, TILES),
    "img2img": (SEVERAL, BLEND, PICTURE, LARGER, TILES),
    "inpaint": (SEVERAL, BLEND, MASK, WHITE),
    "outpaint": (SEVERAL, BLEND, MASK, SIDES),
    "blend": (),
}
NEEDED = ("seed", "steps", "sampler", "cfg", "size")
# Handled elsewhere, or without effect; any other key is reported.
NO_SETTINGS = (
    keys.PRECISION, keys.VAE_PRECISION, keys.VERSION, keys.VAE, keys.VAE_HASH, keys.REFINER,
    keys.LORA, keys.LORA_HASHES, keys.EMBEDDING_HASHES, keys.BATCH_SIZE, keys.BATCH_POSITION, keys.BLEND_SEED,
    keys.BLEND_PROMPTS, keys.BLEND_SEEDS, keys.BLEND_FRAMES, keys.BLEND_FPS, keys.BLEND_LOOP, keys.BLEND_EASING,
    keys.BLEND_STRENGTH, keys.NGMS_ALL, "Input picture",
    "Input sha256", "Mask", "Mask sha256", "Init image hash", "Hashes", "User", "Created Date", "RNG", "Model",
    "Noise Schedule",
)  # fmt: skip
EDITS = {keys.EDITED: "edit", keys.IMAGIC: "imagic"}  # the commands that do more than paint a text


@dataclass
class Plan:
    """How to regenerate a picture: a command's arguments, and its input files."""

    command: str
    options: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)  # positional arguments
    files: dict[str, InputFile] = field(default_factory=dict)  # by argument
    only: int | None = None  # the one picture of a batch to save
    notes: list[str] = field(default_factory=list)

    @property
    def argv(self) -> list[str]:
        """The command as it would be typed."""
        return [self.command, *self.options, "--", *self.line]

    def add(self, option: str, value: Any) -> None:
        """Add an option, unless its value is None or False; True adds a flag."""
        if value is True:
            self.options.append(option)
        elif value is not None and value is not False:
            self.options.append(f"{option}={value}")

    def arguments(self) -> argparse.Namespace:
        """The command's arguments as its own parser reads them. Raises `InputError` for what it refuses."""
        parser = _Parser(add_help=False)
        commands = parser.add_subparsers(parser_class=_Parser)
        for module in MODULES:
            module.add_to(commands)
        args = commands.choices[self.command].parse_args(self.argv[1:])
        for name, file in self.files.items():
            setattr(args, name, file)
        args.only = self.only
        return args


class _Parser(argparse.ArgumentParser):
    """Raises `InputError` where argparse would exit: the arguments come from a file, not from a command line."""

    def error(self, message: str) -> Any:
        raise InputError(f"The picture's record cannot be used: {message}.")


def plan_of(asked: argparse.Namespace, parameters: Parameters) -> Plan:
    """The plan for a picture; `asked` are the arguments of `again`.

    Raises `PictureError` where the record is incomplete or an input file is not found, and the errors below
    `CheckpointError` for models, VAEs, LoRAs and embeddings that are not here.
    """
    extra = parameters.extra
    if extra.get("Script") in (PLOT, MATRIX) and not asked.force:
        raise PictureError(
            f"{asked.source!r} is a grid ({extra['Script']}), whose pictures have records of their own: regenerate one "
            "of these, or repeat the command `grid`. --force regenerates the grid's first picture."
        )
    if (made := next((name for key, name in EDITS.items() if key in extra), None)) and not asked.force:
        raise PictureError(
            f"{asked.source!r} is an edited picture: repeat the command `{made}`. --force paints its text alone."
        )
    lacking = [name for name in NEEDED if getattr(parameters, name) is None]
    if lacking and not asked.force:
        raise PictureError(
            f"{asked.source!r} does not record its {', '.join(lacking)}. --force uses the model's defaults, and a new "
            f"seed."
        )
    found, notes = read_record(parameters)
    if notes and not asked.force:
        raise PictureError(f"{asked.source!r}: {' '.join(notes)} --force ignores that.")
    plan = Plan(_command(parameters, found), notes=notes)
    if plan.command == "blend":
        plan.line = [parameters.prompt, *_add_blend(plan, parameters, found)]
    else:
        plan.line = [parameters.prompt]
        found |= _batch(plan, found, extra)
    groups = (WHAT, HOW, MACHINE, *GROUPS[plan.command])
    if _default_negative(asked.model or parameters.model):
        found["default_negative"] = False  # what was added is recorded
    plan.options = to_options({name: value for name, value in found.items() if value != ""}, groups) + plan.options
    plan.add("--sampler", found.get("sampler"))
    if plan.command in ("inpaint", "outpaint"):
        plan.options += to_options({"strength": found.get("strength")}, [PICTURE])
    _add_engine(plan, asked, parameters)
    plan.files = dict(_files(plan, asked, extra))
    if plan.command in STARTS_FROM:
        plan.line = [*(file.name for file in plan.files.values()), *plan.line]
    plan.notes += _notes(parameters)
    return plan


def _command(parameters: Parameters, found: Mapping[str, Any]) -> str:
    extra = parameters.extra
    if keys.BLEND_FRAMES in extra:
        return "blend"
    if any(found.get(side) for side in inpaint.BEYOND):
        return "outpaint"
    if "mask_blur" in found or "Mask sha256" in extra:
        return "inpaint"
    of_second_pass = passes.read(extra) is not None  # A1111 records its strength under the same key
    if "Input sha256" in extra or (parameters.strength is not None and not of_second_pass):
        return "img2img"
    return "txt2img"


def _default_negative(model: str | None) -> str:
    try:
        return prompts.default_negative(catalogue.find(model or ""))
    except CheckpointError:
        return prompts.of_installation()


def _batch(plan: Plan, found: Mapping[str, Any], extra: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a picture's whole batch, on whose size the picture's last bits may depend."""
    size, place = _whole(extra.get(keys.BATCH_SIZE)) or 1, _whole(extra.get(keys.BATCH_POSITION)) or 0
    counted = "variation_seed" if found.get("variation_strength") else "seed"
    seed = found.get(counted)
    if seed is None or not 1 < size <= 256 or not place < size or place > seed:
        return {}
    plan.only = place
    return {counted: seed - place, "n_images": size, "batch_size": size}


def _starts_from(command: str, extra: Mapping[str, str]) -> tuple[str, ...]:
    if command == "blend":
        return ("picture",) if "Input sha256" in extra else ()
    return STARTS_FROM.get(command, ())


def _add_blend(plan: Plan, parameters: Parameters, found: dict[str, Any]) -> list[str]:
    """The options of a walk; returns the prompts after the first. Raises `InputError`."""
    extra = parameters.extra
    texts, seeds = keys.stations(extra)
    for option, key in (
        ("--frames", keys.BLEND_FRAMES), ("--fps", keys.BLEND_FPS), ("--easing", keys.BLEND_EASING),
        ("--to-strength", keys.BLEND_STRENGTH),
    ):  # fmt: skip
        plan.add(option, extra.get(key))
    plan.add("--loop", extra.get(keys.BLEND_LOOP) == str(True))
    if seeds:
        plan.add("--seeds", ",".join([str(found.pop("seed")), *seeds]))
    if _starts_from(plan.command, extra):
        plan.add("--image", extra.get("Input picture") or "picture")
        plan.options += to_options({"fit": "crop"} | found, [PICTURE])
    return texts


def _add_engine(plan: Plan, asked: argparse.Namespace, parameters: Parameters) -> None:
    """The model, VAE and LoRAs, as found here, and the precision."""
    from ..adapters import files

    extra = parameters.extra
    if asked.model is not None:
        plan.add("--model", asked.model)
        plan.notes.append(f"made with the model {parameters.model!r}, now with {asked.model!r}")
    else:
        plan.add("--model", needs.model(parameters.model, parameters.model_hash).source)
    if refiner := extra.get(keys.REFINER):
        plan.add("--refiner", asked.refiner or needs.model(*keys.titled(refiner), option="--refiner").source)
    if asked.vae is not None:
        plan.add("--vae", asked.vae)
    elif vae := extra.get(keys.VAE):
        plan.add("--vae", needs.vae(vae, extra.get(keys.VAE_HASH), asked.source))
    recorded, hashes = extra.get(keys.LORA, ""), extra.get(keys.LORA_HASHES, "")
    for lora in needs.loras(recorded, {} if asked.force else dict(keys.pairs(hashes)), asked.lora):
        plan.add("--lora", lora)
    if not asked.force:
        laid_over = {name for name, _ in keys.pairs(recorded)}
        needs.check_named(files.LORAS, [(name, digits) for name, digits in keys.pairs(hashes) if name not in laid_over])
        needs.check_named(files.EMBEDDINGS, keys.pairs(extra.get(keys.EMBEDDING_HASHES, "")))
    precision = extra.get(keys.PRECISION)
    plan.add("--float16", precision == "float16")
    plan.add("--no-float16", precision == "float32")


def _files(plan: Plan, asked: argparse.Namespace, extra: Mapping[str, str]) -> Iterator[tuple[str, InputFile]]:
    """The input files, as given or as found."""
    from ..record import inputs

    names = {"picture": inputs.PICTURE, "mask": inputs.MASK}
    for name in _starts_from(plan.command, extra):
        wanted, given = inputs.recorded(extra, names[name]), getattr(asked, name)
        if given is not None:
            file = inputs.InputFile.read(given)
            if wanted is not None and not asked.force:
                wanted.check(file)
        elif wanted is not None:
            file = inputs.find(wanted, asked.source)
        else:
            raise PictureError(
                f"{asked.source!r} was made from another picture, but does not record which: give it with "
                f"--{name} FILE."
            )
        yield name, file
    if any(True for _ in inputs.carried(asked.source)):
        plan.add("--embed-inputs", bool(_starts_from(plan.command, extra)))


def _notes(parameters: Parameters) -> list[str]:
    """What cannot be regenerated, or not exactly."""
    notes = []
    if not parameters.extra.get(keys.VERSION, "").startswith("stable_diffusion "):
        notes.append("made by another program, with other noise: the result will only be similar")
    unknown = [key for key in parameters.extra if key not in RECORD_KEYS and key not in NO_SETTINGS]
    if unknown:
        notes.append(f"unknown here, and ignored: {', '.join(unknown)}")
    return notes


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) <= 20 else None
