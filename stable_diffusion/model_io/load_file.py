"""A single file in the original layout -> modules, tokenizers and configurations, without conversion on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import families
from ..backend import cpu_threads, mx, nn
from ..clip import CLIPTextModel
from ..config import AutoencoderConfig, CLIPTextConfig, Config, SchedulerConfig, UNetConfig
from ..errors import ConfigError, UnsupportedCheckpointError, WeightsError
from ..text.tokenizer import Tokenizer
from ..unet import UNet
from ..vae import Autoencoder
from . import ldm, names
from .checkpoint import Checkpoint, CheckpointWarning, assemble, vae_dtype
from .describe import Description, describe_open, has_prefix, read_original_config, take_averages
from .hub import Progress
from .name_table import TRANSPOSED, Names
from .strict import Form, Source, add_source, give
from .tensor_file import FLOAT8, Scratch, StoredTensor, TensorFile, float8_values, open_tensors

NUMPY_TYPES = {mx.float32: np.float32, mx.float16: np.float16}


def load_single_file(
    path: Path,
    dtype: mx.Dtype,
    progress: Progress | None = None,
    check_values: bool = False,
    prediction_type: str | None = None,
    half_unet: bool = False,
    other_vae: bool = False,
) -> Checkpoint:
    """Load a checkpoint from a .safetensors, .ckpt or .pt file in the original layout of a known family.

    Tensors are read one per core at a time, and each takes its module's form before the next is read. Averaged weights
    (model_ema.) are ignored, as in diffusers, unless the file holds no others. `prediction_type` overrides the file;
    `half_unet` keeps in float16 those weights of the U-Net that are float16 in the file, whatever the `dtype`;
    `other_vae` reads no VAE's weights, and needs no VAE. Raises subclasses of `CheckpointError` for a file that is cut
    short, of another kind, or does not fit.
    """
    report = progress or (lambda message, fraction: None)
    with open_tensors(path) as file:
        take_averages(file)
        found = describe_open(file)
        _refuse(path, found, other_vae)
        for doubt in () if prediction_type else found.doubts:
            warnings.warn(f"{str(path)!r}: {doubt}", CheckpointWarning, stacklevel=2)
        load = _Loader(file, found, dtype, check_values, report, prediction_type or found.prediction_type)
        unet = load.unet(half_unet)
        vae = load.vae(other_vae)
        text_encoders = [load.text_encoder(part) for part in load.text_parts]
        file.check_unchanged()
    tokenizers = [Tokenizer.clip(encoder.pad_token) for encoder in load.family.text_encoders]
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        if encoder.config.vocab_size < tokenizer.vocab_size:
            raise ConfigError(
                f"{path}: the text encoder knows {encoder.config.vocab_size} tokens, CLIP's vocabulary has "
                f"{tokenizer.vocab_size}; a single file carries no other vocabulary."
            )
    zeros = load.family.zeros_for_empty_prompt
    return assemble(repr(str(path)), found.family, unet, vae, text_encoders, tokenizers, load.scheduler(), zeros)


def _refuse(path: Path, found: Description, other_vae: bool) -> None:
    if not found.family:
        raise UnsupportedCheckpointError(
            f"{str(path)!r} holds {found.kind}; as a model, this engine loads whole checkpoints of {families.IN_WORDS}."
        )
    missing = [part for part in found.missing if not (part == "vae" and other_vae)]
    if missing:
        mend = "give one with --vae FILE (vae=...)" if missing == ["vae"] else "take a file that holds all parts"
        raise WeightsError(
            f"{str(path)!r} is a checkpoint of {found.kind} without its {' and '.join(missing)}; {mend}."
        )


class _Loader:
    """Loads the parts of an open file one by one, reporting progress."""

    def __init__(
        self,
        file: TensorFile,
        found: Description,
        dtype: mx.Dtype,
        check_values: bool,
        report: Progress,
        prediction_type: str,
    ):
        self.file = file
        self.found = found
        self.dtype = dtype
        self.check_values = check_values
        self.report = report
        self.prediction_type = prediction_type
        self.original = read_original_config(file.path)
        self.family = families.get(found.family)
        self.sample_size = ldm.sample_size(self.family, prediction_type, found.size)
        self.text_places = names.text_places(self.family, partial(has_prefix, file.tensors))
        self.parts, unknown = names.split_by_part(file.tensors, self.text_places, self.family)
        if unknown:
            more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
            raise WeightsError(
                f"{file.path} holds tensors that are not known in {found.kind}: {', '.join(sorted(unknown)[:4])}{more}."
            )
        self.text_parts = [part for part in self.parts if part.startswith("text_encoder")]
        self.text_sources = {part: self._text_sources(part) for part in self.text_parts}

    def unet(self, keep_half: bool) -> UNet:
        """The U-Net, with sizes from its tensors."""
        found = self._shapes("unet")
        table = names.original_unet_of(self._checked(names.unet_layout, found))
        shapes = ldm.Shapes.read(found, table)
        pooled = self._text_shapes(self.text_parts[-1]).found.get("text_projection.weight", (None,))[0]
        values = self._checked(ldm.unet_config, shapes, self.family, self.original, self.sample_size, pooled)
        return self._load("unet", UNet, UNetConfig, values, self._sources("unet", table), self.dtype, keep_half)

    def vae(self, without_weights: bool) -> Autoencoder:
        """The autoencoder; `without_weights` only its configuration, the family's usual one if the file has none."""
        if without_weights and "vae" in self.found.missing:
            return Autoencoder(AutoencoderConfig.from_dict(ldm.usual_vae_config(self.family), str(self.file.path)))
        found = self._shapes("vae")
        table = names.original_vae(names.vae_levels(found))
        shapes = ldm.Shapes.read(found, table)
        values = self._checked(ldm.vae_config, shapes, self.family, self.original, self.sample_size)
        sources = self._sources("vae", table)
        config = AutoencoderConfig.from_dict(values, str(self.file.path))
        if without_weights:
            return Autoencoder(config)
        dtype = vae_dtype(self.family.key, config, self.dtype)
        return self._load("vae", Autoencoder, AutoencoderConfig, values, sources, dtype)

    def text_encoder(self, part: str) -> CLIPTextModel:
        """One of the text encoders."""
        values = self._checked(ldm.text_encoder_config, self._text_shapes(part), self.family.encoders[part].kind)
        return self._load(part, CLIPTextModel, CLIPTextConfig, values, self.text_sources[part], self.dtype)

    def scheduler(self) -> SchedulerConfig:
        """The noise schedule of the family."""
        values = ldm.scheduler_config(self.family, self.prediction_type, self.found.zero_terminal_snr, self.original)
        return SchedulerConfig.from_dict(values, str(self.file.path))

    def _load(
        self,
        part: str,
        module: Callable,
        config_type: type[Config],
        values: dict,
        sources: dict[str, Source],
        dtype: mx.Dtype,
        keep_half: bool = False,
    ) -> Any:
        self.report(f"Loading {part}", None)
        model: nn.Module = module(config_type.from_dict(values, f"{self.file.path} ({part})"))
        give(model, sources, f"{self.file.path} ({part})", dtype, self.check_values, cpu_threads(), keep_half)
        return model

    def _text_sources(self, part: str) -> dict[str, Source]:
        return self._sources(part, self._text_names(part))

    def _text_names(self, part: str) -> Names:
        return names.text_encoder(self.text_places[part][1])

    def _text_shapes(self, part: str) -> ldm.Shapes:
        shapes = {target: source.shape for target, source in self.text_sources[part].items()}
        return ldm.Shapes(shapes, self._text_names(part))

    def _shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        return {name: self.file.tensors[key].shape for name, key in self.parts[part].items()}

    def _sources(self, part: str, table: Names) -> dict[str, Source]:
        """Parameter name -> its tensor, or its part of a fused one."""
        sources: dict[str, Source] = {}
        for name, key in self.parts[part].items():
            for place in table.read(name):
                stored = self.file.tensors[key]
                if place.part is not None:
                    stored = self._checked(stored.rows, *place.part)
                add_source(sources, place.ours, source_of(self.file, stored, place.form == TRANSPOSED))
        return sources

    def _checked(self, function: Callable, *arguments: Any) -> Any:
        """Call a function, adding this file's name to its errors."""
        try:
            return function(*arguments)
        except (WeightsError, UnsupportedCheckpointError) as error:
            raise type(error)(f"{self.file.path}: {error}") from None


def source_of(file: TensorFile, stored: StoredTensor, transposed: bool = False) -> Source:
    """A tensor of an open file as the source of a parameter."""

    def read(form: Form) -> mx.array:
        numbers = file.read(stored, file.scratch.array("read", (stored.nbytes,), np.uint8))
        return _formed(numbers.T if transposed else numbers, stored.dtype, form, file.scratch)

    shape = stored.shape[::-1] if transposed else stored.shape
    return Source(f"{file.path}: {stored.key}", stored.key, shape, stored.dtype, read)


def _formed(numbers: np.ndarray, dtype: str, form: Form, scratch: Scratch) -> mx.array:
    """Axes and type changed by numpy in one pass; MLX takes several times as long on a CPU."""
    numbers = numbers.transpose(0, 2, 3, 1) if form.channels_last else numbers.reshape(form.shape)
    if dtype in FLOAT8:
        numbers = float8_values(dtype)[numbers]
    elif dtype == "BF16":  # the upper half of a float32
        bits = scratch.array("bits", form.shape, np.uint32)
        np.copyto(bits, numbers)
        numbers = np.left_shift(bits, 16, out=bits).view(np.float32)
    if numbers.dtype != NUMPY_TYPES[form.dtype] or not numbers.flags.c_contiguous:
        result = scratch.array("formed", form.shape, NUMPY_TYPES[form.dtype])
        with np.errstate(over="ignore"):  # `check_values` finds infinities on request
            np.copyto(result, numbers, casting="unsafe")
        numbers = result
    return mx.array(numbers)
