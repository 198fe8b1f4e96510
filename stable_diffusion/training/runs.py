"""The training runs as a table: what each is called, its options and defaults, and the code that builds it.

A further run is one row of RUNS and one file in this folder. The table needs no MLX: a command's --help and a page list
it, and only `Run.start` and `Run.train` import the rest.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..catalogue import is_narrow
from ..checks import MAX_SEED, Check, Choice, FilePath, Flag, Number, Text, Whole, Wholes
from ..errors import InputError
from .recipe import PRECISIONS, Intervals, Recipe

if TYPE_CHECKING:
    from .loop import Limit, Progress, Task
    from .optimisation import State

STATES = "training"  # the folder next to the checkpoint's parts that holds states, logs, sheets and latents
POSTCARDS_HELP = (
    "postcards, painted as they are needed, or a folder of pictures with captions (.txt files of the same names, or "
    "metadata.jsonl)"
)
SIDES = Whole(64, 1024, 64)
TEACHING = ".training"  # the ending of such a folder next to a run's file
_RECIPE = (
    "batch",
    "accumulate",
    "learning_rate",
    "seed",
    "precision",
    "average_decay",
)  # options that change the recipe
_INTERVALS = {"sample_every": "look_steps"}  # options that change the intervals


@dataclass(frozen=True)
class Option:
    """One setting of a run: a keyword of `Run.start`, and --name on the command line, with dashes.

    Where the default is None, `help` explains it. `rare` ones may be folded away on a page.
    """

    name: str
    check: Check
    help: str
    default: str | float | tuple[int, ...] | None = None
    metavar: str = "N"
    rare: bool = False


@dataclass(frozen=True)
class Run:
    """A row of the table.

    `builder`, "module:function" in this folder, is called with (data, output, recipe, **own options) and returns the
    `loop.Task` to train. It raises `CheckpointNotFoundError` where the output folder lacks what one of the runs in
    `needs` writes. A run that `teaches` changes an existing model: its output is a file, its builder also takes
    `progress(message, fraction or None)`, which may raise to cancel, and its data and size have no default here.
    """

    name: str
    title: str  # what is trained
    help: str  # one line, without a full stop
    builder: str
    recipe: Recipe
    needs: tuple[str, ...] = ()
    size: int = 128  # pixels a side
    own: tuple[Option, ...] = ()  # the options that only this run has
    data: str = "postcards"  # what it learns from by default, and what else it may be
    data_help: str = POSTCARDS_HELP
    reader: str = "data:open_data"  # "module:function" that opens it, called with (data, size, seed)
    sizes: Check = SIDES  # pixels a side
    teaches: bool = False
    narrow: Mapping[str, Any] = field(default_factory=dict)  # other defaults for models as narrow as the embedded ones
    intervals: Intervals = field(default_factory=Intervals)

    def states(self, output: Path) -> Path:
        """The folder of a run's state, log, sheets and curve."""
        return output.with_name(output.name + TEACHING) if self.teaches else output / STATES / self.name

    @property
    def options(self) -> tuple[Option, ...]:
        """All options, with this run's defaults."""
        recipe, many = self.recipe, Whole(1, 65536)
        data = Option("data", FilePath(), self.data_help, default=self.data, metavar=f"{self.data}|FOLDER")
        size = Option("size", self.sizes, "side of the square pictures, in pixels", self.size)
        if self.teaches:
            data = Option("data", FilePath(), self.data_help, metavar="FOLDER")
            size = Option("size", self.sizes, "pictures have the area of squares of this side (default: the model's)")
        return (
            data,
            size,
            Option("batch", many, "examples per step", recipe.batch),
            Option("accumulate", many, "split each batch into N parts to save memory", recipe.accumulate),
            Option("learning_rate", Number(0, 1), "peak learning rate", recipe.learning_rate, metavar="R"),
            Option("seed", Whole(0, MAX_SEED), "the same seed and --steps give the same weights", recipe.seed),
            *self.own,
        )

    def defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Each option's default, by name, for a run with these values: narrow models learn by larger changes."""
        usual = {option.name: option.default for option in self.options}
        model = str(values.get("model") or usual.get("model"))
        narrow = self.narrow and not values.get("full") and is_narrow(model)
        return usual | dict(self.narrow) if narrow else usual

    def configured(self, path: Path) -> dict[str, Any]:
        """Options by name from a YAML file. Raises `InputError` for one that is not, or for other names or values."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{str(path)!r} cannot be read as YAML ({error}).") from None
        options = {option.name: option for option in self.options}
        if not isinstance(values, dict):
            raise InputError(f"{str(path)!r} should hold options by name, such as `batch: {self.recipe.batch}`.")
        for name in values:
            if name not in options:
                near = difflib.get_close_matches(str(name), options, 3)
                hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(options)}."
                raise InputError(f"{str(path)!r} sets {name!r}, which `train {self.name}` does not have. {hint}")
        return {name: options[name].check(name, value) for name, value in values.items() if value is not None}

    def start(
        self,
        output: Path,
        limit: Limit,
        report: Callable[[Progress], None] = lambda progress: None,
        between: Callable[[], bool] | None = None,
        progress: Callable[[str, float | None], None] = lambda message, fraction: None,
        **values: Any,
    ) -> State:
        """Train or resume with options by their names; one that is None or missing has its default.

        `report` and `between` are those of `loop.train`; `progress` hears what is done ahead of the first step, and may
        raise to cancel. Raises `InputError` for data that cannot be read and for a batch that `accumulate` does not
        divide, and what `train` raises.
        """
        values = {name: value for name, value in values.items() if value is not None}
        values = self.defaults(values) | values
        recipe = replace(self.recipe, **{name: values.pop(name) for name in _RECIPE if name in values})
        if recipe.batch % recipe.accumulate:
            raise InputError(f"batch ({recipe.batch}) should be a multiple of accumulate ({recipe.accumulate}).")
        data = self._function(self.reader)(values.pop("data"), values.pop("size"), recipe.seed)
        changed: dict[str, Any] = {into: values.pop(name) for name, into in _INTERVALS.items() if name in values}
        if changed:
            values["intervals"] = replace(self.intervals, **changed)
        if between is not None:
            values["between"] = between
        if self.teaches:
            values["progress"] = progress
        return self.train(data, output, limit, recipe, report, **values)

    def train(
        self,
        data: Any,
        output: Path,
        limit: Limit,
        recipe: Recipe | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        intervals: Intervals | None = None,
        between: Callable[[], bool] = lambda: True,
        **own: Any,
    ) -> State:
        """Train or resume: `output` gets the run's parts of a checkpoint, or its file, and `states` the rest.

        `own` goes to the builder. Returns the state. Raises `CheckpointNotFoundError` where something in `needs` is
        missing, and what `loop.train` raises.
        """
        from .. import ops
        from .loop import train

        recipe = recipe or self.recipe
        with ops.use("learning"):
            task = self.build(data, output, recipe, **own)
            return train(task, recipe, limit, self.states(output), report, intervals or self.intervals, between)

    def build(self, data: Any, output: Path, recipe: Recipe, **own: Any) -> Task:
        """The task to train, from this run's builder."""
        return self._function(self.builder)(data, output, recipe, **own)

    @staticmethod
    def _function(place: str) -> Callable[..., Any]:
        module, _, name = place.partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)


# --- Options of the runs that teach a model something

_MODEL = Option("model", FilePath(), "the model to teach: a name, folder, file or hub id", "postcards-tiny", "MODEL")
_TRIGGER = Option(
    "trigger", Text(), "a word that stands for the subject, put in front of captions without it", None, "WORD"
)
_CAPTION = Option("caption", Text(), "one caption for all pictures, in place of their own", None, "TEXT")
_LOW_RANK = (
    Option("rank", Whole(1, 1024), "rank of the change: larger files, which can hold more", 16),
    Option("alpha", Number(0.001, 1e4), "the change is multiplied by alpha / rank (default: the rank)", None, "A"),
    Option(
        "layers", Choice(("attention", "cross-attention", "transformer")), "layers of the U-Net", "transformer", "NAME"
    ),
    Option("convolutions", Flag(), "change the U-Net's convolutions too (LoCon)", False, "true|false", rare=True),
    Option("text_encoders", Flag(), "change the text encoders too", False, "true|false"),
)
_PICTURES = (
    Option("buckets", Flag(), "keep aspect ratios; false: squares from the centre", True, "true|false", rare=True),
    Option("flip", Flag(), "also learn from mirrored pictures", True, "true|false"),
    Option("drop_captions", Number(0, 1), "share of the examples without a caption", 0.1, "SHARE", rare=True),
)
_LOSS = (
    Option("min_snr", Number(0, 1000), "gamma of min-SNR weighting; 0: none", 5.0, "GAMMA", rare=True),
    Option("offset_noise", Number(0, 1), "strength of noise that is the same all over a picture", 0.0, "S", rare=True),
)
_MEMORY = (
    Option(
        "precision",
        Choice(PRECISIONS),
        "of the computation; what is learnt is kept in float32",
        "auto",
        "TYPE",
        rare=True,
    ),
    Option(
        "recompute", Flag(), "gradient checkpointing: less memory, a third more time", False, "true|false", rare=True
    ),
    Option(
        "average_decay",
        Number(0, 0.99999),
        "of the average of the weights that is saved; 0: none",
        0.98,
        "R",
        rare=True,
    ),
)
_SAMPLES = (
    Option("sample", Text(), "what sample sheets show, with | between texts (default: captions)", None, "TEXT"),
    Option("samples", Whole(0, 16), "pictures in a sample sheet; 0: none", 4),
    Option("sample_every", Whole(0, 10**6), "steps between two sheets; 0: only one at the end", 0),
)
_FORMAT = Option(
    "format", Choice(("kohya", "diffusers")), "how the file's keys are written", "kohya", "NAME", rare=True
)
_PRIOR = (
    Option("class_caption", Text(), "what the subject is, without its word; with | between several", None, "TEXT"),
    Option("class_pictures", Whole(0, 10_000), "pictures of the class, which the model paints itself", 50),
    Option("prior_weight", Number(0, 100), "how much the class counts", 1.0, "W", rare=True),
    Option("full", Flag(), "change all of the U-Net and write a whole model", False, "true|false", rare=True),
)
_WORD = (
    Option("vectors", Whole(1, 64), "vectors that the word stands for", 4),
    Option("initial", Text(), "words whose vectors it begins from (default: the mean of all)", None, "TEXT"),
)
# What a narrow U-Net knows of shapes is in its convolutions (docs/benchmarks.md#teaching).
_NARROW: dict[str, Any] = {"learning_rate": 1e-3, "convolutions": True, "text_encoders": True}
_ALIKE: dict[str, Any] = {
    "teaches": True,
    "data_help": "a folder of pictures, with captions in .txt files of the same names or in metadata.jsonl",
    "reader": "teaching.pictures:open_folder",
    "sizes": Whole(64, 2048, 64),
    "intervals": Intervals(report=10, look=math.inf),
}  # what the three rows have in common

RUNS = {
    run.name: run
    for run in (
        Run(
            name="vae",
            title="VAE",
            help="an autoencoder, from scratch",
            builder="vae:new_task",
            recipe=Recipe(batch=4, learning_rate=1e-3, warm_up=100),
        ),
        Run(
            name="diffusion",
            title="text encoder and U-Net",
            help="a text encoder and a U-Net, from scratch, on the latents of a VAE",
            builder="diffusion:new_task",
            recipe=Recipe(batch=16, learning_rate=7e-4, warm_up=200, average_decay=0.998),
            needs=("vae",),
            own=(
                Option(
                    "vae", FilePath(), "the vae/ folder to train with (default: the one in --output)", metavar="DIR"
                ),
            ),
        ),
        Run(
            name="decoder",
            title="VAE decoder",
            help="the decoder of a trained VAE, whose latents stay as they are",
            builder="vae:decoder_task",
            recipe=Recipe(batch=4, learning_rate=5e-4, warm_up=100),
            needs=("vae",),
        ),
        Run(
            name="distil",
            title="student of few steps",
            help="a U-Net that needs half of its teacher's steps, and one row where guidance needs two",
            builder="distil_run:new_task",
            recipe=Recipe(batch=16, learning_rate=3e-4, warm_up=50, average_decay=0.995, weight_decay=0.0),
            own=(
                Option(
                    "teacher",
                    Text(),
                    "a model that predicts v, or the student of an earlier halving: a name or a folder",
                    "postcards-tiny",
                    "MODEL",
                ),
                Option("teacher_steps", Whole(2, 1000), "DDIM steps of the teacher", 32),
                Option("student_steps", Whole(1, 500), "DDIM steps of the student", 16),
                Option("least_guidance", Number(0, 100), "the smallest guidance weight that it learns", 1.0, "W"),
                Option("guidance", Number(0, 100), "the weight that it learns most often, its default", 5.0, "W"),
                Option("most_guidance", Number(0, 100), "the largest weight", 8.0, "W"),
            ),
        ),
        Run(
            name="clip",
            title="image and text encoder",
            help="an image encoder and a text encoder for captions, from scratch, by the contrastive loss",
            builder="contrastive:new_task",
            recipe=Recipe(batch=128, learning_rate=1e-3, warm_up=100, weight_decay=0.05, average_decay=0.998),
            size=64,
            sizes=Whole(16, 1024, 16),
        ),
        Run(
            name="classifier",
            title="classifier of noisy latents",
            help="a classifier of noisy latents, from scratch, on the latents of a VAE",
            builder="classifier:new_task",
            recipe=Recipe(batch=64, learning_rate=2e-3, warm_up=100, weight_decay=0.05, average_decay=0.998),
            own=(
                Option("vae", FilePath(), "the vae/ folder to train with (default: the embedded one)", metavar="DIR"),
                Option(
                    "widths", Wholes(8, 1024, 8), "channels at full size, half, a quarter ...", (40, 80, 112), "N,N,N"
                ),
            ),
            data_help="postcards, painted as they are needed, or a folder with a subfolder of pictures for each kind",
            reader="attributes:open_attributed",
        ),
        Run(
            name="sharp",
            title="sharper VAE decoder",
            help="the decoder of a trained VAE against a discriminator, for sharp edges",
            builder="sharp:sharp_task",
            recipe=Recipe(batch=4, learning_rate=3e-4, warm_up=50, beta_1=0.5, clip=100.0),
            own=(
                Option(
                    "vae", FilePath(), "the vae/ folder to begin with (default: the one in --output)", metavar="DIR"
                ),
                Option("gan_weight", Number(0, 100), "times the adaptive weight of the discriminator", 0.15, "W"),
                Option("perceptual_weight", Number(0, 100), "weight of the perceptual loss", 0.5, "W"),
                Option("alone", Whole(0, 10**6), "steps that the discriminator learns alone at first", 100),
                Option("share", Number(0, 1), "mix the weights with this much of the trained ones", 1.0, "S"),
                Option("decoder_only", Flag(), "write the decoder without its encoder", False, "true|false"),
            ),
        ),
        Run(
            name="ddpm",
            title="diffusion model in pixels",
            help="a small diffusion model in pixels, from scratch, as in the first paper (Ho et al. 2020)",
            builder="ddpm_run:new_task",
            recipe=Recipe(batch=32, learning_rate=1e-3, warm_up=200, average_decay=0.998),
            size=28,
            own=(
                Option(
                    "widths", Wholes(8, 1024, 8), "channels at full size, half, a quarter ...", (24, 48, 48), "N,N,N"
                ),
                Option("timesteps", Whole(2, 10_000), "steps of noise", 1000),
                Option("beta_start", Number(0, 1), "noise of the first step", 1e-4, "B"),
                Option("beta_end", Number(0, 1), "noise of the last step", 0.02, "B"),
                Option("labelled", Flag(), "learn the kinds too: digits, or subfolders", True, "true|false"),
            ),
            data="digits",
            data_help="digits, drawn as they are needed, or a folder of pictures, in subfolders by kind",
            reader="labelled:open_labelled",
            sizes=Whole(8, 256, 4),
        ),
        Run(
            name="lora",
            title="LoRA",
            help="a LoRA: teach a model a subject or a style from pictures",
            builder="teaching.lora:new_task",
            recipe=Recipe(batch=4, learning_rate=1e-4, warm_up=20, beta_2=0.999),
            own=(_MODEL, _TRIGGER, _CAPTION, *_LOW_RANK, *_PICTURES, *_LOSS, *_MEMORY, *_SAMPLES, _FORMAT),
            narrow=_NARROW,
            **_ALIKE,
        ),
        Run(
            name="dreambooth",
            title="DreamBooth",
            help="a subject, in a LoRA, with pictures of its class that keep the model as it is",
            builder="teaching.dreambooth:new_task",
            recipe=Recipe(batch=4, learning_rate=1e-4, warm_up=20, beta_2=0.999),
            own=(_MODEL, _TRIGGER, _CAPTION, *_PRIOR, *_LOW_RANK, *_PICTURES, *_LOSS, *_MEMORY, *_SAMPLES, _FORMAT),
            narrow=_NARROW,
            **_ALIKE,
        ),
        Run(
            name="inversion",
            title="textual inversion",
            help="a word for what pictures show (textual inversion); the model stays as it is",
            builder="teaching.inversion:new_task",
            recipe=Recipe(batch=4, learning_rate=5e-3, warm_up=20, beta_2=0.999, weight_decay=0.0),
            own=(_MODEL, _CAPTION, *_WORD, *_PICTURES, *_LOSS, *_MEMORY, *_SAMPLES, _FORMAT),
            **_ALIKE,
        ),
    )
}
