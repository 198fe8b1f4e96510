"""From what a picture records to the command that makes it again, and the files that the command starts from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError, PictureError
from . import blend, inpaint, needs, paint

if TYPE_CHECKING:
    from ..record.inputs import InputFile
    from ..record.parameters import Parameters

GROUPS = (paint, inpaint, blend)
# The files that a command starts from, in the order of its line.
STARTS_FROM = {"img2img": ("picture",), "inpaint": ("picture", "mask"), "outpaint": ("picture",)}
NEEDED = ("seed", "steps", "sampler", "cfg", "size")
# What an option says by itself, and what is said in another way or changes nothing; any other key is named.
OPTIONS = {
    "Bits": "--bits",
    "Prediction type": "--prediction-type",
    "Clip skip": "--clip-skip",
    "CFG Rescale": "--guidance-rescale",
    "Prompt language": "--prompt-language",
    "Resize mode": "--fit",
}
PASSED_OVER = (
    "Precision", "Version", "VAE", "VAE hash", "LoRA", "Lora hashes", "TI hashes", "Batch size", "Batch pos",
    "Variation seed", "Variation seed strength", "Blend prompt", "Blend seed", "Blend frames", "Blend share",
    "Blend fps",
    "Input picture", "Input sha256", "Mask", "Mask sha256", "Mask blur", "Mask mode", "Masked content", "Inpaint area",
    "Masked area padding", "Outpaint left", "Outpaint right", "Outpaint top", "Outpaint bottom",
    "Init image hash", "Hashes", "User", "Created Date", "RNG", "Model", "Noise Schedule",
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
        kinds = parser.add_subparsers(parser_class=_Parser)
        for group in GROUPS:
            group.add_to(kinds)
        args = kinds.choices[self.command].parse_args(self.argv[1:])
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
    plan = Plan(_command(parameters))
    _say_settings(plan, parameters)
    for key, option in OPTIONS.items():
        plan.say(option, extra.get(key))
    _say_mask(plan, extra)
    if plan.command == "blend":
        _say_blend(plan, parameters)
    else:
        _say_seeds(plan, parameters)
    _say_engine(plan, asked, parameters)
    plan.files = dict(_files(plan, asked, extra))
    plan.line = [*(file.name for file in plan.files.values()), *plan.line, *_prompts(plan, parameters)]
    plan.notes += _notes(parameters)
    return plan


def _command(parameters: Parameters) -> str:
    from ..record import keys

    extra = parameters.extra
    if "Blend frames" in extra or "Blend share" in extra:
        return "blend"
    if any(key in extra for key in keys.OUTPAINT.values()):
        return "outpaint"
    if keys.read_inpainting(extra) or "Mask sha256" in extra:
        return "inpaint"
    of_second_pass = any(key.startswith("Hires") for key in extra)  # A1111 says the strength of that, too
    if "Input sha256" in extra or (parameters.strength is not None and not of_second_pass):
        return "img2img"
    return "txt2img"


def _prompts(plan: Plan, parameters: Parameters) -> list[str]:
    end = parameters.extra.get("Blend prompt") if plan.command == "blend" else None
    return [parameters.prompt] if end is None else [parameters.prompt, end]


def _say_settings(plan: Plan, parameters: Parameters) -> None:
    from ..record.keys import plain
    from ..sampler import key_of, sampler_from_a1111

    plan.say("--negative", parameters.negative or None)
    plan.say("--steps", parameters.steps)
    plan.say("--cfg", None if parameters.cfg is None else plain(parameters.cfg))
    plan.say("--width", parameters.width)
    plan.say("--height", parameters.height)
    if parameters.sampler is not None:
        plan.say("--sampler", key_of(sampler_from_a1111(parameters.sampler, parameters.schedule)))
    if plan.command in STARTS_FROM and parameters.strength is not None:
        plan.say("--strength", plain(parameters.strength))


def _say_mask(plan: Plan, extra: Mapping[str, str]) -> None:
    from ..record import keys

    if plan.command not in ("inpaint", "outpaint"):
        return
    used = keys.read_inpainting(extra)
    plan.say("--masked-content", used.get("masked_content"))
    plan.say("--mask-blur", keys.plain(used["mask_blur"]) if used else None)
    if plan.command == "inpaint":
        plan.say("--only-masked", used.get("only_masked"))
        plan.say("--padding", used.get("padding"))
        plan.say("--invert", used.get("invert"))
    else:
        for side, key in keys.OUTPAINT.items():
            plan.say(f"--{side}", extra.get(key))


def _say_seeds(plan: Plan, parameters: Parameters) -> None:
    """The seeds; and of a batch the whole, since the last bit of a picture may be its batch's."""
    seed, extra = parameters.seed, parameters.extra
    strength, variation = extra.get("Variation seed strength"), _whole(extra.get("Variation seed"))
    size, place = _whole(extra.get("Batch size")) or 1, _whole(extra.get("Batch pos")) or 0
    counted = variation if strength else seed
    if counted is not None and place < size <= 256 and place <= counted:
        counted -= place
        plan.only = place if size > 1 else None
        plan.say("--n-images", size if size > 1 else None)
        plan.say("--batch-size", size if size > 1 else None)
    plan.say("--seed", seed if strength else counted)
    if strength:
        plan.say("--variation-seed", extra.get("Variation seed", "") if variation is None else counted)
        plan.say("--variation-strength", strength)


def _say_blend(plan: Plan, parameters: Parameters) -> None:
    extra = parameters.extra
    plan.say("--seed", parameters.seed)
    plan.say("--frames", extra.get("Blend frames"))
    plan.say("--fps", extra.get("Blend fps"))
    plan.say("--share", extra.get("Blend share"))
    plan.say("--to-seed", extra.get("Blend seed", extra.get("Variation seed")))


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
    elif vae := extra.get("VAE"):
        plan.say("--vae", needs.vae(vae, extra.get("VAE hash"), asked.source))
    recorded, hashes = extra.get("LoRA", ""), extra.get("Lora hashes", "")
    for lora in needs.loras(recorded, {} if asked.force else dict(needs.pairs(hashes)), asked.lora):
        plan.say("--lora", lora)
    if not asked.force:
        laid_over = {name for name, _ in needs.pairs(recorded)}
        needs.check_named(
            files.LORAS, [(name, digits) for name, digits in needs.pairs(hashes) if name not in laid_over]
        )
        needs.check_named(files.EMBEDDINGS, needs.pairs(extra.get("TI hashes", "")))
    precision = extra.get("Precision")
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
    if not parameters.extra.get("Version", "").startswith("stable_diffusion "):
        notes.append("made by another program, whose noise is another: it will be alike in kind only")
    unknown = [key for key in parameters.extra if key not in OPTIONS and key not in PASSED_OVER]
    if unknown:
        notes.append(f"not known here, and passed over: {', '.join(unknown)}")
    return notes


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) <= 20 else None
