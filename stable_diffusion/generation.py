"""The results of a generation: its steps, then finished pictures with their records."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .attention import PictureMaps
from .backend import mx
from .diffusion.call import Call
from .diffusion.start import InputPicture
from .hires import Hires
from .record import keys
from .record.parameters import Parameters
from .record.picture_files import save_picture
from .record.used import Used
from .request import SETTINGS, Request
from .sampler import key_of
from .steering import Steering
from .text.prompt import Blend


@dataclass(frozen=True)
class GenerationStep:
    """What one denoising step reached, or, if it `begins_pass`, what the first one of a pass begins with.

    `index` counts from 1 to `total`, over both passes of a hires fix; `pass_number` of `n_passes` says in which one it
    is, and `ends_pass` that it is its last step, so that the latents are a finished picture's. What begins a pass has
    the index of the step before, 0 at first, and comes only `with_start`. `t` is the time reached,
    in training steps, and `sigma` its noise level, noise to signal (k-diffusion's sigma). `seed` is the first
    picture's; picture i has seed + i, or with a variation the same. `latents` are x_t (B, h, w, C), float32, of unit
    variance at the prior, and `denoised` is the current estimate of x_0, of the same shape; at the beginning of a pass
    there is none yet, and it is x_t as well. Both arrays are lazy,
    except for networks on a Linux CPU.
    """

    index: int
    total: int
    t: float
    sigma: float
    seed: int
    latents: mx.array
    denoised: mx.array
    pass_number: int = 1
    n_passes: int = 1
    ends_pass: bool = False
    begins_pass: bool = False


class Generation(Iterator[GenerationStep]):
    """A generation under way: an iterator of its steps. Closing it cancels it.

    `notes` say what was changed or looks wrong, and are warned of as well.
    """

    def __init__(
        self,
        used: Used,
        steps: Generator[GenerationStep, None, None],
        notes: Sequence[str] = (),
        vae_precision: Callable[[], str | None] | None = None,
    ):
        self.notes = tuple(notes)
        self._used = used
        self._steps = steps
        self._vae_precision = vae_precision

    @property
    def used(self) -> Used:
        """Its model and other files, found when it began; the precision of the VAE is known once it has decoded."""
        return replace(self._used, vae_precision=self._vae_precision and self._vae_precision())

    def __next__(self) -> GenerationStep:
        return next(self._steps)

    def close(self) -> None:
        """Cancel the remaining steps."""
        self._steps.close()


@dataclass(frozen=True)
class GeneratedPicture:
    """A finished picture and its record; its attention maps if they were asked for."""

    image: Image.Image  # RGB
    parameters: Parameters
    attention: PictureMaps | None = None

    def save(self, path: str | os.PathLike) -> Path:
        """Write it as PNG, JPEG or WebP, by the path's suffix, with its parameters inside; return the path.

        An existing file is replaced. Raises `PictureError` for another suffix, and OSError.
        """
        return save_picture(self.image, path, self.parameters)


def parameters_of(call: Call, place: int, used: Used, asked: Mapping[str, Any]) -> Parameters:
    """The record of picture `place` (from 0) of a call's batch; `asked` are the fields of a `Request` for its model.

    Where an input picture or latents came from is not known here, and not recorded.
    """
    prompt, negative = call.prompts[place], call.negatives[place]
    varied = call.seeds.strength > 0
    blend = prompt.typed if isinstance(prompt.typed, Blend) else None
    request = Request(
        prompt=prompt.typed if isinstance(prompt.typed, str) else prompt.typed.start,
        blend_prompt="" if blend is None else blend.end,
        blend_share=0.0 if blend is None else blend.share,
        negative="" if negative is None else str(negative.typed),
        seed=call.seeds.of_pictures()[place],
        variation_seed=call.seeds.of_variations()[place] if varied else None,
        variation_strength=call.seeds.strength,
        vary_all_draws=call.seeds.all_draws,
        sampler=call.sampler,
        **_of_hires(call.hires),
        **_of_steering(None if call.guidance is None else call.guidance.steering),
        refiner=used.refiner,
        **{name: getattr(call, each.call) for name, each in SETTINGS.items() if hasattr(call, each.call)},
        **asked,
    )
    if isinstance(call.start, InputPicture) and call.start.mask is not None:
        some = Image.new("L", (1, 1))  # only that there was a mask matters
        request = replace(request, mask=some, mask_blur=0.0, masked_content=call.start.mask.content)
    made = request.to_record(used, call.size)
    made.strength = call.strength if call.hires is None else call.hires.strength
    if _can_be_repeated(call):
        made.extra |= keys.of_batch(len(call.prompts), place)
    return made


def _of_hires(hires: Hires | None) -> dict[str, Any]:
    """The fields of `Request` for a second pass; where it has none of its own, they have their defaults."""
    if hires is None:
        return {}
    given = {field.name: getattr(hires, field.name) for field in fields(hires)}
    if hires.sampler is not None:
        given["sampler"] = key_of(hires.sampler)
    return {f"hires_{name}": value for name, value in given.items() if value is not None}


def _of_steering(steering: Steering | None) -> dict[str, Any]:
    """The fields of `Request` for what steers besides the prompt."""
    if steering is None:
        return {}
    return {"steer_by": steering.by, "steer_scale": steering.scale, "steer_text": steering.text or ""}


def _can_be_repeated(call: Call) -> bool:
    """Whether a batch has one prompt and consecutive seeds, which is all that a record can express."""
    seeds = call.seeds.of_variations()
    same = all(each.typed == call.prompts[0].typed for each in call.prompts)
    return same and len(set(call.negatives)) == 1 and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
