"""StableDiffusion: the steps of a generation, from prompt to picture, as a generator."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from . import backend, checks, memory
from .adapters import files
from .adapters.embeddings import Embeddings, with_embeddings
from .adapters.lora import Networks
from .adapters.overlay import Choice, Loras, Overlay
from .backend import mx, nn
from .diffusion.denoiser import Denoiser
from .diffusion.noise import NoiseStream, Seeds
from .diffusion.schedule import Plan
from .diffusion.start import InputPicture, check_task, read_input, start_from
from .errors import InputError
from .model_io import hashes
from .model_io.checkpoint import vae_dtype
from .model_io.hub import Progress
from .model_io.load_vae import cached_tiny_vae, load_vae
from .model_io.locate import load, locate
from .model_io.quantised import check_bits, quantisation_of, quantise
from .pictures.reading import as_input
from .record.used import Used
from .sampler import Sampler, sampler_by_name
from .text.conditioning import A1111, Blend, TextConditioner
from .text.script import Guidance, Script, Text, ToldUNet, check_text, parts_of, take_blend_loras, write_script
from .text.tags import Strength, take_loras
from .tiles import decode_in_tiles
from .unet import UNet
from .vae import Autoencoder
from .vae_tiny import TinyAutoencoder

DEFAULT_MODEL = "postcards-tiny"
MAX_SIDE = 8192
MAX_IMAGES = 256


@dataclass(frozen=True)
class GenerationStep:
    """What one denoising step reached. The arrays are lazy; the networks in them are not on a Linux CPU."""

    index: int  # 1 .. total
    total: int
    t: float  # the time reached, in training steps
    sigma: float  # the noise level reached: noise to signal, k-diffusion's sigma
    seed: int  # of the first picture; picture i has seed + i, or with a variation the same
    latents: mx.array  # x_t (B, h, w, C), float32, of unit variance at the prior
    denoised: mx.array  # the current estimate of x_0, same shape


class Generation(Iterator[GenerationStep]):
    """A generation under way: its steps, one after another, and what it paints with. Closing it cancels it."""

    def __init__(self, used: Used, steps: Generator[GenerationStep, None, None]):
        self.used = used
        self._steps = steps

    def __next__(self) -> GenerationStep:
        return next(self._steps)

    def close(self) -> None:
        """Cancel what is not done yet."""
        self._steps.close()


class StableDiffusion:
    """A loaded checkpoint that paints.

    `model` is an embedded model's name, a hub id, a folder in diffusers' form, or a single file (.safetensors, .ckpt,
    .pt) in the original layout. `float16` None takes what suits the device. `progress(message, fraction or None)` hears
    of downloads and loading, and may raise to cancel them; `check_weights` refuses NaN and infinite weights (and reads
    all of them for it). `bits` 8 or 4 keeps the U-Net's and the text encoders' large layers as whole numbers of so many
    bits. `prediction_type` ("epsilon", "v_prediction" or "sample") overrides what the checkpoint says of itself. `vae`
    (a folder, a file or a hub id) takes the place of the checkpoint's own. `low_memory` takes less memory and more
    time, for the same pictures but for rounding (docs/performance.md says what it does). Raises the errors below
    `CheckpointError`, and `InputError` for other bits or prediction types.
    """

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
    ):
        check_bits(bits)
        self.low_memory = low_memory
        if low_memory:
            backend.keep_little_memory()
        self.float16 = backend.default_float16() if float16 is None else float16
        self._dtype = mx.float16 if self.float16 else mx.float32
        self.name, path = locate(model, self.float16, progress)
        self._files = (path, None if vae is None else Path(vae).expanduser())
        self._vae_name = None if vae is None else os.fspath(vae)
        half_unet = low_memory and not backend.has_gpu()
        checkpoint = load(path, self._dtype, progress, check_weights, prediction_type, half_unet)
        if bits is not None:
            quantise(checkpoint.unet, checkpoint.text_encoders, bits, progress)
        quantisation = quantisation_of(checkpoint.unet)
        self.bits = quantisation.bits if quantisation else None
        self.family = checkpoint.family
        self.default_size = checkpoint.default_size
        self.scheduler_config = checkpoint.scheduler
        self.tokenizer = checkpoint.tokenizers[0]
        self._unet = checkpoint.unet
        self._vae: Autoencoder | TinyAutoencoder = checkpoint.vae
        self._own_vae_config = checkpoint.vae.config
        if vae is not None:
            self._vae = load_vae(vae, checkpoint.vae.config, self.family, self._dtype, progress)
        self._conditioner = TextConditioner(
            checkpoint.tokenizers,
            checkpoint.text_encoders,
            xl=checkpoint.pooled,
            zeros_for_none=checkpoint.force_zeros_for_empty_prompt,
        )
        parts: dict[str, nn.Module] = {} if vae is not None else {"vae": checkpoint.vae}
        if bits is None:  # else they are no longer what the files hold
            names = ("text_encoder", "text_encoder_2")
            parts |= {"unet": checkpoint.unet, **dict(zip(names, checkpoint.text_encoders, strict=False))}
        self._shelf = memory.Shelf(
            (self._unet, self._vae, *checkpoint.text_encoders),
            [(parts[name], again) for name, again in checkpoint.again.items() if name in parts],
        )
        # Where a step takes seconds, the tenths in which text encoders are read again do not count.
        self._spares = low_memory or (not backend.has_gpu() and self._shelf.weights >= memory.LARGE)
        self._painting = 0  # generations under way
        self._overlay = Overlay(Networks(checkpoint.unet, checkpoint.text_encoders), self.family)
        self._loras: tuple[Choice, ...] = ()
        self._embeddings = Embeddings(self.family)

    @property
    def lora_folders(self) -> list[Path]:
        """Where LoRAs are looked for by name: loras/ beside the program, $STABLE_DIFFUSION_LORAS; add your own."""
        return self._overlay.folders

    @property
    def embedding_folders(self) -> list[Path]:
        """Where a prompt's words are looked for as embeddings: embeddings/, $STABLE_DIFFUSION_EMBEDDINGS, your own."""
        return self._embeddings.folders

    @property
    def loras(self) -> list[tuple[str, Strength]]:
        """What `set_loras` has set: the files' names and strengths."""
        return [(choice.name, choice.strength) for choice in self._loras]

    def set_loras(self, loras: Loras) -> None:
        """Lay LoRAs (LoCon, LoHa, LoKr, DoRA) over the checkpoint, in the place of those before; {} takes all off.

        `loras` is {name or file: strength}, or a list of (name or file, strength); a strength is a number, or two:
        (of the U-Net, of the text encoders). A prompt's tags, `<lora:name:0.8>`, come on top of these for one
        generation. The checkpoint's weights stay as they are, so taking off is exact, and costs nothing.

        Raises `CheckpointNotFoundError` for a name that is in no folder, `UnsupportedCheckpointError` for a LoRA of
        another family, `WeightsError` for a damaged one; then nothing has changed. Warns with `AdapterWarning` of
        tensors that match nothing.
        """
        choices = self._overlay.choose(loras)
        networks = self._overlay.networks(choices)
        self._loras = choices
        self._unet = networks.unet
        self._conditioner = self._conditioner.replaced(encoders=networks.text_encoders)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, 4 for Stable Diffusion."""
        return self._vae.config.latent_channels

    @property
    def downscale(self) -> int:
        """Pixels to one latent along each side, 8 for Stable Diffusion; sizes are multiples of it."""
        return self._vae.config.downscale

    @property
    def inpainting(self) -> bool:
        """True for an inpainting checkpoint, whose U-Net is shown picture and mask, and needs both."""
        return self._unet.config.in_channels == 2 * self.latent_channels + 1

    def generate_latents(
        self,
        text: str | Blend,
        negative_text: str | None = None,
        n_images: int = 1,
        num_steps: int = 20,
        cfg_weight: float = 7.5,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        input_image: Any = None,
        denoising_strength: float = 0.7,
        sampler: str | Sampler = "euler",
        latents: Any = None,
        guidance_rescale: float = 0.0,
        variation_seed: int | None = None,
        variation_strength: float = 0.0,
        mask_image: Any = None,
        masked_content: str = "original",
        clip_skip: int | None = None,
        prompt_language: str = A1111,
    ) -> Generation:
        """Generate step by step; the arguments are checked before the first one is taken.

        `width` and `height` are pixels, multiples of `downscale`; None is the checkpoint's own size. `cfg_weight` up to
        1 is no guidance, at half the work. `input_image`, a PIL image or a uint8 array (H, W, 3), is cropped to the
        size, encoded, noised, and denoised by the schedule's last int(num_steps * denoising_strength) steps.
        `mask_image`, a picture of any mode and size, is white where the input picture is repainted; `masked_content`
        ("original", "noise", "fill") is what that part begins from, but for strength 1, which begins from pure noise.
        `latents` (n_images, h, w, latent_channels) is unit normal noise to begin with, in place of the seed's.
        `guidance_rescale` is Lin et al.'s (2023). With a `variation_strength` all pictures have the same seed, and the
        first noise of picture i is turned that far, from 0 to 1, towards the noise of the seed `variation_seed` + i.
        Dropping the generator cancels the generation.

        Both texts are read in A1111's language (stable_diffusion.text.language); its schedules count the steps that are
        run. `prompt_language` "plain" takes them literally, truncated after 75 tokens. A `Blend` is a text between two.
        `clip_skip` 2 takes the text encoder's penultimate layer, and so on; None is the checkpoint's own.

        `<lora:name:0.8>` in the text lays a LoRA over this generation, beside those of `set_loras`; the name of a file
        in `embedding_folders` stands for its vectors, in both texts.

        Raises `InputError` (`SamplerError`, `PictureError`) for an argument that is out of range or of a wrong type or
        asks for more memory than there is, and what `set_loras` raises for what the texts name.
        """
        # 1. Everything that can be refused is refused here.
        text = check_text("text", text)
        if negative_text is not None:
            checks.text("negative_text", negative_text)
        n_images = checks.whole("n_images", n_images, 1, MAX_IMAGES)
        width, height = self._size(width, height)
        shape = (height // self.downscale, width // self.downscale, self.latent_channels)
        seeds = checks.seeds(seed, n_images, variation_seed, variation_strength)
        noise = None if latents is None else checks.noise(latents, (n_images, *shape))
        if noise is not None and seeds.strength:
            raise InputError("latents are the first noise themselves: leave out variation_strength, or the latents.")
        picture = read_input(input_image, mask_image, masked_content, width, height)
        check_task(self.name, self._unet.config.in_channels, self.latent_channels, picture)
        sampler = sampler_by_name(sampler)
        plan = sampler.plan(self.scheduler_config, num_steps)
        if picture is not None:
            plan = _tail(plan, num_steps, denoising_strength)
        guidance = Guidance(
            cfg_weight=checks.number("cfg_weight", cfg_weight, 0.0, math.inf),
            rescale=checks.number("guidance_rescale", guidance_rescale, 0.0, 1.0),
        )
        text, tags = take_blend_loras(text)
        if negative_text is not None:
            negative_text, without_effect = take_loras(negative_text)
            if without_effect:
                warnings.warn("LoRA tags in the negative text have no effect; write them into the text.", stacklevel=2)
        conditioner = self._conditioner.replaced(language=prompt_language, clip_skip=clip_skip)
        script = write_script(text, negative_text, len(plan), guidance, self._embeds_guidance, conditioner.language)
        rows = n_images * max(map(len, script.rows))
        spared = None if self.low_memory else self._needs_with(low_memory=True)
        self._needs.check(rows, n_images, width, height, spared)
        steps = self._generate(
            self._networks(tags, script.texts, conditioner),
            script,
            guidance,
            (width, height),
            seeds,
            sampler,
            plan,
            picture,
            noise,
        )
        return Generation(self._used(tags, script.texts, conditioner.language), steps)

    def decode(self, latents: mx.array) -> mx.array:
        """Latents (B, h, w, latent_channels) -> pictures (B, H, W, 3), float32 in [0, 1]; lazy.

        In tiles, which are blended, where a whole picture would not fit into memory. Raises `InputError` for another
        shape.
        """
        if latents.ndim != 4 or latents.shape[-1] != self.latent_channels:
            raise InputError(
                f"latents of shape {latents.shape} cannot be decoded; (B, h, w, {self.latent_channels}) is expected."
            )
        height, width = (side * self.downscale for side in latents.shape[1:3])
        if self._spares:
            mx.eval(latents)
            self._shelf.drop(*([self._unet] if self.low_memory and not self._painting else []))
        decode = self._vae.decode
        if self._needs.in_tiles(width, height):
            decode = partial(decode_in_tiles, decode, tile=memory.TILE, overlap=memory.OVERLAP)
        # One by one: memory is one picture's, whatever the batch.
        pictures = [decode(one) for one in mx.split(latents, latents.shape[0])]
        result = mx.clip(mx.concatenate(pictures).astype(mx.float32) / 2 + 0.5, 0, 1)
        if self.low_memory:
            mx.eval(result)
            self._shelf.drop(self._vae)
        return result

    def preview(self, latents: mx.array) -> mx.array:
        """As `decode`, but roughly, by the tiny VAE for these latents (TAESD), where the hub's cache has it."""
        if self._tiny_vae is None:
            return self.decode(latents)
        return mx.clip(self._tiny_vae.decode(latents).astype(mx.float32) / 2 + 0.5, 0, 1)

    @cached_property
    def _tiny_vae(self) -> TinyAutoencoder | None:
        return cached_tiny_vae(self._own_vae_config, self.family, self._dtype)

    def encode(self, picture: Any, width: int | None = None, height: int | None = None, seed: int = 0) -> mx.array:
        """A PIL image or uint8 array (H, W, 3), cropped to the size -> its latents (1, h, w, latent_channels); lazy.

        Width and height as in `generate_latents`; the posterior is drawn from with `seed`. Raises `InputError` and
        `PictureError`.
        """
        seed = checks.whole("seed", seed, 0, checks.MAX_SEED)
        width, height = self._size(width, height)
        noise = NoiseStream([seed], (height // self.downscale, width // self.downscale, self.latent_channels))
        return self._vae.encode(mx.array(as_input(picture, width, height))[None], noise())

    def encode_text(self, text: str | Blend, clip_skip: int | None = None, prompt_language: str = A1111) -> mx.array:
        """A text -> the hidden states (1, 77 n, D) that the U-Net attends to; lazy. Raises `InputError`.

        Weights and BREAK are read; schedules and AND, which belong to a generation, stand as text.
        """
        text = check_text("text", text)
        conditioner = self._conditioner.replaced(language=prompt_language, clip_skip=clip_skip)
        return self._networks((), [text], conditioner)[1](text).text

    def _generate(
        self,
        networks: tuple[UNet, TextConditioner],
        script: Script,
        guidance: Guidance,
        size: tuple[int, int],
        seeds: Seeds,
        sampler: Sampler,
        plan: Plan,
        picture: InputPicture | None,
        given_noise: mx.array | None,
    ) -> Generator[GenerationStep, None, None]:
        backend.fit_threads(self._largest_product(seeds.n_images, size))
        # 2. The texts are encoded, and projected to the U-Net's keys and values, once.
        unet = ToldUNet(*networks, script, guidance, size, seeds.n_images, self._dtype, self.low_memory)
        if self._spares:
            unet.compute_texts()
            self._shelf.drop(*self._conditioner.encoders)
        denoiser = Denoiser(
            unet,
            self.scheduler_config.prediction_type,
            guidance.cfg_weight,
            guidance.rescale,
            self._embeds_guidance,
            script.weights,
        )
        # 3. The first latents: noise, or the input picture's with noise of the plan's first level.
        noise = NoiseStream(seeds, (size[1] // self.downscale, size[0] // self.downscale, self.latent_channels))
        start = start_from(picture, plan, denoiser, noise, given_noise, self._vae.encode, self.inpainting)
        if self.low_memory:
            mx.eval(start.x)
            self._shelf.drop(self._vae)
        # 4. Step by step towards x_0.
        self._painting += 1
        try:
            for step in sampler.sample(start.denoiser, start.x, plan, noise):
                unet.step = step.index + 1  # the sampler goes on only when the next step is asked for
                yield GenerationStep(step.index, step.total, step.t, step.sigma, seeds.first, *start.shown(step))
        finally:
            self._painting -= 1

    def _networks(
        self, tags: Loras, spoken: Iterable[Text | None], conditioner: TextConditioner
    ) -> tuple[UNet, TextConditioner]:
        """What paints and what reads for one generation: with the LoRAs and the embeddings that its texts name."""
        unet = self._unet
        if tags:
            networks = self._overlay.networks((*self._loras, *self._overlay.choose(tags, names_only=True)))
            unet, conditioner = networks.unet, conditioner.replaced(encoders=networks.text_encoders)
        else:
            self._overlay.forget()
        parts = parts_of(spoken, conditioner.language)
        if found := self._embeddings.used_in(parts, self.tokenizer, self._overlay.bare.text_encoders):
            tokenizers, encoders = with_embeddings(conditioner.tokenizers, conditioner.encoders, found)
            conditioner = conditioner.replaced(tokenizers=tokenizers, encoders=encoders)
        return unet, conditioner

    def _used(self, tags: Loras, spoken: Iterable[Text | None], language: str) -> Used:
        """What a generation paints with, as it is on the disk now."""
        loras = (*self._loras, *self._overlay.choose(tags, names_only=True))
        embeddings = self._embeddings.named_in(parts_of(spoken, language), self.tokenizer)
        return Used(
            self.name,
            "float16" if self.float16 else "float32",
            backend.version(),
            tuple(self.loras),
            {each.name: files.short_hash(each.path) for each in loras},
            {name: files.short_hash(path) for name, path in embeddings.items()},
            *self._used_files(),
        )

    def _used_files(self) -> tuple[str | None, str | None, str | None]:
        """The model's hash, the name of the VAE in place of its own, and its hash."""
        model, vae = (path if path is not None and path.exists() else None for path in self._files)
        hashed = (hashes.short_hash(path) if path is not None and path.is_file() else None for path in (model, vae))
        return next(hashed), self._vae_name if vae is None else vae.resolve().name, next(hashed)

    @property
    def _needs(self) -> memory.Needs:
        return self._needs_with(self.low_memory)

    def _needs_with(self, low_memory: bool) -> memory.Needs:
        config, dtype = self._own_vae_config, self._dtype
        vae_size = vae_dtype(self.family, config, dtype).size
        let_go = self._conditioner.encoders if low_memory or self._spares else ()
        painting = self._shelf.held_without(*let_go, *[self._vae] * low_memory)
        decoding = self._shelf.held_without(*let_go, *[self._unet] * low_memory)
        return memory.Needs(self._unet.config, config, painting, dtype.size, vae_size, decoding, low_memory)

    def _largest_product(self, n_images: int, size: tuple[int, int]) -> int:
        """About how many multiply-adds the largest matrix product of a generation takes: a 3x3 convolution's."""
        pixels = size[0] * size[1]
        channels, picture_channels = self._unet.config.block_out_channels, self._vae.config.block_out_channels
        unet = 2 * n_images * pixels // self.downscale**2 * 9 * channels[0] * 2 * channels[0]
        return max(unet, pixels * 9 * picture_channels[0] * picture_channels[min(1, len(picture_channels) - 1)])

    @property
    def _embeds_guidance(self) -> bool:
        return self._unet.config.time_cond_proj_dim is not None

    def _size(self, width: int | None, height: int | None) -> tuple[int, int]:
        sides = []
        for name, side, own in zip(("width", "height"), (width, height), self.default_size, strict=True):
            side = own if side is None else checks.whole(name, side, self.downscale, MAX_SIDE)
            if side % self.downscale:
                below = side // self.downscale * self.downscale
                raise InputError(
                    f"{name} = {side} should be a multiple of {self.downscale}, such as {below} or "
                    f"{below + self.downscale}."
                )
            sides.append(side)
        return sides[0], sides[1]


def _tail(plan: Plan, num_steps: int, strength: float) -> Plan:
    """The steps of the plan that a denoising strength leaves, as the reference counts them."""
    strength = checks.number("denoising_strength", strength, 0.0, 1.0)
    steps = int(num_steps * strength)
    if not steps:
        raise InputError(
            f"denoising_strength = {strength} leaves none of {num_steps} steps; "
            f"{math.ceil(100 / num_steps) / 100} is the least that leaves one."
        )
    return plan.tail(steps)
