"""Checkpoints on the Hugging Face hub: which files are needed, and fetching only those."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CheckpointNotFoundError, DownloadError, UnsupportedCheckpointError
from ..listing import visible

Progress = Callable[[str, float | None], None]  # a message, and the fraction done if known

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
OFFERED = ("unet/config.json", SCHEDULER)  # what is fetched with the index to tell a family
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
NETWORKS = ("unet", "vae", *TEXT_ENCODERS)
COMPONENTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either is enough
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LORA = re.compile(r"lora", re.IGNORECASE)
SMALLEST_CHECKPOINT = 1_500_000_000  # bytes of SD 1.x in half precision, rounded down
KINDS = {"model_index.json": "a checkpoint in diffusers' folder form", "config.json": "a VAE in diffusers' form"}
WEIGHT_STEMS = ("diffusion_pytorch_model", "model")


def cached_folder(repository: str) -> Path | None:
    """The folder of a repository's newest downloaded version, complete or not; makes no request."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repository, INDEX)
    return Path(index).parent if isinstance(index, str) else None


def downloaded() -> list[str]:
    """The ids of the repositories in the cache that hold a complete checkpoint, by name; makes no request."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not cache.is_dir():
        return []
    kept = (path for path in cache.glob(f"models--*--*/snapshots/*/{INDEX}"))
    ids = sorted({path.parents[2].name.removeprefix("models--").replace("--", "/") for path in kept})
    found = ((each, cached_folder(each)) for each in ids if REPOSITORY.fullmatch(each))
    return [each for each, folder in found if folder is not None and is_complete(folder)]


def is_complete(folder: Path) -> bool:
    """True if a folder in diffusers' form holds every file that loading it needs, in any precision."""
    return not missing_files(folder)


def missing_files(folder: Path) -> list[str]:
    """What a folder in diffusers' form lacks of the files that loading it needs; `lacking` of the files on disk."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        index = None
    if not names_part(index, "unet"):
        return [INDEX]
    files = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return lacking(index, {path.relative_to(folder).as_posix() for path in files if path.is_file()})


def lacking(index: Any, names: Collection[str]) -> list[str]:
    """What the files `names` lack of those that loading a checkpoint with this model_index.json needs.

    Weights are named by their folder ("unet's weights"); one complete set of them, in any precision, is enough.
    """
    found = []
    for part in NETWORKS:
        if part.startswith("text_encoder") and not names_part(index, part):
            continue
        own = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        found += [f"{part}/config.json"] * ("config.json" not in own)
        found += [] if weight_files(own, float16=False) else [f"{part}'s weights"]
        if part.startswith("text_encoder"):
            folder = part.replace("text_encoder", "tokenizer")
            if not any(all(f"{folder}/{file}" in names for file in files) for files in TOKENIZERS):
                found.append(f"{folder}'s files")
    return found + [SCHEDULER] * (SCHEDULER not in names)


def names_part(index: Any, part: str) -> bool:
    """Whether a model_index.json names a class for a component: ["diffusers", "..."], not [null, null]."""
    value = index.get(part) if isinstance(index, Mapping) else None
    return isinstance(value, list) and bool(value) and bool(value[0])


def cached_vae(repository: str) -> Path | None:
    """The folder of a repository that is or holds a VAE, if it has been downloaded; makes no request."""
    from huggingface_hub import try_to_load_from_cache

    for part in ("vae/", ""):
        config = try_to_load_from_cache(repository, f"{part}config.json")
        folder = Path(config).parent if isinstance(config, str) else None
        if folder and any(weight_files([path.name for path in visible(folder)], half) for half in (False, True)):
            return folder
    return None


def download_vae(repository: str, float16: bool, progress: Progress | None = None) -> Path:
    """Fetch the VAE from a repository that is one or that holds a whole checkpoint; see `download`."""
    return _download(repository, lambda names: needed_for_vae(names, float16), "config.json", progress)


def download(
    repository: str, float16: bool, progress: Progress | None = None, check: Callable[[Path], Any] | None = None
) -> Path:
    """Fetch what a checkpoint needs, and return its folder in huggingface_hub's cache (HF_HOME).

    The index comes first. `check` is called with its folder and may raise, before anything large is fetched; so does
    this function where the repository lacks what loading needs: weights as safetensors above all.
    After an interruption, complete files stay and partial ones are resumed. `progress` may raise to cancel. Raises
    `CheckpointNotFoundError` for a repository that does not exist or is not available offline, and `DownloadError`
    if the hub refuses or cannot be reached.
    """

    def checked(folder: Path, sizes: Mapping[str, int]) -> None:
        _check(repository, folder, sizes, check)

    return _download(repository, lambda names: needed_files(names, float16), INDEX, progress, checked)


@dataclass(frozen=True)
class Offer:
    """What the hub says of a checkpoint before it is downloaded; `folder` holds its configurations alone.

    The sizes are bytes to download, in float32 and in float16.
    """

    repository: str
    folder: Path
    licence: str
    size: int
    size_float16: int


def look_up(repository: str, check: Callable[[Path], Any] | None = None) -> Offer:
    """Ask the hub for a checkpoint, and fetch the few small files that tell its family. Raises as `download`."""
    from huggingface_hub import HfApi, hf_hub_download

    with _in_words(repository, INDEX):
        info = HfApi().model_info(repository, files_metadata=True)
        sizes = _sizes(info)
        _wanted(repository, sizes, lambda names: needed_files(names, False), INDEX)
        for name in (name for name in (INDEX, *OFFERED) if name in sizes):
            path = Path(hf_hub_download(repository, name)).parents[name.count("/")]
            if name == INDEX:
                _check(repository, path, sizes, check)
    full, half = (sum(sizes[name] for name in needed_files(sizes, float16)) for float16 in (False, True))
    return Offer(repository, path, _licence(info), full, half)


def _licence(info: Any) -> str:
    """The licence that a model card names, or "" for one that names none."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    named = (card.get("license_name"), card.get("license"))
    return next((each for each in named if isinstance(each, str) and each), "")


def _sizes(info: Any) -> dict[str, int]:
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _wanted(
    repository: str, sizes: Mapping[str, int], choose: Callable[[Iterable[str]], list[str]], index: str
) -> list[str]:
    """The chosen files. Raises `CheckpointNotFoundError` for a repository without the `index`."""
    wanted = choose(sizes)
    if not any(name.rpartition("/")[2] == index for name in wanted):
        raise CheckpointNotFoundError(
            f"{repository!r} holds no {index}, so it is not {KINDS[index]}.{_advice(repository, sizes)}"
        )
    return wanted


def _download(
    repository: str,
    choose: Callable[[Iterable[str]], list[str]],
    index: str,
    progress: Progress | None,
    check: Callable[[Path, Mapping[str, int]], None] | None = None,
) -> Path:
    """Fetch the chosen files, which have to include the `index`; `check` gets its folder and all files' sizes."""
    from huggingface_hub import HfApi, hf_hub_download

    report = progress or (lambda message, fraction: None)
    with _in_words(repository, index):
        report(f"Looking up {repository}", None)
        sizes = _sizes(HfApi().model_info(repository, files_metadata=True))
        wanted = _wanted(repository, sizes, choose, index)
        meter = _Meter(report, f"Downloading {repository}", sum(sizes[name] for name in wanted))
        for i, name in enumerate(wanted):
            path = hf_hub_download(repository, name, tqdm_class=meter.bar())
            meter.finish(sizes[name])
            folder = Path(path).parents[name.count("/")]
            if check and not i:
                check(folder, sizes)
    return folder


@contextmanager
def _in_words(repository: str, index: str) -> Iterator[None]:
    """Raise huggingface_hub's errors, and those of its network libraries, as ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise DownloadError(
            f"{repository!r} requires its licence to be accepted: do so on its page on the hub, then run "
            f"`hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointNotFoundError(
            f"The hub has no repository {repository!r} (or it is private: then run `hf auth login`). "
            f"Check its spelling."
        ) from None
    except errors.OfflineModeIsEnabled:
        partial = cached_folder(repository) if index == INDEX else None
        lacks = f" completely ({', '.join(missing_files(partial))} missing)" if partial else ""
        raise CheckpointNotFoundError(
            f"{repository!r} is not downloaded{lacks}, and HF_HUB_OFFLINE forbids fetching it. Unset HF_HUB_OFFLINE "
            f"and try again online, or give the folder of a checkpoint on this disk."
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise DownloadError(
            f"{repository!r} could not be downloaded: {_first_line(error)} Check the network and try again; complete "
            f"files stay."
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests"):
            raise DownloadError(f"The hub cannot be reached for {repository!r}: {_first_line(error)}") from error
        raise


def _check(repository: str, folder: Path, sizes: Mapping[str, int], check: Callable[[Path], Any] | None) -> None:
    """Raise what `check` raises of a folder, under the repository's name; and for a repository that lacks files."""
    try:
        if check:
            check(folder)
    except CheckpointError as error:
        raise type(error)(str(error).replace(repr(str(folder)), repr(repository))) from None
    lacks = lacking(json.loads((folder / INDEX).read_text(encoding="utf-8")), sizes)
    if not lacks:
        return
    pickles = sorted(name for name in sizes if name.endswith(".bin") and name.partition("/")[0] in NETWORKS)
    if pickles:
        raise UnsupportedCheckpointError(
            f"{repository!r} has no safetensors weights, only pickles ({', '.join(pickles[:2])}). With diffusers, "
            f"DiffusionPipeline.from_pretrained({repository!r}).save_pretrained('FOLDER') writes a folder that can be "
            f"loaded.{_advice(repository, sizes)}"
        )
    raise UnsupportedCheckpointError(
        f"{repository!r} is incomplete on the hub: {', '.join(lacks)} missing.{_advice(repository, sizes)}"
    )


def _advice(repository: str, sizes: Mapping[str, int]) -> str:
    """How to use the single files that a repository holds, as sentences; "" for a repository without any."""
    single = [name for name in sizes if "/" not in name and name.endswith(SINGLE_FILES)]
    if "config.json" in sizes and weight_files(sizes, float16=False):
        return " It holds a single network; a VAE is used with --vae."
    loras = sorted(name for name in single if LORA.search(name) or "adapter_config.json" in sizes)
    large = sorted(name for name in single if sizes[name] >= SMALLEST_CHECKPOINT)
    if not large and (loras or (single and LORA.search(repository))):
        file = (loras or sorted(single))[0]
        return (
            f" It holds a LoRA: run `hf download {repository} {file} --local-dir loras`, then write "
            f"<lora:{Path(file).stem}:1> into the prompt."
        )
    if large:
        return (
            f" It holds single files ({', '.join(large[:3])}): run `hf download {repository} {large[0]} --local-dir "
            f"models`, then give --model {large[0]}."
        )
    return ""


def needed_files(names: Iterable[str], float16: bool) -> list[str]:
    """The files of a repository that loading reads: configurations, tokenizers, and one set of weights per part."""
    names = set(names)
    wanted = [INDEX] if INDEX in names else []
    for component in COMPONENTS:
        files = sorted(name for name in names if name.rpartition("/")[0] == component)
        wanted += [name for name in files if name.endswith((".json", ".txt")) and "safetensors" not in name]
        weights = weight_files([name.rpartition("/")[2] for name in files], float16)
        wanted += [f"{component}/{name}" for name in weights]
    return wanted


def needed_for_vae(names: Iterable[str], float16: bool) -> list[str]:
    """The configuration and weights of the VAE that a repository holds or is."""
    names = set(names)
    part = "vae/" if "vae/config.json" in names else ""
    own = [name.removeprefix(part) for name in names if name.rpartition("/")[0] == part.rstrip("/")]
    return [part + name for name in (["config.json"] * ("config.json" in own) + weight_files(own, float16))]


def weight_files(names: Iterable[str], float16: bool) -> list[str]:
    """One complete set of safetensors weights among a component's files, shards and their index included.

    The fp16 variant is preferred for float16, the plain one otherwise; either serves if it is the only one.
    """
    names = set(names)
    for stem in WEIGHT_STEMS:
        for variant in (".fp16", "") if float16 else ("", ".fp16"):
            if f"{stem}{variant}.safetensors" in names:
                return [f"{stem}{variant}.safetensors"]
            index = f"{stem}.safetensors.index{variant}.json"
            shard = re.compile(
                rf"{stem}{re.escape(variant)}-\d+-of-\d+\.safetensors|{stem}-\d+-of-\d+{variant}\.safetensors"
            )
            shards = sorted(name for name in names if shard.fullmatch(name))
            if index in names and shards and len(shards) == int(re.findall(r"-of-(\d+)", shards[0])[0]):
                return [index, *shards]
    return []


class _Meter:
    """Adds up the bytes of several downloads, one after another, into one fraction."""

    def __init__(self, report: Progress, message: str, total: int):
        self.report = report
        self.message = message
        self.total = max(total, 1)
        self.done = 0  # of the files that are complete
        self.current = 0

    def bar(self):
        """A tqdm class for huggingface_hub that draws nothing and reports here."""
        from tqdm.auto import tqdm

        meter = self
        meter.current = 0

        class Bar(tqdm):
            def __init__(self, *args, **kwargs):
                kwargs.pop("name", None)
                meter.advance(kwargs.get("initial") or 0)
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n=1):
                meter.advance(n or 0)

        return Bar

    def advance(self, size: float) -> None:
        self.current += int(size)
        self.report(self.message, min((self.done + self.current) / self.total, 1.0))

    def finish(self, size: int) -> None:
        self.done += size
        self.current = 0
        self.report(self.message, min(self.done / self.total, 1.0))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
