"""A loaded checkpoint: its networks with LoRAs and embeddings, pictures <-> latents, and its memory."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from . import backend, checks, memory, ops
from .adapters.embeddings import Embeddings, with_embeddings
from .adapters.lora import Networks
from .adapters.overlay import Choice, Loras, Overlay
from .backend import mx, nn
from .config import AutoencoderConfig
from .diffusion.call import Call, check_size, check_tiling
from .diffusion.enlarging import enlarged, margin
from .diffusion.network import Conditioning, DenoisingNetwork, PictureAutoencoder, TextReader
from .diffusion.noise import NoiseStream
from .diffusion.schedule import contradictions, with_zero_terminal_snr
from .diffusion.start import FirstPass
from .diffusion.tiled import Tiles, folded, unfolded
from .errors import InputError, NotFiniteError
from .finite import all_finite, blame_latents, blame_vae, is_finite, is_half, one_colour
from .hires import LATENT_MODES
from .hires_upscalers import upscaler_named
from .model_io import hashes
from .model_io.checkpoint import Checkpoint, vae_dtype
from .model_io.hub import Progress
from .model_io.load_vae import cached_tiny_vae, is_decoder, load_vae
from .model_io.locate import load, locate
from .model_io.quantised import check_bits, quantisation_of, quantise
from .pictures import TILINGS
from .pictures.arrays import ONE_COLOUR, to_picture
from .pictures.reading import as_input
from .places import expanded
from .text.conditioning import TextConditioner
from .text.prompt import A1111, Blend, as_text, check_text
from .text.tags import Strength
from .tiles import bands_of_tiles, closed, extended, in_tiles
from .upscaling.enlarging import Enlarger
from .vae_tiny import TinyAutoencoder

DEFAULT_MODEL = "postcards-tiny"

M = TypeVar("M", bound="LoadedModel")


class LoadedModel:
    """The networks of a `StableDiffusion`, whose docstring explains the arguments."""

    path: Path | None = None  # the folder or file that it was loaded from
    _file: Path | None = None  # the same if it is a single file
    _other_vae: str | os.PathLike | None = None  # replaces its own
    vae_precision: str | None = None  # "float32" once the VAE has overflowed in float16
    _asked: Mapping[str, Any] = MappingProxyType({})  # for the record: how it differs from its file

    def __init__(
        self,
        model: str | os.PathLike = DEFAULT_MODEL,
        float16: bool | None = None,
        progress: Progress | None = None,
        check_weights: bool = False,
        bits: int | None = None,
        prediction_type: str | None = None,
        vae: str | os.PathLike | None = None,
        low_memory: bool = False,
        zero_terminal_snr: bool | None = None,
    ):
        check_bits(bits)
        if zero_terminal_snr not in (None, True, False):
            raise InputError(f"zero_terminal_snr = {zero_terminal_snr!r} should be true, false or None.")
        if low_memory:
            backend.keep_little_memory()
        float16 = backend.default_float16() if float16 is None else float16
        dtype = mx.float16 if float16 else mx.float32
        name, path = locate(model, float16, progress)
        half_unet = low_memory and not backend.has_gpu()
        without_vae = vae is not None and not is_decoder(vae)
        checkpoint = load(path, dtype, progress, check_weights, prediction_type, half_unet, without_vae)
        if zero_terminal_snr is not None:
            scheduler = with_zero_terminal_snr(checkpoint.scheduler, zero_terminal_snr)
            checkpoint = dataclasses.replace(checkpoint, scheduler=scheduler)
        if bits is not None:
            quantise(checkpoint.unet, checkpoint.text_encoders, bits, progress)
        own = checkpoint.vae
        other = None if vae is None else load_vae(vae, own.config, checkpoint.family, dtype, progress, own)
        self._set_up(checkpoint, name, float16, low_memory, other, changed=bits is not None)
        self._asked = {"bits": bits, "prediction_type": prediction_type, "zero_terminal_snr": zero_terminal_snr}
        self._other_vae = vae
        self.path = path
        if path.is_file():
            self._file = path

    @classmethod
    def from_checkpoint(
        cls: type[M],
        checkpoint: Checkpoint,
        name: str,
        float16: bool | None = None,
        low_memory: bool = False,
        dtype: mx.Dtype | None = None,
    ) -> M:
        """Paint with networks that already exist and implement the protocols of diffusion/network.py.

        `float16` is their precision, or `dtype` for one that is neither float16 nor float32.
        """
        sd = cls.__new__(cls)
        half = backend.default_float16() if float16 is None else float16
        sd._set_up(checkpoint, name, half if dtype is None else dtype == mx.float16, low_memory)
        sd._dtype = dtype or sd._dtype
        return sd

    def _set_up(
        self,
        checkpoint: Checkpoint,
        name: str,
        float16: bool,
        low_memory: bool,
        vae: PictureAutoencoder | None = None,
        changed: bool = False,
    ) -> None:
        """Take the parts; `changed` says that weights differ from the files."""
        backend.prepare()
        self.name = name
        self.family = checkpoint.family
        self.float16, self.low_memory = float16, low_memory
        self._dtype = mx.float16 if float16 else mx.float32
        self.default_size = checkpoint.default_size
        self.scheduler_config = checkpoint.scheduler
        self.notes = tuple(contradictions(checkpoint.scheduler))
        for note in self.notes:
            warnings.warn(note, stacklevel=3)
        self.tokenizer = next(iter(checkpoint.tokenizers), None)
        self._unet: DenoisingNetwork = checkpoint.unet
        self._vae: PictureAutoencoder = checkpoint.vae if vae is None else vae
        self._own_vae_config = checkpoint.vae.config
        self._conditioner: TextReader = checkpoint.reader or TextConditioner(
            checkpoint.tokenizers,
            checkpoint.text_encoders,
            xl=checkpoint.pooled,
            zeros_for_none=checkpoint.force_zeros_for_empty_prompt,
        )
        quantisation = quantisation_of(checkpoint.unet)
        self.bits = quantisation.bits if quantisation else None
        parts: dict[str, nn.Module] = {} if vae is not None else {"vae": checkpoint.vae}
        if not changed:
            parts |= {name: part for name, part in checkpoint.parts.items() if name != "vae"}
        self._unloader = memory.Unloader(
            (self._unet, self._vae, *self._conditioner.encoders),
            [(parts[name], reload) for name, reload in checkpoint.reloads.items() if name in parts],
        )
        # If a step takes seconds, the tenths for reloading text encoders do not matter.
        self._unloads_encoders = low_memory or (not backend.has_gpu() and self._unloader.weights >= memory.LARGE)
        self._painting = 0  # generations under way
        self._overlay = Overlay(Networks(checkpoint.unet, checkpoint.text_encoders), self.family)
        self._loras: tuple[Choice, ...] = ()
        self._embeddings = Embeddings(self.family)

    @property
    def lora_folders(self) -> list[Path]:
        """Where LoRAs are found by name: loras/ next to the program, $STABLE_DIFFUSION_LORAS; add your own."""
        return self._overlay.folders

    @property
    def embedding_folders(self) -> list[Path]:
        """Where embeddings are found by name: embeddings/, $STABLE_DIFFUSION_EMBEDDINGS; add your own."""
        return self._embeddings.folders

    @property
    def loras(self) -> list[tuple[str, Strength]]:
        """The LoRAs of `set_loras`: names and strengths."""
        return [(choice.name, choice.strength) for choice in self._loras]

    def set_loras(self, loras: Loras) -> None:
        """Apply LoRAs (LoCon, LoHa, LoKr, DoRA), replacing the previous ones; {} removes all.

        `loras` is {name or file: strength}, or a list of (name or file, strength); a strength is a number, or two:
        (for the U-Net, for the text encoders). A prompt's tags, `<lora:name:0.8>`, are added to these for one
        generation. The checkpoint's own weights are kept, so removal is exact and free.

        Raises `CheckpointNotFoundError` for a name that is in no folder, `UnsupportedCheckpointError` for a LoRA of
        another family, `WeightsError` for a damaged one; then nothing has changed. Warns with `AdapterWarning` about
        tensors that match nothing.
        """
        choices = self._overlay.choose(loras)
        self._unet, self._conditioner = self._laid_over(choices, self._conditioner)
        self._loras = choices

    def encode_text(self, text: str | Blend, clip_skip: int | None = None, prompt_language: str = A1111) -> mx.array:
        """A text -> the hidden states (1, 77 n, D) that the U-Net attends to; lazy. Raises `InputError`.

        Weights and BREAK are read; schedules and AND, which need a generation, are taken as text.
        """
        return self.condition([text], clip_skip, prompt_language)[0].text

    def condition(
        self, texts: Sequence[str | Blend], clip_skip: int | None = None, prompt_language: str = A1111
    ) -> list[Conditioning]:
        """Texts -> all that the network is given of each, padded to one length; lazy. As `encode_text`."""
        found = [as_text(check_text("text", text), prompt_language) for text in texts]
        reader = self._conditioner.replaced(clip_skip=clip_skip)
        reader = self._with_embeddings([piece.text for text in found for piece in text.pieces], reader)
        return reader.read(found)

    @property
    def network(self) -> DenoisingNetwork:
        """The denoising network without LoRAs of single texts, for those who want to look inside."""
        return self._unet

    @property
    def autoencoder(self) -> PictureAutoencoder:
        """Between latents and pictures, for those who want to look inside, or to differentiate."""
        return self._vae

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, 4 for Stable Diffusion."""
        return self._vae.config.latent_channels

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side, 8 for Stable Diffusion."""
        return self._vae.config.downscale

    @property
    def size_multiple(self) -> int:
        """Width and height are multiples of it: pixels per latent times the network's patch."""
        return self.downscale * self._unet.patch

    @property
    def latent_space(self) -> tuple[Any, ...]:
        """Equal for models that understand each other's latents: the shape and the scaling of their autoencoders'."""
        config = self._own_vae_config
        scaling = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        return config.latent_channels, config.downscale, *(getattr(config, name, None) for name in scaling)

    @property
    def inpainting(self) -> bool:
        """True for an inpainting checkpoint, whose network takes picture and mask, and needs both."""
        return self._unet.in_channels == 2 * self.latent_channels + 1

    def decode(self, latents: mx.array, tiling: str = "off") -> mx.array:
        """Latents (B, h, w, latent_channels) -> pictures (B, H, W, 3), float32 in [0, 1], evaluated.

        In blended tiles if a whole picture would not fit into memory. `tiling` is as in `generate_latents`. A VAE that
        overflows in float16 decodes again in float32, and stays so. Warns about that, and about pictures of a single
        colour. Raises `InputError` for another shape, and `NotFiniteError` for NaN and infinite numbers.
        """
        if latents.ndim != 4 or latents.shape[-1] != self.latent_channels:
            raise InputError(
                f"latents of shape {latents.shape} cannot be decoded; (B, h, w, {self.latent_channels}) is expected."
            )
        if self._unloads_encoders:
            mx.eval(latents)
            self._unloader.drop(*([self._unet] if self.low_memory and not self._painting else []))
        if not self._painting:
            backend.end_phase()
        around = TILINGS[check_tiling(tiling)]
        result, finite = self._decoded(latents, around)
        if not finite.all() and is_finite(latents) and self._widen_vae():
            result, finite = self._decoded(latents, around)
        self._check_pictures(latents, result, finite)
        if self.low_memory:
            self._unloader.drop(self._vae)
        return result

    def _decoded(self, latents: mx.array, around: tuple[int, ...]) -> tuple[mx.array, np.ndarray]:
        """Pictures in [0, 1], and which of them were finite before clipping (B,); evaluated."""
        height, width = (side * self.downscale for side in latents.shape[1:3])
        decode = self._vae.decode
        if self._needs.in_tiles(width, height):
            decode = partial(in_tiles, decode, tile=memory.TILE, overlap=memory.OVERLAP, around=around)
            around = ()
        # One by one: memory for one picture, whatever the batch.
        with ops.wrapping(around):
            pictures = [decode(one) for one in mx.split(latents, latents.shape[0])]
        whole = mx.concatenate(pictures).astype(mx.float32)
        result, finite = mx.clip(whole / 2 + 0.5, 0, 1), mx.isfinite(whole).all(axis=(1, 2, 3))
        mx.eval(result, finite)
        return result, np.asarray(finite)

    def _widen_vae(self) -> bool:
        """From now on run an overflowing float16 VAE in float32; False if it is no such VAE."""
        vae = self._vae
        if not isinstance(vae, nn.Module) or not is_half(vae) or not all_finite(vae.parameters()):
            return False
        vae.set_dtype(mx.float32)
        self._unloader.keep(vae)
        self.vae_precision = "float32"
        message = f"The VAE of {self.name!r} overflowed in float16, so it runs in float32 from now on."
        warnings.warn(message, stacklevel=4)
        return True

    def _check_pictures(self, latents: mx.array, result: mx.array, finite: np.ndarray) -> None:
        """Raise `NotFiniteError`, with the `result` if some pictures are `finite`."""
        if not finite.all():
            error = blame_vae(self.name, self._vae) if is_finite(latents) else self._blame_latents()
            if finite.any():
                error.pictures = np.where(finite[:, None, None, None], np.asarray(result), np.nan)
            raise error
        if flat := one_colour(result):
            which = "The picture is" if len(result) == 1 else f"Of {len(result)} pictures {len(flat)} are"
            warnings.warn(f"{which} a single colour. {ONE_COLOUR}", stacklevel=3)

    def _blame_latents(self) -> NotFiniteError:
        choices = self._overlay.choices or self._loras
        encoders = self._overlay.bare.text_encoders or self._conditioner.encoders
        return blame_latents(self.name, self.float16, self._overlay, choices, encoders, self._vae)

    def preview(self, latents: mx.array, tiling: str = "off") -> mx.array:
        """As `decode`, but approximately, by the tiny VAE for these latents (TAESD), if the hub's cache has it."""
        if self._tiny_vae is None:
            return self.decode(latents, tiling)
        with ops.wrapping(TILINGS[check_tiling(tiling)]):
            return mx.clip(self._tiny_vae.decode(latents).astype(mx.float32) / 2 + 0.5, 0, 1)

    @cached_property
    def _tiny_vae(self) -> TinyAutoencoder | None:
        config = self._own_vae_config
        return cached_tiny_vae(config, self.family, self._dtype) if isinstance(config, AutoencoderConfig) else None

    def encode(
        self,
        picture: Any,
        width: int | None = None,
        height: int | None = None,
        seed: int = 0,
        tiling: str = "off",
    ) -> mx.array:
        """A PIL image or uint8 array (H, W, 3), cropped to the size -> its latents (1, h, w, latent_channels); lazy.

        Width, height and `tiling` are as in `generate_latents`; the posterior is sampled with `seed`. Raises
        `InputError` and `PictureError`.
        """
        seed = checks.whole("seed", seed, 0, checks.MAX_SEED)
        width, height = check_size(self, width, height)
        noise = NoiseStream([seed], (height // self.downscale, width // self.downscale, self.latent_channels))
        around = TILINGS[check_tiling(tiling)]
        return self._encoded(mx.array(as_input(picture, width, height))[None], noise(), around=around)

    def _encoded(
        self, picture: mx.array, noise: mx.array, tiles: Tiles | None = None, around: tuple[int, ...] = ()
    ) -> mx.array:
        """`PictureAutoencoder.encode`, again in float32 if it overflows in float16; only in float16 not lazy.

        With `tiles` they are encoded in turn, and blended.
        """
        if tiles is not None:
            _, overlap = tiles.on(self.downscale)
            further = extended(picture, around, overlap * self.downscale), extended(noise, around, overlap)
            return closed(self._encoded_in_tiles(*further, tiles), around, noise.shape[1:3])
        with ops.wrapping(around):
            latents = self._vae.encode(picture, noise)
            if is_half(self._vae) and not is_finite(latents) and self._widen_vae():
                latents = self._vae.encode(picture, noise)
        return latents

    def _encoded_in_tiles(self, picture: mx.array, noise: mx.array, tiles: Tiles) -> mx.array:
        def part(rows: slice, columns: slice) -> np.ndarray:
            down, across = (slice(s.start * self.downscale, s.stop * self.downscale) for s in (rows, columns))
            return folded(np.asarray(self._encoded(picture[:, down, across], noise[:, rows, columns])))

        _, height, width, _ = noise.shape
        side, overlap = tiles.on(self.downscale)
        bands = bands_of_tiles(part, height, width, side, overlap)
        return mx.array(unfolded(np.concatenate(list(bands)), len(noise)))

    def _laid_over(self, choices: tuple[Choice, ...], reader: TextReader) -> tuple[DenoisingNetwork, TextReader]:
        networks = self._overlay.networks(choices)
        return networks.unet, reader.replaced(encoders=networks.text_encoders)

    def _with_embeddings(
        self, pieces: Sequence[str], reader: TextReader, loras: tuple[Choice, ...] | None = None
    ) -> TextReader:
        """A reader that knows the embeddings which the pieces name, those in the `loras` (None: `set_loras`') too."""
        if self.tokenizer is None:
            return reader
        bundled = self._overlay.embeddings(self._loras if loras is None else loras)
        found = self._embeddings.used_in(pieces, self.tokenizer, self._overlay.bare.text_encoders, bundled)
        if not found:
            return reader
        tokenizers, encoders = with_embeddings(reader.tokenizers, reader.encoders, found)
        return reader.replaced(tokenizers=tokenizers, encoders=encoders)

    def _check(self, call: Call) -> None:
        """Refuse missing LoRAs and upscalers, a `clip_skip` beyond the layers, and what exceeds the memory."""
        self._conditioner.replaced(clip_skip=call.clip_skip)
        refinement = call.passes[-1].refinement
        refiner = None if refinement is None else refinement.model
        needs = self._needs_with(self.low_memory, refiner)
        with_low_memory = None if self.low_memory else self._needs_with(True, refiner)
        for each in call.passes:
            self._overlay.choose(each.loras, names_only=True)
            if isinstance(each.start, FirstPass):
                self._check_upscaler(each.start, call.size)
            tile = memory.TILE * self.downscale  # that the decoder takes at least
            width, height = (max(seen, min(side, tile)) for seen, side in zip(each.seen, each.size, strict=True))
            needs.check(len(each.script.rows[0]), len(each.prompts), width, height, with_low_memory)

    def _check_upscaler(self, start: FirstPass, size: tuple[int, int]) -> None:
        """Refuse an upscaler that is not here, whose file is damaged, or that needs more memory than there is."""
        name = upscaler_named(start.upscaler)
        if name not in LATENT_MODES:
            Enlarger(name).parts(Image.new("RGB", size), start.size)

    def _enlarged(self, latents: mx.array, call: Call, progress: Progress | None) -> mx.array:
        """What a pass painted, x_0 (B, h, w, C), at the size at which `call` starts from it; evaluated.

        Rows that are not finite stay so, unless there are no others. Raises what `decode` raises.
        """
        assert isinstance(call.start, FirstPass)
        rows = [bool(finite) for finite in mx.isfinite(latents).all(axis=(1, 2, 3))]
        if not any(rows):
            raise self._blame_latents()
        width, height = (side // self.downscale for side in call.start.size)
        upscaler = upscaler_named(call.start.upscaler)
        if upscaler in LATENT_MODES:
            larger = enlarged(latents, height, width, *LATENT_MODES[upscaler], call.around)
        else:
            shape, enlarger = (1, height, width, self.latent_channels), Enlarger(upscaler)
            larger = mx.concatenate(
                [
                    self._enlarged_picture(one, enlarger, shape, call, progress) if finite else mx.full(shape, mx.nan)
                    for one, finite in zip(mx.split(latents, len(rows)), rows, strict=True)
                ]
            )
        larger = call.start.cropped(larger, *(side // self.downscale for side in reversed(call.size)))
        mx.eval(larger)
        return larger

    def _enlarged_picture(
        self,
        latents: mx.array,
        enlarger: Enlarger,
        shape: tuple[int, ...],
        call: Call,
        progress: Progress | None,
    ) -> mx.array:
        """The latents of a picture as an upscaler enlarges it, the posterior's mean, from its latents (1, h, w, C).

        Beyond edges that meet, the upscaler sees what follows there, which is then cut off.
        """

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(f"Enlarging with {enlarger.upscaler.name}", done / total)

        size = width, height = shape[2] * self.downscale, shape[1] * self.downscale
        picture = np.asarray(self.decode(latents, call.tiling))[0]
        (top, above), (left, before) = (
            margin(picture.shape[axis - 1], size[2 - axis]) if axis in call.around else (0, 0) for axis in (1, 2)
        )
        picture = np.pad(picture, ((top, top), (left, left), (0, 0)), mode="wrap")
        larger = enlarger(to_picture(picture), size=(width + 2 * before, height + 2 * above), progress=report)
        larger = larger.crop((before, above, before + width, above + height))
        return self._encoded(mx.array(as_input(larger, *size))[None], mx.zeros(shape), call.tiles, call.around)

    @cached_property
    def _files_used(self) -> dict[str, str | None]:
        """For `Used`: the model's hash, and name and hash of the VAE that replaces its own; None for a folder."""
        vae = None if self._other_vae is None else expanded(self._other_vae)
        name = None if self._other_vae is None else os.fspath(self._other_vae)
        if vae is not None and vae.exists():
            name = vae.resolve().name
        return {"model_hash": _hash(self._file), "vae": name, "vae_hash": _hash(vae)}

    @property
    def _needs(self) -> memory.Needs:
        return self._needs_with(self.low_memory)

    def _needs_with(self, low_memory: bool, refiner: LoadedModel | None = None) -> memory.Needs:
        config, dtype = self._own_vae_config, self._dtype
        vae_size = (mx.float32 if self.vae_precision else vae_dtype(self.family, config, dtype)).size
        painting = self._held(low_memory, self._vae) if low_memory else self._held(low_memory)
        decoding = self._held(low_memory, self._unet) if low_memory else self._held(low_memory)
        values, size = self._unet.values_per_latent, dtype.size
        if refiner is not None:  # whose VAE is never used
            idle = (refiner._vae, *[refiner._unet] * low_memory)
            resting = self._held(low_memory, self._vae, self._unet) if low_memory else painting
            refining = resting + refiner._held(low_memory, refiner._vae)
            waiting = refiner._held(low_memory, *idle)
            painting, decoding = max(painting + waiting, refining), decoding + waiting
            values, size = max(values, refiner._unet.values_per_latent), max(size, refiner._dtype.size)
        return memory.Needs(values, config, painting, size, vae_size, decoding, low_memory)

    def _held(self, low_memory: bool, *dropped: Any) -> int:
        """Bytes of weights in memory while the texts are no longer read and these networks are not used."""
        encoders = self._conditioner.encoders if low_memory or self._unloads_encoders else ()
        return self._unloader.held_without(*encoders, *dropped)


def _hash(path: Path | None) -> str | None:
    try:
        return hashes.short_hash(path) if path is not None and path.is_file() else None
    except OSError:  # deleted meanwhile
        return None
