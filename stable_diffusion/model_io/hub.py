"""Checkpoints of the Hugging Face hub: which files are needed, and fetching those and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import CheckpointNotFoundError, DownloadError
from ..listing import visible

Progress = Callable[[str, float | None], None]  # a message, and the fraction done where it is known

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
KINDS = {"model_index.json": "a checkpoint in diffusers' folder form", "config.json": "a VAE in diffusers' form"}
WEIGHT_STEMS = ("diffusion_pytorch_model", "model")


def cached_folder(repository: str) -> Path | None:
    """The folder of a repository's newest downloaded version, complete or not; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repository, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None


def cached_vae(repository: str) -> Path | None:
    """The folder of a repository that is or holds a VAE, where that has been downloaded; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    for part in ("vae/", ""):
        config = try_to_load_from_cache(repository, f"{part}config.json")
        folder = Path(config).parent if isinstance(config, str) else None
        if folder and any(weight_files([path.name for path in visible(folder)], half) for half in (False, True)):
            return folder
    return None


def download_vae(repository: str, float16: bool, progress: Progress | None = None) -> Path:
    """Fetch the VAE of a repository that is one, or that is a whole checkpoint; as `download`."""
    return _download(repository, lambda names: needed_for_vae(names, float16), "config.json", progress)


def download(repository: str, float16: bool, progress: Progress | None = None) -> Path:
    """Fetch what a checkpoint needs, and return its folder in huggingface_hub's cache (HF_HOME).

    Of a download that was cut off, complete files stay. `progress` may raise to cancel. Raises
    `CheckpointNotFoundError` for a repository that does not exist or is not to be had offline, and `DownloadError`
    where the hub refuses or cannot be reached.
    """
    return _download(repository, lambda names: needed_files(names, float16), "model_index.json", progress)


def _download(
    repository: str, choose: Callable[[Iterable[str]], list[str]], index: str, progress: Progress | None
) -> Path:
    """Fetch the chosen files, among which the `index` should be."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    report = progress or (lambda message, fraction: None)
    try:
        report(f"Looking up {repository}", None)
        info = HfApi().model_info(repository, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = choose(sizes)
        if not any(name.rpartition("/")[2] == index for name in wanted):
            raise CheckpointNotFoundError(f"{repository!r} holds no {index}, so it is not {KINDS[index]}.")
        meter = _Meter(report, f"Downloading {repository}", sum(sizes[name] for name in wanted))
        for name in wanted:
            path = hf_hub_download(repository, name, tqdm_class=meter.bar())
            meter.finish(sizes[name])
        return Path(path).parents[name.count("/")]
    except errors.GatedRepoError:
        raise DownloadError(
            f"{repository!r} asks for its licence to be accepted: do so on its page on the hub, then run "
            f"`hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointNotFoundError(
            f"The hub has no repository {repository!r} (or it is private: then run `hf auth login`). "
            f"Check its spelling."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise CheckpointNotFoundError(
            f"{repository!r} is not downloaded, and HF_HUB_OFFLINE forbids fetching it. Unset HF_HUB_OFFLINE and try "
            f"again with a network, or give the folder of a checkpoint that is on this disk."
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


def needed_files(names: Iterable[str], float16: bool) -> list[str]:
    """Of a repository's files, those that loading reads: configurations, tokenizers, and one set of weights each."""
    names = set(names)
    wanted = ["model_index.json"] if "model_index.json" in names else []
    for component in COMPONENTS:
        files = sorted(name for name in names if name.rpartition("/")[0] == component)
        wanted += [name for name in files if name.endswith((".json", ".txt")) and "safetensors" not in name]
        weights = weight_files([name.rpartition("/")[2] for name in files], float16)
        wanted += [f"{component}/{name}" for name in weights]
    return wanted


def needed_for_vae(names: Iterable[str], float16: bool) -> list[str]:
    """Of a repository's files, the configuration and the weights of the VAE that it holds or is."""
    names = set(names)
    part = "vae/" if "vae/config.json" in names else ""
    own = [name.removeprefix(part) for name in names if name.rpartition("/")[0] == part.rstrip("/")]
    return [part + name for name in (["config.json"] * ("config.json" in own) + weight_files(own, float16))]


def weight_files(names: Iterable[str], float16: bool) -> list[str]:
    """Of a component's files, one complete set of safetensors weights, shards and their index included.

    The fp16 variant is preferred for float16, the plain one otherwise; where only the other is there, it serves.
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
            if index in names and shards:
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
