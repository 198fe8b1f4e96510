"""Models made for few steps: which they are, as names, metadata and configurations tell, and how each is painted with.

A wrong guess would spoil every picture of an ordinary model. So a name counts only in whole words ("hyperrealistic" and
"turbocharged" say nothing), and where the word is an everyday one, only beside a family or a number of steps. Needs
neither MLX nor numpy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import families

MAX_STEPS = 32  # more are no few-step model's
GENERIC = {
    "pytorch_lora_weights",
    "adapter_model",
    "diffusion_pytorch_model",
    "model",
    "unet",
}  # names that say nothing
METADATA = ("modelspec.title", "ss_output_name")  # keys of a file's that may tell of a kind
INDEX_KEY = "_recipe"  # of a folder's model_index.json: steps, cfg and sampler of a model that says so itself
INDEX_SAMPLERS = ("ddim", "euler", "dpmpp_2m", "lcm", "tcd")  # what it may name
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_STEPS = re.compile(r"(?<![a-z0-9.])(?:\d{1,2}\s*(?:-|to)\s*)?(\d{1,2})[ _-]?steps?(?![a-z])", re.IGNORECASE)
_NOT = {"no", "non", "not", "without", "anti", "un"}
_FAMILY = (*families.IN_NAMES, "ssd", "pony", "illustrious")
# Trained on pictures by kohya's scripts: then an everyday word is the name of what they show.
_OF_PICTURES = ("ss_tag_frequency", "ss_dataset_dirs", "ss_num_train_images")


@dataclass(frozen=True)
class Recipe:
    """How a model made for few steps is painted with, and by what it was recognised."""

    title: str  # "SDXL Lightning"
    steps: int
    cfg: float
    sampler: str  # a key, with its schedule
    by: str  # what gave it away: "its name"

    @property
    def in_words(self) -> str:
        """What it is and what follows from it, on one line."""
        return f"{self.what}: {self.settings({'steps', 'cfg', 'sampler'})}."

    @property
    def what(self) -> str:
        """ "Recognised as SDXL Lightning by its name"."""
        return f"Recognised as {self.title} by {self.by}"

    def settings(self, wanted: Collection[str]) -> str:
        """Some of its settings, in words."""
        said = {
            "steps": f"{self.steps} step{'s' * (self.steps != 1)}",
            "cfg": f"CFG {self.cfg:g}",
            "sampler": f"sampler {self.sampler}",
        }
        return ", ".join(text for name, text in said.items() if name in wanted)


@dataclass(frozen=True)
class Kind:
    """One way to distil a model to few steps. `steps` are its own where its name does not say how many."""

    title: str
    words: tuple[tuple[str, ...], ...]  # as they follow each other in a name; any of them
    steps: int
    cfg: float
    sampler: str
    families: tuple[str, ...] = ()  # keys, those that there are models of; () for any
    everyday: bool = False  # a word of everyday language, which needs a family or a number of steps with it
    cfg_kept: float | None = None  # for those that keep guidance, with "CFG" in their names
    one_step: str = ""  # another sampler for a single step
    schedulers: tuple[str, ...] = ()  # diffusers' classes that give it away in a folder


# Luo et al. 2023 arXiv:2310.04378 and arXiv:2311.05556; Sauer et al. 2023 arXiv:2311.17042; Lin et al. 2024
# arXiv:2402.13929; Ren et al. 2024 arXiv:2404.13686; Zheng et al. 2024 arXiv:2402.19159; Yin et al. 2024
# arXiv:2405.14867: the settings are those of the model cards, where guidance 0 is no guidance, here CFG 1.
KINDS: tuple[Kind, ...] = (
    Kind("DMD2", (("dmd", "2"), ("dmd",)), 4, 1.0, "lcm"),
    Kind("TCD", (("tcd",),), 4, 1.0, "tcd", schedulers=("TCDScheduler",)),
    Kind("LCM", (("lcm",), ("latent", "consistency")), 4, 1.0, "lcm", schedulers=("LCMScheduler",)),
    Kind(
        "Hyper-SD", (*(("hyper", word) for word in families.IN_NAMES), ("hypersd",), ("hypersdxl",), ("hyper",)),
        8, 1.0, "ddim_sgm_uniform", everyday=True, cfg_kept=5.0, one_step="tcd",
    ),
    Kind(
        "Lightning", (("lightning",), ("sdxllightning",)), 6, 1.0, "euler_sgm_uniform",
        families=(families.SDXL.key,), everyday=True,
    ),
    Kind(
        "Turbo", (("turbo",), ("sdxlturbo",), ("sdturbo",)), 4, 1.0, "euler_a_sgm_uniform",
        families=(families.SDXL.key, families.SD2.key), everyday=True,
    ),
)  # fmt: skip
EMBEDDED = Kind("LCM", (), 4, 8.0, "lcm")  # with guidance as an input


def of_checkpoint(
    name: str,
    family: str,
    metadata: Mapping[str, str] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    embeds_guidance: bool = False,
) -> Recipe | None:
    """The recipe of a checkpoint, or None for an ordinary one.

    `name` is the catalogue's, with folders; `family` a key of families.FAMILIES or ""; `scheduler` a folder's
    scheduler_config.json; `embeds_guidance` tells of an LCM by its keys (time_embedding.cond_proj).
    """
    if family and family not in families.FAMILIES:
        return None
    if embeds_guidance:
        return _recipe(EMBEDDED, name, family, "its keys")
    for text, by in _texts(name, metadata or {}):
        for kind in KINDS:
            if _fits(kind, family) and _says(kind, text, strictly=False):
                return _recipe(kind, text, family, by)
    for kind in KINDS:
        if (scheduler or {}).get("_class_name") in kind.schedulers:
            return _recipe(kind, name, family, "its scheduler")
    return _recipe(KINDS[-1], name, family, "its scheduler") if _is_turbos(scheduler or {}, family) else None


def of_index(index: Mapping[str, Any], family: str) -> Recipe | None:
    """The recipe that a folder's model_index.json states, or None where it states none that could be followed."""
    said = index.get(INDEX_KEY)
    if not isinstance(said, Mapping):
        return None
    steps, cfg, sampler = said.get("steps"), said.get("cfg"), said.get("sampler")
    if not isinstance(steps, int) or isinstance(steps, bool) or not isinstance(cfg, int | float):
        return None
    if sampler not in INDEX_SAMPLERS or not 1 <= steps <= MAX_STEPS or not 0 <= cfg <= 100:
        return None
    title = f"{families.get(family).title} distilled to {steps} steps".strip()
    return Recipe(title, steps, float(cfg), sampler, "its model_index.json")


def of_lora(name: str, family: str, metadata: Mapping[str, str] | None = None) -> Recipe | None:
    """The recipe that a LoRA makes necessary, or None for an ordinary one; `name` may have its folder in front."""
    if family and family not in families.FAMILIES:
        return None
    metadata = metadata or {}
    about_pictures = any(key in metadata for key in _OF_PICTURES)
    for text, by in _texts(name, metadata):
        for kind in KINDS:
            if kind.everyday and about_pictures:
                continue
            if _fits(kind, family) and _says(kind, text, strictly=kind.everyday):
                return _recipe(kind, text, family, by)
    return None


def _texts(name: str, metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """What may tell of a kind, the most telling first, and what to call it."""
    *folders, own = re.sub(r"\.(safetensors|ckpt|pt|bin)$", "", name.replace("\\", "/")).split("/")
    texts = [] if own in GENERIC else [(own, "its name")]
    texts += [(folder, "its folder") for folder in folders[-1:]]
    for key in METADATA:
        if metadata.get(key):
            texts.append((metadata[key][:300], f"its metadata ({key})"))
    return texts


def _fits(kind: Kind, family: str) -> bool:
    return not kind.families or not family or family in kind.families


def _says(kind: Kind, text: str, strictly: bool) -> bool:
    """Whether a name says that a model is of a kind; `strictly` where the word alone may mean anything."""
    words = [word.lower() for word in _WORD.findall(text)]
    for wanted in kind.words:
        for i in range(len(words) - len(wanted) + 1):
            if tuple(words[i : i + len(wanted)]) != wanted or (i and words[i - 1] in _NOT):
                continue
            alone = wanted == ("hyper",)  # as in "Hyper Realism": says nothing without the steps
            beside = len(wanted) > 1 or wanted[0] not in ("hyper", "lightning", "turbo") or _after_family(words, i)
            if _steps(text) or (beside if strictly else not alone):
                return True
    return False


def _after_family(words: Sequence[str], i: int) -> bool:
    return i > 0 and words[i - 1].startswith(_FAMILY)


def _steps(text: str) -> int | None:
    """The number of steps in a name, "4step" or "8-Steps"; of a range, the upper end."""
    found = [int(match[1]) for match in _STEPS.finditer(text)]
    return next((steps for steps in found if 1 <= steps <= MAX_STEPS), None)


def _is_turbos(scheduler: Mapping[str, Any], family: str) -> bool:
    """Whether a folder's configuration is that of SDXL Turbo: no other model has this pair and predicts eps."""
    return (
        scheduler.get("_class_name") == "EulerAncestralDiscreteScheduler"
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
        and not scheduler.get("rescale_betas_zero_snr")
        and _fits(KINDS[-1], family)
    )


def _recipe(kind: Kind, text: str, family: str, by: str) -> Recipe:
    steps = _steps(text)
    title = f"{families.get(family).title} {kind.title}".strip()
    recipe = Recipe(title, steps or kind.steps, kind.cfg, kind.sampler, by)
    if kind.cfg_kept is not None and "cfg" in (word.lower() for word in _WORD.findall(text)):
        recipe = dataclasses.replace(recipe, cfg=kind.cfg_kept)
    return dataclasses.replace(recipe, sampler=kind.one_step) if kind.one_step and steps == 1 else recipe
