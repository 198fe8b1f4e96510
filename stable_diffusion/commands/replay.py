"""From what a picture records to the command that makes it again, and the files that the command starts from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError, PictureError
from ..record import keys
from ..request import RECORD_KEYS, read_record, to_options
from ..setting import HOW, MACHINE, MASK, PICTURE, SEVERAL, SIDES, WHAT, WHITE
from . import blend, inpaint, needs, paint

if TYPE_CHECKING:
    from ..record.inputs import InputFile
    from ..record.parameters import Parameters

MODULES = (paint, inpaint, blend)
# The files that a command starts from, in the order of its line, and its groups of settings beside those of all.
STARTS_FROM = {"img2img": ("picture",), "inpaint": ("picture", "mask"), "outpaint": ("picture",)}
GROUPS = {
    "txt2img": (SEVERAL,),
    "img2img": (SEVERAL, PICTURE),
    "inpaint": (SEVERAL, MASK, WHITE),
    "outpaint": (SEVERAL, MASK, SIDES),
    "blend": (),
}
NEEDED = ("seed", "steps", "sampler", "cfg", "size")
# Said in another way than by a setting, or without effect; any other key is named.
PASSED_OVER = (
    keys.PRECISION, keys.VERSION, keys.VAE, keys.VAE_HASH, keys.LORA, keys.LORA_HASHES, keys.EMBEDDING_HASHES,
    keys.BATCH_SIZE, keys.BATCH_POSITION, keys.BLEND_PROMPT, keys.BLEND_SEED, keys.BLEND_FRAMES, keys.BLEND_SHARE,
    keys.BLEND_FPS, "Input picture", "Input sha256", "Mask", "Mask sha256", "Init image hash", "Hashes", "User",
    "Created Date", "RNG", "Model", "Noise Schedule",
)  # fmt: skip


@dataclass
class Plan:
    """How a picture is made: a command's arguments, and the files that it starts from."""

    command: str
    options: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)  # what stands without an option
    files: dict[str, InputFile] = field(default_factory=dict)  # by the argument that they stand for
    only: int | None = None  # the one picture to keep of a batch
    notes: list[str] = field(default_factory=list)

    @property
    def argv(self) -> list[str]:
        """The command as it would be typed."""
        return [self.command, *self.options, "--", *self.line]

    def say(self, option: str, value: Any) -> None:
        """Add an option, unless its value is None or False; True is that of one without."""
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
    """Says by an error of ours what it cannot read: it comes from a file, not from whoever typed the command."""

    def error(self, message: str) -> Any:
        raise InputError(f"What the picture says cannot be done here: {message}.")


def plan_of(asked: argparse.Namespace, parameters: Parameters) -> Plan:
    """The plan for a picture; `asked` are the arguments of `again`.

    Raises `PictureError` where the picture does not say enough, or what it was made from is not found, and the errors
    below `CheckpointError` for models, VAEs, LoRAs and embeddings that are not here.
    """
    extra = parameters.extra
    lacking = [name for name in NEEDED if getattr(parameters, name) is None]
    if lacking and not asked.force:
        raise PictureError(
            f"{asked.source!r} does not say its {', '.join(lacking)}. --force takes the model's usual ones, and a new "
            f"seed."
        )
    found, notes = read_record(parameters)
    if notes and not asked.force:
        raise PictureError(f"{asked.source!r}: {' '.join(notes)} --force goes on without.")
    plan = Plan(_command(parameters, found), notes=notes)
    if plan.command == "blend":
        _say_blend(plan, extra)
    else:
        found |= _batch(plan, found, extra)
    groups = (WHAT, HOW, MACHINE, *GROUPS[plan.command])
    plan.options = to_options({name: value for name, value in found.items() if value != ""}, groups) + plan.options
    plan.say("--sampler", found.get("sampler"))
    if plan.command in ("inpaint", "outpaint"):
        plan.options += to_options({"strength": found.get("strength")}, [PICTURE])
    _say_engine(plan, asked, parameters)
    plan.files = dict(_files(plan, asked, extra))
    plan.line = [*(file.name for file in plan.files.values()), *plan.line, *_prompts(plan, parameters)]
    plan.notes += _notes(parameters)
    return plan


def _command(parameters: Parameters, found: Mapping[str, Any]) -> str:
    extra = parameters.extra
    if keys.BLEND_FRAMES in extra or keys.BLEND_SHARE in extra:
        return "blend"
    if any(found.get(side) for side in inpaint.BEYOND):
        return "outpaint"
    if "mask_blur" in found or "Mask sha256" in extra:
        return "inpaint"
    of_second_pass = any(key.startswith("Hires") for key in extra)  # A1111 says the strength of that, too
    if "Input sha256" in extra or (parameters.strength is not None and not of_second_pass):
        return "img2img"
    return "txt2img"


def _prompts(plan: Plan, parameters: Parameters) -> list[str]:
    end = parameters.extra.get(keys.BLEND_PROMPT) if plan.command == "blend" else None
    return [parameters.prompt] if end is None else [parameters.prompt, end]


def _batch(plan: Plan, found: Mapping[str, Any], extra: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a picture's whole batch, since the last bit of a picture may be its batch's."""
    size, place = _whole(extra.get(keys.BATCH_SIZE)) or 1, _whole(extra.get(keys.BATCH_POSITION)) or 0
    counted = "variation_seed" if found.get("variation_strength") else "seed"
    seed = found.get(counted)
    if seed is None or not 1 < size <= 256 or not place < size or place > seed:
        return {}
    plan.only = place
    return {counted: seed - place, "n_images": size, "batch_size": size}


def _say_blend(plan: Plan, extra: Mapping[str, str]) -> None:
    plan.say("--frames", extra.get(keys.BLEND_FRAMES))
    plan.say("--fps", extra.get(keys.BLEND_FPS))
    plan.say("--share", extra.get(keys.BLEND_SHARE))
    plan.say("--to-seed", extra.get(keys.BLEND_SEED, extra.get(keys.VARIATION_SEED)))


def _say_engine(plan: Plan, asked: argparse.Namespace, parameters: Parameters) -> None:
    """The model and what lies over it, each as found here, and the precision."""
    from ..adapters import files

    extra = parameters.extra
    if asked.model is not None:
        plan.say("--model", asked.model)
        plan.notes.append(f"made with the model {parameters.model!r}, now with {asked.model!r}")
    else:
        plan.say("--model", needs.model(parameters.model, parameters.model_hash).source)
    if asked.vae is not None:
        plan.say("--vae", asked.vae)
    elif vae := extra.get(keys.VAE):
        plan.say("--vae", needs.vae(vae, extra.get(keys.VAE_HASH), asked.source))
    recorded, hashes = extra.get(keys.LORA, ""), extra.get(keys.LORA_HASHES, "")
    for lora in needs.loras(recorded, {} if asked.force else dict(needs.pairs(hashes)), asked.lora):
        plan.say("--lora", lora)
    if not asked.force:
        laid_over = {name for name, _ in needs.pairs(recorded)}
        needs.check_named(
            files.LORAS, [(name, digits) for name, digits in needs.pairs(hashes) if name not in laid_over]
        )
        needs.check_named(files.EMBEDDINGS, needs.pairs(extra.get(keys.EMBEDDING_HASHES, "")))
    precision = extra.get(keys.PRECISION)
    plan.say("--float16", precision == "float16")
    plan.say("--no-float16", precision == "float32")


def _files(plan: Plan, asked: argparse.Namespace, extra: Mapping[str, str]) -> Iterator[tuple[str, InputFile]]:
    """The files that the command starts from: as given, or as they are found."""
    from ..record import inputs

    names = {"picture": inputs.PICTURE, "mask": inputs.MASK}
    for name in STARTS_FROM.get(plan.command, ()):
        wanted, given = inputs.recorded(extra, names[name]), getattr(asked, name)
        if given is not None:
            file = inputs.InputFile.read(given)
            if wanted is not None and not asked.force:
                wanted.check(file)
        elif wanted is not None:
            file = inputs.find(wanted, asked.source)
        else:
            raise PictureError(
                f"{asked.source!r} was made from another picture, but does not say which: give it with --{name} FILE."
            )
        yield name, file
    if any(True for _ in inputs.carried(asked.source)):
        plan.say("--embed-inputs", plan.command in STARTS_FROM)


def _notes(parameters: Parameters) -> list[str]:
    """What cannot be done again, or not exactly."""
    notes = []
    if not parameters.extra.get(keys.VERSION, "").startswith("stable_diffusion "):
        notes.append("made by another program, whose noise is another: it will be alike in kind only")
    unknown = [key for key in parameters.extra if key not in RECORD_KEYS and key not in PASSED_OVER]
    if unknown:
        notes.append(f"not known here, and passed over: {', '.join(unknown)}")
    return notes


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) <= 20 else None
