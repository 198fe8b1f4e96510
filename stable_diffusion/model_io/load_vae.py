"""An autoencoder on its own, to replace a checkpoint's: from a folder, a file, or the hub.

A folder may hold a decoder alone, which is used with the checkpoint's own encoder: for the same latents, a picture that
is decoded differently.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backend import mx, nn
from ..config import AutoencoderConfig, AutoencoderTinyConfig
from ..errors import CheckpointNotFoundError, ConfigError, UnsupportedCheckpointError, WeightsError
from ..families import FAMILIES
from ..listing import visible
from ..places import embedded_vaes, expanded
from ..vae import Autoencoder
from ..vae_tiny import TinyAutoencoder
from . import hub, ldm, moved, names
from .checkpoint import vae_dtype
from .load_file import source_of
from .load_folder import read_json
from .strict import Source, add_source, give, load_weights, read_header
from .tensor_file import TensorFile, open_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
DECODER_PARTS = ("decoder.", "post_quant_conv.")
# TAESD for each family's latents, by their scaling factor and channels.
TINY = {
    (family.scaling_factor, family.latent_channels): family.tiny_vae for family in FAMILIES.values() if family.tiny_vae
}


def load_vae(
    source: str | os.PathLike,
    own: AutoencoderConfig,
    family: str,
    dtype: mx.Dtype,
    progress: hub.Progress | None = None,
    encoder: Autoencoder | None = None,
) -> Autoencoder | TinyAutoencoder:
    """Load an autoencoder for a checkpoint whose own one is configured as `own`.

    `source` is an embedded VAE's name, a folder in diffusers' form (of the autoencoder, or of a whole pipeline), a file
    in diffusers' or the original layout (possibly a whole checkpoint), or a hub id. The scaling factor is the
    checkpoint's unless the source has one. A decoder alone (`is_decoder`) gets the `encoder` of the checkpoint's own
    autoencoder. Raises subclasses of `CheckpointError`.
    """
    path = locate_vae(source, dtype == mx.float16, progress)
    (progress or (lambda message, fraction: None))("Loading the VAE", None)
    if encoder is not None and is_decoder(path):
        return _load_decoder(path, encoder, family, dtype)
    vae = _load_folder(path, own, family, dtype) if path.is_dir() else _load_file(path, own, family, dtype)
    if vae.config.latent_channels != own.latent_channels:
        raise ConfigError(
            f"The VAE {os.fspath(source)!r} is for latents of {vae.config.latent_channels} channels, this checkpoint's "
            f"have {own.latent_channels}. Choose one of the same family."
        )
    return vae


def is_decoder(source: str | os.PathLike) -> bool:
    """True for a folder that holds a decoder without an encoder, as `train sharp --decoder-only true` writes it."""
    name = os.fspath(source)
    file = (embedded_vaes().get(name) or expanded(name)) / WEIGHTS
    if not file.is_file():
        return False
    keys = list(read_header(file))
    return bool(keys) and all(key.startswith(DECODER_PARTS) for key in keys)


def _load_decoder(folder: Path, own: Autoencoder, family: str, dtype: mx.Dtype) -> Autoencoder:
    """The decoder in a folder with the encoder of a checkpoint's `own` autoencoder, which it has to fit."""
    config = AutoencoderConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    if dataclasses.replace(config, sample_size=own.config.sample_size) != own.config:
        raise ConfigError(
            f"The VAE {folder.name!r} is a decoder for the latents of another model: it has channels "
            f"{', '.join(map(str, config.block_out_channels))} and a scaling factor of {config.scaling_factor}, this "
            f"checkpoint's own VAE {', '.join(map(str, own.config.block_out_channels))} and "
            f"{own.config.scaling_factor}. Choose it with the model that it was trained for."
        )
    model = Autoencoder(config)
    parts = nn.Module()
    for name in DECODER_PARTS:
        parts[name.rstrip(".")] = model[name.rstrip(".")]
    load_weights(parts, [folder / WEIGHTS], names.VAE, vae_dtype(family, config, dtype))
    model.encoder = own.encoder
    if "quant_conv" in own:
        model.quant_conv = own.quant_conv
    return model


def locate_vae(source: str | os.PathLike, float16: bool, progress: hub.Progress | None = None) -> Path:
    """The file, or the folder with config.json, fetched from the hub if necessary."""
    name = os.fspath(source)
    path = expanded(name)
    if embedded := embedded_vaes().get(name):
        return embedded
    if name and path.exists():
        return _component(path) if path.is_dir() else path
    if not name.startswith((".", "/", "~")) and hub.REPOSITORY.fullmatch(name):
        folder = hub.cached_vae(name)
        if folder is None and (new := moved.now_at(name)):
            warnings.warn(moved.note(name), stacklevel=4)
            return locate_vae(new, float16, progress)
        return _component(folder or hub.download_vae(name, float16, progress))
    raise CheckpointNotFoundError(f"There is no VAE {name!r}: no folder, no file, and no hub id (organisation/name).")


def _component(folder: Path) -> Path:
    for candidate in (folder, folder / "vae"):
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointNotFoundError(f"The folder {str(folder)!r} holds no VAE: neither config.json nor vae/config.json.")


def _load_folder(folder: Path, own: AutoencoderConfig, family: str, dtype: mx.Dtype) -> Autoencoder | TinyAutoencoder:
    present = [path.name for path in visible(folder)]
    weights = hub.weight_files(present, float16=dtype == mx.float16)
    files = [folder / name for name in weights if name.endswith(".safetensors")]
    if not files:
        raise WeightsError(f"{folder} holds no safetensors weights; it holds {', '.join(present)}.")
    config = _config(folder / "config.json", own)
    if isinstance(config, AutoencoderTinyConfig):
        tiny = TinyAutoencoder(config)
        load_weights(tiny, files, names.SAME, dtype)
        return tiny
    model = Autoencoder(config)
    load_weights(model, files, names.VAE, vae_dtype(family, config, dtype))
    return model


def _config(file: Path, own: AutoencoderConfig) -> AutoencoderConfig | AutoencoderTinyConfig:
    values = read_json(file)
    kind = values.get("_class_name", "AutoencoderKL") if isinstance(values, Mapping) else "AutoencoderKL"
    if kind == "AutoencoderTiny":
        return AutoencoderTinyConfig.from_dict(values, str(file))
    if kind != "AutoencoderKL":
        raise UnsupportedCheckpointError(
            f"{file} is of an {kind}; this engine builds AutoencoderKL and AutoencoderTiny."
        )
    config = AutoencoderConfig.from_dict(values, str(file))
    # Files from before diffusers 0.12 lack it; the checkpoint's then applies, since the VAE is meant for its latents.
    return config if "scaling_factor" in values else dataclasses.replace(config, scaling_factor=own.scaling_factor)


def cached_tiny_vae(own: AutoencoderConfig, family: str, dtype: mx.Dtype) -> TinyAutoencoder | None:
    """The tiny VAE for a checkpoint's latents, if it has been downloaded; makes no request."""
    repository = TINY.get((own.scaling_factor, own.latent_channels))
    folder = hub.cached_vae(repository) if repository else None
    vae = _load_folder(folder, own, family, dtype) if folder else None
    return vae if isinstance(vae, TinyAutoencoder) else None


def _load_file(path: Path, own: AutoencoderConfig, family: str, dtype: mx.Dtype) -> Autoencoder:
    with open_tensors(path) as file:
        keys = _own_keys(file)
        sources = _sources(file, keys)
        shapes = ldm.Shapes({target: source.shape for target, source in sources.items()}, names.SAME)
        config = _config_from_shapes(shapes, own, path)
        model = Autoencoder(config)
        give(model, sources, str(path), vae_dtype(family, config, dtype))
        file.check_unchanged()
    return model


def _own_keys(file: TensorFile) -> dict[str, str]:
    """The autoencoder's keys without their prefix -> the file's keys."""
    keys = names.vae_keys(file.tensors)
    if not keys:
        raise UnsupportedCheckpointError(f"{file.path} holds no VAE: it has no tensor decoder.conv_in.weight.")
    return keys


def _sources(file: TensorFile, keys: Mapping[str, str]) -> dict[str, Source]:
    levels = names.vae_levels(keys)
    table = names.original_vae(levels) if levels else names.VAE
    sources: dict[str, Source] = {}
    for name, key in keys.items():
        for place in table.read(name):
            add_source(sources, place.ours, source_of(file, file.tensors[key]))
    return sources


def _config_from_shapes(shapes: ldm.Shapes, own: AutoencoderConfig, path: Path) -> AutoencoderConfig:
    """The checkpoint's own configuration with the sizes of this file's tensors."""
    whole = "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes
    if not whole or len(shapes.found["decoder.conv_in.weight"]) != 4:
        raise UnsupportedCheckpointError(f"{path} holds no whole VAE: its encoder is missing, or damaged.")
    try:
        sizes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in ldm.vae_sizes(shapes).items()
        }
        config = dataclasses.replace(own, **sizes)
        config.check()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (WeightsError, UnsupportedCheckpointError) as error:
        raise type(error)(f"{path}: {error}") from None
    return config
