"""StableDiffusion: a generation, from prompt to picture, as a generator of steps."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from . import backend, checks, memory
from .adapters import files
from .adapters.overlay import Choice, Loras
from .attention import AttentionMaps
from .backend import mx
from .diffusion.call import Call, check_passes
from .diffusion.conditioned import ConditionedNetwork
from .diffusion.deep_cache import DeepCache
from .diffusion.denoiser import Denoiser, NetworkCall
from .diffusion.guiding import Guidance, GuidanceFunction
from .diffusion.inversion import inverted
from .diffusion.network import DenoisingNetwork, TextReader, Watcher
from .diffusion.noise import NoiseStream
from .diffusion.refining import SWITCH, Refinement
from .diffusion.start import FirstPass, InputLatents, InputPicture, Start, start_from
from .diffusion.tiled import TiledNetwork
from .errors import InputError
from .generation import GeneratedPicture, Generation, GenerationStep, parameters_of
from .hires import Hires
from .model import LoadedModel
from .model_io.hub import Progress
from .pictures.arrays import to_picture
from .pictures.reading import as_input
from .prompt_edit import EditSide, PromptEdit
from .record.used import Used
from .sampler import Sampler, a1111_name
from .steering import Steering
from .text.prompt import A1111, Blend


class StableDiffusion(LoadedModel):
    """A loaded checkpoint that paints.

    `model` is an embedded model's name, a hub id, a folder in diffusers' form, or a single file (.safetensors, .ckpt,
    .pt) in the original layout. `float16` None is the device's default. `progress(message, fraction or None)` is called
    while downloading and loading, and may raise to cancel; `check_weights` refuses NaN and infinite weights (and has to
    read all of them). `bits` 8 or 4 quantises the large layers of the U-Net and the text encoders. `prediction_type`
    ("epsilon", "v_prediction" or "sample") overrides the checkpoint's own. `vae` (a folder, a file or a hub id)
    replaces the checkpoint's own. `zero_terminal_snr` True or False overrides whether its noise schedule ends in pure
    noise. `low_memory` trades time for memory; pictures differ by rounding only
    (docs/performance.md). Raises the subclasses of `CheckpointError`, and `InputError` for other bits or prediction
    types.
    """

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
        input_latents: Any = None,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        guidance_min_sigma: float = 0.0,
        deepcache_interval: int = 1,
        deepcache_branch: int = 0,
        eta: float | None = None,
        refiner: StableDiffusion | None = None,
        refiner_switch: float = SWITCH,
        hires: Hires | None = None,
        tile: int | None = None,
        tile_overlap: int = 64,
        tiling: str = "off",
        vary_all_draws: bool = False,
        guidance: Guidance | GuidanceFunction | Steering | None = None,
        progress: Progress | None = None,
        attention: AttentionMaps | EditSide | None = None,
        with_start: bool = False,
    ) -> Generation:
        """Generate step by step; the arguments are checked at once.

        `width` and `height` are pixels, multiples of `size_multiple`; None is the checkpoint's own size. `cfg_weight`
        up to 1 is no guidance, at half the work. `input_image`, a PIL image or a uint8 array (H, W, 3), is cropped to
        the size, encoded, noised, and denoised by the schedule's last int(num_steps * denoising_strength) steps; at a
        strength of exactly 0 no step is run, and the picture stays as it is.
        `mask_image`, a picture of any mode and size, is white where the input picture is repainted; `masked_content`
        ("original", "noise", "fill") is what that part begins from, except at strength 1, which begins from pure noise.
        `input_latents` (n_images or 1, h, w, latent_channels) are clean latents instead of an `input_image`, such as
        those of `encode`. For one picture, `encode(picture, seed=seed)` gives the same bits as the
        picture; in a batch each picture samples its own latents, with seed + i.

        `latents` (n_images, h, w, latent_channels) is unit normal noise that replaces the seed's first draw.
        `guidance_rescale` is Lin et al.'s (2023). Guidance acts from the share `guidance_start` of the steps up to
        `guidance_end`, down to the k-diffusion sigma `guidance_min_sigma` (Kynkäänniemi et al. 2024); all other steps
        do half the work. With a `deepcache_interval` above 1 only every such step computes the whole U-Net, and the
        others what lies above its skip connection `deepcache_branch` (Ma et al. 2023).

        With a `variation_strength` all pictures have the same seed, and the first noise of picture i is turned that
        far, from 0 to 1, towards the noise of the seed `variation_seed` + i; with `vary_all_draws` so are all later
        draws, of samplers that add noise and of an input picture's encoding, so that at 1 the picture is that seed's
        own. `eta`, from 0 to 1, is how much noise the sampler adds again at each step (TCD's gamma); None is its own
        value. Closing the generator cancels the generation.

        Both texts are in A1111's prompt language (stable_diffusion.text.language); its schedules count the steps that
        are run. With `prompt_language` "plain" they are literal, truncated after 75 tokens. A `Blend` mixes two texts.
        `clip_skip` 2 takes the text encoder's penultimate layer, and so on; None is the checkpoint's own.

        `<lora:name:0.8>` in the text adds a LoRA for this generation to those of `set_loras`; in both texts the name of
        a file in `embedding_folders` stands for its vectors.

        With `hires` what is painted is enlarged, and painted over in a second pass, whose steps follow the first's; its
        noise is the first draw of the same seeds at the larger size. With a `tile` in pixels the network sees square
        tiles of that side, which overlap by `tile_overlap`, and their answers are blended at every step: memory for one
        tile, and for pictures larger than the model can paint at once, at a low `denoising_strength`.
        `progress(message, fraction)` is called after every tile and while a picture is enlarged, and may raise to
        cancel.

        With `tiling` "x", "y" or "both" copies of the picture beside each other, on top of each other, or both, meet
        without a seam: what networks see beyond an edge is the opposite edge. Give `decode` and `preview` the same.

        `refiner` is another model of the same latents, such as SDXL's refiner, which takes over when the share
        `refiner_switch` of the schedule is done; it gets the LoRAs too if it is of the same family. With `hires` it
        works in the second pass, as in A1111.

        `attention` records where in each picture each word acts (stable_diffusion.AttentionMaps), which changes no bit
        of what is painted; `edit` has another use for it. `with_start` adds, ahead of the first call
        of the network, a step of index 0: the noise, or the noised input; and with `hires` what the second pass begins
        with.

        `guidance` steers by a gradient (Dhariwal and Nichol 2021): a function of x_t, its noise level and the estimate
        of x_0 that returns the gradient in x_t of log p(y | x_t), all (n_images, h, w, latent_channels); a
        stable_diffusion.Guidance, which has a scale for each picture; or a stable_diffusion.Steering, which steers
        postcards by the CLIP or the classifier that come along. It is added to what the texts' guidance gives, for
        every prediction type and sampler, in both passes with `hires`: eps_hat = eps - sqrt(1 - abar) gradient.

        Raises `InputError` (`SamplerError`, `PictureError`) for an argument that is out of range, of a wrong type or
        beyond the memory, and for the texts' LoRAs what `set_loras` raises.
        """
        # 1. All arguments are checked.
        call = check_passes(
            self,
            self._unet,
            hires=hires,
            tile=tile,
            tile_overlap=tile_overlap,
            tiling=tiling,
            texts=[text],
            negative_texts=[negative_text],
            n_images=n_images,
            num_steps=num_steps,
            cfg_weight=cfg_weight,
            width=width,
            height=height,
            seed=seed,
            input_image=input_image,
            denoising_strength=denoising_strength,
            sampler=sampler,
            latents=latents,
            guidance_rescale=guidance_rescale,
            guidance_start=guidance_start,
            guidance_end=guidance_end,
            guidance_min_sigma=guidance_min_sigma,
            deepcache_interval=deepcache_interval,
            deepcache_branch=deepcache_branch,
            variation_seed=variation_seed,
            variation_strength=variation_strength,
            vary_all_draws=vary_all_draws,
            mask_image=mask_image,
            masked_content=masked_content,
            clip_skip=clip_skip,
            prompt_language=prompt_language,
            input_latents=input_latents,
            eta=eta,
            refiner=refiner,
            refiner_switch=refiner_switch,
            guidance=self._guidance(guidance, [text], n_images),
        )
        return self._begin(call, progress, attention, with_start)

    def generate(
        self,
        prompts: str | Blend | Sequence[str | Blend],
        negatives: str | Sequence[str | None] | None = None,
        n_images: int = 1,
        **settings: Any,
    ) -> list[GeneratedPicture]:
        """Finished pictures with their records, `n_images` of each prompt, in the order of the prompts.

        `settings` are those of `generate_latents`, but for `with_start`; picture i of the whole list has seed + i.
        `negatives` is one text for all, or one for each prompt. All are painted in one batch, which changes each
        picture by rounding only.
        Prompts that differ in LoRAs, in weights of parts (AND) or in the number of 75-token chunks are painted in
        separate batches, because sharing one would change them. Raises as `generate_latents` does, before painting.
        """
        texts: list[Any] = list(prompts) if _is_list(prompts) else [prompts]
        against: list[Any] = list(negatives) if _is_list(negatives) else [negatives] * len(texts)
        known = inspect.signature(self.generate_latents).parameters
        settings = {name: known[name].default for name in list(known)[3:] if name != "with_start"} | settings
        progress, attention = settings.pop("progress"), settings.pop("attention")
        if isinstance(attention, EditSide):
            raise InputError("`generate` paints no edits: use `edit`.")
        settings["guidance"] = self._guidance(settings["guidance"], texts, n_images)
        call = check_passes(self, self._unet, texts=texts, negative_texts=against, n_images=n_images, **settings)
        groups = self._groups(call)
        batches = [call.only(places) for places in groups]
        for batch in batches:
            self._check(batch)
        pictures: dict[int, GeneratedPicture] = {}
        for places, batch in zip(groups, batches, strict=True):
            pictures |= dict(zip(places, self._paint(batch, progress, attention), strict=True))
        finished = [pictures[place] for place in sorted(pictures)]
        if attention is not None:
            attention.pictures = tuple(each.attention for each in finished if each.attention is not None)
        return finished

    def invert(
        self,
        picture: Any,
        text: str,
        num_steps: int = 50,
        corrections: int = 0,
        width: int | None = None,
        height: int | None = None,
    ) -> Iterator[GenerationStep]:
        """Search for the noise that the sampler "ddim" paints a picture from: the last step's latents.

        `generate_latents(text, latents=..., sampler="ddim", cfg_weight=1, num_steps=num_steps)` paints the picture
        again, nearly, and with another text a variation of it. Each of the `corrections` (0 to 10) lengthens a step
        by a call of the network and brings it nearer (diffusion/inversion.py). Picture, width and height are as in
        `generate_latents`. Raises `InputError` and `PictureError` at once.
        """
        known = inspect.signature(self.generate_latents).parameters
        others = ("progress", "attention", "with_start")
        settings = {name: each.default for name, each in list(known.items())[3:] if name not in others}
        settings |= {"num_steps": num_steps, "cfg_weight": 1.0, "sampler": "ddim", "width": width, "height": height}
        call = check_passes(self, self._unet, texts=[text], negative_texts=[None], n_images=1, **settings | {"seed": 0})
        corrections = checks.whole("corrections", corrections, 0, 10)
        self._check(call)
        pixels = mx.array(as_input(picture, *call.size))[None]
        return self._inverted(call, pixels, corrections)

    def edit(
        self, before: str, after: str, how: PromptEdit | None = None, seed: int | None = None, **settings: Any
    ) -> Iterator[tuple[GenerationStep, GenerationStep]]:
        """Paint a picture of the text `before`, and the same picture by `after`: their steps, in pairs.

        The second one's attention follows the first one's as `how` says (stable_diffusion.PromptEdit; prompt-to-prompt,
        Hertz et al. 2022). `settings` are those of `generate_latents`; `latents` may be what `invert` found. Raises
        `InputError` as that does, and for what cannot be edited: texts with AND, blends or schedules or of more than
        75 tokens, several pictures, hires and a refiner.
        """
        how = how or PromptEdit()
        if settings.get("hires") is not None or settings.get("refiner") is not None:
            raise InputError("A picture is edited in one pass of one model: leave out hires and refiner.")
        settings["seed"] = secrets.randbelow(2**32) if seed is None else seed
        sides = (before, how.before), (after, how.after)
        generations = [self.generate_latents(text, attention=side, **settings) for text, side in sides]
        return self._edited(*generations)

    def _edited(self, old: Generation, new: Generation) -> Iterator[tuple[GenerationStep, GenerationStep]]:
        with closing(old), closing(new):
            for pair in zip(old, new, strict=True):
                mx.eval([step.latents for step in pair])
                yield pair

    def _inverted(self, call: Call, pixels: mx.array, corrections: int) -> Iterator[GenerationStep]:
        width, height = (side // self.downscale for side in call.size)
        mean = self._encoded(pixels, mx.zeros((1, height, width, self.latent_channels)))
        denoiser = self._denoiser(call, *self._networks(call), None)
        for step in inverted(denoiser, mean, call.plan, corrections):
            yield GenerationStep(step.index, step.total, step.t, step.sigma, 0, step.x, step.x_0)

    def _groups(self, call: Call) -> list[list[int]]:
        """The indices of pictures that can share a batch."""
        alone = [call.only([place]).passes for place in range(len(call.prompts))]
        pieces = [piece for passes in alone for each in passes for piece in each.script.pieces]
        pieces = list(dict.fromkeys(pieces))
        readers = {
            loras: self._with_embeddings(pieces, self._conditioner, self._chosen(loras))
            for loras in dict.fromkeys(each.loras for passes in alone for each in passes)
        }
        groups: dict[Any, list[int]] = {}
        for place, passes in enumerate(alone):
            key = tuple(
                (each.loras, each.script.weights, readers[each.loras].n_chunks(each.script.texts)) for each in passes
            )
            groups.setdefault(key, []).append(place)
        return list(groups.values())

    def _paint(
        self, call: Call, progress: Progress | None, attention: AttentionMaps | None
    ) -> Iterator[GeneratedPicture]:
        generation = self._begin(call, progress, attention)
        latents: mx.array | None = None
        for step in generation:
            latents = step.latents
            mx.eval(latents)
        pictures = self._unchanged(call) if latents is None else self.decode(latents, call.tiling)
        for place, picture in enumerate(np.asarray(pictures)):
            parameters = parameters_of(call, place, generation.used, self._asked)
            maps = None if attention is None or latents is None else attention.pictures[place]
            yield GeneratedPicture(to_picture(picture), parameters, maps)

    def _unchanged(self, call: Call) -> mx.array:
        """The pictures (B, H, W, 3) in [0, 1] of a call that changes nothing."""
        start, n = call.start, len(call.prompts)
        if isinstance(start, InputPicture):
            return mx.repeat(start.pixels / 2 + 0.5, n, axis=0)
        assert isinstance(start, InputLatents)
        return self.decode(mx.broadcast_to(start.x_0, (n, *start.x_0.shape[1:])))

    def _begin(
        self,
        call: Call,
        progress: Progress | None,
        attention: AttentionMaps | EditSide | None,
        with_start: bool = False,
    ) -> Generation:
        if call.changes_nothing:
            return Generation(self._used(call), _no_steps(), (*self.notes, *call.notes))
        self._check(call)
        if attention is not None and not (
            isinstance(attention, AttentionMaps | EditSide) and self.tokenizer is not None
        ):
            raise InputError(
                f"attention = {attention!r} should be a stable_diffusion.AttentionMaps or None, and needs a model that "
                f"reads texts with CLIP."
            )
        # 2. The LoRAs and embeddings that the texts name are applied and recorded.
        if call.second is not None and call.second.loras != call.loras:
            self._networks(call.second)  # refuses early what cannot be applied
        network, reader = self._networks(call)
        if call.passes[-1].refinement is not None:
            self._networks_of_refiner(call.passes[-1], call.passes[-1].refinement)  # the same
        if attention is not None and any(each.tiles for each in call.passes):
            raise InputError("attention is recorded of whole pictures, not of tiles: leave out one of the two.")
        steps = self._passes(call, network, reader, progress, attention, with_start)
        return Generation(self._used(call), steps, (*self.notes, *call.notes), lambda: self.vae_precision)

    def _passes(
        self,
        call: Call,
        network: DenoisingNetwork,
        reader: TextReader,
        progress: Progress | None,
        attention: AttentionMaps | EditSide | None,
        with_start: bool,
    ) -> Generator[GenerationStep, None, None]:
        """The steps of one pass, and those of the second one of a hires fix."""
        passes = call.passes
        total, before = sum(len(each.plan) for each in passes), 0
        x_0: mx.array | None = None
        for number, each in enumerate(passes, 1):
            if x_0 is not None:
                x_0 = self._enlarged(x_0, each, progress)
                network, reader = self._networks(each)
            watched = attention if each is passes[-1] else None
            with closing(self._steps(each, network, reader, watched, progress, x_0)) as steps:
                for step in steps:
                    if with_start or not step.begins_pass:
                        yield replace(
                            step, index=before + step.index, total=total, pass_number=number, n_passes=len(passes)
                        )
            x_0, before = step.latents, before + len(each.plan)

    def _steps(
        self,
        call: Call,
        network: DenoisingNetwork,
        reader: TextReader,
        attention: AttentionMaps | EditSide | None,
        progress: Progress | None,
        x_0: mx.array | None = None,
    ) -> Generator[GenerationStep, None, None]:
        """What one pass begins with, and its steps; `x_0` is what it starts from if an earlier one has painted that."""
        width, height = call.size
        backend.fit_threads(memory.largest_product(self._unet, self._vae.config, len(call.prompts), *call.seen))
        # 3. The texts are encoded and prepared for the network, once.
        latents = height // self.downscale, width // self.downscale
        watcher = None
        if attention is not None:
            watcher = attention.begin(call.script, len(call.prompts), reader.tokenizers[0], latents)
        denoiser = self._denoiser(call, network, reader, progress, watcher=watcher)
        if call.refinement is not None:
            denoiser = self._refined(denoiser, call, call.refinement, progress)  # whose steps are not recorded
        # 4. The first latents: noise, or the input noised to the plan's first level.
        noise = NoiseStream(call.seeds, (*latents, self.latent_channels))
        if x_0 is not None:
            start = Start.from_latents(x_0, noise.varied(), call.plan, denoiser)
        else:
            assert not isinstance(call.start, FirstPass)
            encode = partial(self._encoded, tiles=call.tiles, around=call.around)
            start = start_from(call.start, call.plan, denoiser, noise, call.noise, encode, self.inpainting)
        if self.low_memory:
            mx.eval(start.x)
            self._unloader.drop(self._vae)
        # 5. The sampler steps towards x_0.
        models = [self] if call.refinement is None else [self, call.refinement.model]
        for model in models:
            model._painting += 1
        try:
            level = call.plan.start
            yield GenerationStep(
                0, len(call.plan), level.t, level.ve_sigma, call.seeds.first, start.x, start.x, begins_pass=True
            )
            for step in call.sampler.sample(start.denoiser, start.x, call.plan, noise):
                ends = step.index == step.total
                shown = start.shown(step)
                yield GenerationStep(
                    step.index, step.total, step.t, step.sigma, call.seeds.first, *shown, ends_pass=ends
                )
        finally:
            for model in models:
                model._painting -= 1
            for model in models[1:]:
                model._unloader.drop(*[model._unet] * model.low_memory)

    def _denoiser(
        self,
        call: Call,
        network: DenoisingNetwork,
        reader: TextReader,
        progress: Progress | None,
        begin: Callable[[], None] | None = None,
        watcher: Watcher | None = None,
    ) -> Denoiser:
        """This model as a denoiser of one generation; `begin` is called ahead of its network's first call."""
        cache, branches = None, self._unet.branches
        if call.deepcache_interval > 1 and branches:  # a refiner may have fewer than the first model
            cache = DeepCache(call.deepcache_interval, min(call.deepcache_branch, branches - 1))
        conditioned = ConditionedNetwork(
            network, reader, call.script, call.seen, call.cfg_weight, self._dtype, self.low_memory, cache, begin,
            watcher, call.around if call.tiles is None else (),
        )  # fmt: skip
        if self._unloads_encoders:
            conditioned.compute_texts()
            self._unloader.drop(*self._conditioner.encoders)
        predict: NetworkCall = conditioned
        if call.tiles is not None:
            side, overlap = call.tiles.on(self.downscale)
            predict = TiledNetwork(conditioned, side, overlap, self._unet.patch, progress, call.around)
        return Denoiser(
            predict,
            self.scheduler_config.prediction_type,
            call.cfg_weight,
            call.guidance_rescale,
            call.embeds_guidance,
            call.script.weights,
            call.interval,
            call.sampler.needs_negative,
            guidance=call.guidance,
        )

    def _guidance(self, guidance: Any, texts: Sequence[Any], n_images: int) -> Any:
        """The argument, with a `Steering` made into a `Guidance` for this model and these texts."""
        if not isinstance(guidance, Steering):
            return guidance
        from .guides.steering import guidance_of

        return guidance_of(guidance, self, [text for text in texts for _ in range(n_images)])

    def _refined(self, denoiser: Denoiser, call: Call, refinement: Refinement, progress: Progress | None) -> Denoiser:
        """The denoiser, with the refiner's for the last part; with low memory the two networks take turns."""
        refiner: StableDiffusion = refinement.model
        begin = partial(self._unloader.drop, self._unet) if self.low_memory else None
        own = replace(call, embeds_guidance=refiner._unet.embeds_guidance)
        second = refiner._denoiser(own, *self._networks_of_refiner(own, refinement), progress, begin)
        refiner._unloader.drop(refiner._vae, *[refiner._unet] * refiner.low_memory)
        second = replace(second, schedule=refinement.schedule)
        return replace(denoiser, refiner=second, refined_below=refinement.below)

    def _networks_of_refiner(self, call: Call, refinement: Refinement) -> tuple[DenoisingNetwork, TextReader]:
        """The refiner's network and text reader, with the first model's LoRAs if they fit."""
        fitting = refinement.model.family == self.family
        found: tuple[DenoisingNetwork, TextReader] = refinement.model._networks(
            call, self._chosen(call.loras) if fitting else ()
        )
        return found

    def _networks(self, call: Call, choices: tuple[Choice, ...] | None = None) -> tuple[DenoisingNetwork, TextReader]:
        """Network and text reader of one generation, with the embeddings that its texts name, and their LoRAs.

        A refiner gets the `choices` of the first model.
        """
        network, reader = self._unet, self._conditioner.replaced(clip_skip=call.clip_skip)
        changed = bool(call.loras if choices is None else choices)
        choices = self._chosen(call.loras) if choices is None else choices
        if changed:
            network, reader = self._laid_over(choices, reader)
        else:
            self._overlay.forget()
        return network, self._with_embeddings(call.script.pieces, reader, choices)

    def _chosen(self, tags: Loras) -> tuple[Choice, ...]:
        """The LoRAs of one generation: those of `set_loras`, then those that its texts' tags name."""
        return (*self._loras, *self._overlay.choose(tags, names_only=True))

    def _used(self, call: Call) -> Used:
        """The files of a generation, with their current hashes."""
        loras = self._chosen(tuple(dict.fromkeys(lora for each in call.passes for lora in each.loras)))
        pieces = list(dict.fromkeys(piece for each in call.passes for piece in each.script.pieces))
        named = self._embeddings.named_in(pieces, self.tokenizer) if self.tokenizer is not None else {}
        refinement = call.passes[-1].refinement
        return Used(
            self.name,
            "float16" if self.float16 else "float32",
            backend.version(),
            tuple(self.loras),
            {each.name: files.short_hash(each.path) for each in loras},
            {name: files.short_hash(path) for name, path in named.items() if path},
            sampler=a1111_name(call.sampler),
            refiner=None if refinement is None else refinement.model.name,
            refiner_hash=None if refinement is None else refinement.model._files_used["model_hash"],
            **self._files_used,
        )


def _no_steps() -> Generator[GenerationStep, None, None]:
    yield from ()


def _is_list(texts: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(texts, Sequence) and not isinstance(texts, str)
