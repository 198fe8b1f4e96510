"""From a `Steering` to the gradient that steers: classifier guidance and CLIP guidance of postcards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .. import ops
from ..backend import mx, nn
from ..diffusion.guiding import Guidance, GuidanceFunction, of_estimate
from ..diffusion.network import PictureAutoencoder
from ..diffusion.schedule import NoiseLevel
from ..errors import InputError
from ..steering import CLASSIFIER, Steering
from . import classifier, contrastive
from .classifier import LatentClassifier, named_in
from .contrastive import CLIP

PROBED = 128  # pixels a side of the picture by whose latents a model is known
TOLERANCE = 0.1  # of its latents, whose deviation is 1
TILT = 2  # pixels by which CLIP sees the picture shifted, so that no single pixel counts


class Steerable(Protocol):
    """What is asked of a model; `StableDiffusion` has it."""

    name: str

    @property
    def autoencoder(self) -> PictureAutoencoder:
        """Between its latents and pictures."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    def downscale(self) -> int:
        """Pixels to one latent along each side."""

    def encode(self, picture: Any, width: int | None = None, height: int | None = None, seed: int = 0) -> mx.array:
        """A picture's latents."""


_loaded: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()  # by model, whose thread owns it


def guidance_of(steering: Steering, model: Steerable, prompts: Sequence[Any]) -> Guidance:
    """The guidance for a model's pictures, one for each of the prompts.

    Raises `InputError` for a model with other latents than the postcards', for a `Blend` of prompts, and where a
    classifier knows nothing of what the text says.
    """
    texts = list(prompts) if steering.text is None else [steering.text] * len(prompts)
    if not all(isinstance(text, str) for text in texts):
        raise InputError("Steering by a blend of prompts is not possible: say towards what (steer_text).")
    kept = _loaded.setdefault(model, {})
    if "fits" not in kept:
        kept["fits"] = fits(model)
    if not kept["fits"]:
        raise InputError(
            f"{model.name!r} has other latents than the postcards, which are all that the {steering.by} that comes "
            "along knows: leave out steer_by (--steer-by), or choose postcards-tiny."
        )
    function: GuidanceFunction
    if steering.by == CLASSIFIER:
        network = kept.setdefault(CLASSIFIER, None) or classifier.load()
        kept[CLASSIFIER] = network
        function = ClassifierGuide(network, [_wanted(text, network) for text in texts])
    else:
        clip = kept.get("clip") or contrastive.load()
        kept["clip"] = clip
        function = CLIPGuide(clip, clip.texts(texts), model.autoencoder.decode)
    return Guidance(function, steering.strength, steering)


def fits(model: Steerable) -> bool:
    """Whether a model's autoencoder makes the latents that the classifier was trained on, up to rounding."""
    wanted = np.array(classifier.load_config().probe)
    if model.latent_channels * 4 != len(wanted) or model.downscale != 8:
        return False
    picture = np.round((classifier.probe_picture(PROBED) + 1) * 127.5).astype(np.uint8)
    found = np.array(model.encode(picture, PROBED, PROBED).astype(mx.float32))[0]
    return bool(np.abs(np.array(classifier.probe_of(found)) - wanted).max() < TOLERANCE)


class ClassifierGuide:
    """grad log p(y | x_t) of a classifier of noisy latents; `wanted` has y of each picture, option by attribute."""

    def __init__(self, network: LatentClassifier, wanted: Sequence[Mapping[str, str]]):
        self.network, self.wanted = network, list(wanted)
        self._schedule = network.config.schedule()
        chosen: dict[str, np.ndarray] = {}  # attribute -> (pictures, options), 1 for what is wanted
        for name, options in network.config.heads.items():
            rows = [[float(each.get(name) == option) for option in options] for each in self.wanted]
            chosen[name] = np.array(rows, np.float32)
        self._chosen = {name: mx.array(rows) for name, rows in chosen.items() if rows.any()}
        self._gradient = mx.grad(lambda x, t: self.log_likelihood(x, t).sum())

    def log_likelihood(self, x: mx.array, t: mx.array) -> mx.array:
        """log p(y | x_t) of each picture (B,), the attributes being independent given x_t."""
        logits = self.network(x, t)
        total = mx.zeros((len(x),))
        for name, chosen in self._chosen.items():
            total = total + (nn.log_softmax(logits[name], axis=-1) * chosen).sum(axis=-1)
        return total

    def __call__(self, x: mx.array, level: NoiseLevel, x_0: mx.array) -> mx.array:
        t = self._schedule.t_from_ve_sigma(level.ve_sigma)
        mx.eval(x)
        with ops.use("learning"):
            found = self._gradient(x, mx.full((len(x),), t))
            mx.eval(found)
        return found

    def only(self, places: Sequence[int]) -> ClassifierGuide:
        """The same for some of the pictures."""
        return ClassifierGuide(self.network, [self.wanted[i] for i in places])


class CLIPGuide:
    """CLIP guidance: the gradient of CLIP's logit of the picture that the estimate of x_0 decodes to, and a text.

    At the best value of the contrastive loss the logit is log p(text | picture) - log p(text) + a constant (van den
    Oord et al. 2018, equation 5), so that its gradient in the picture is that of log p(text | picture). `texts` (B, P)
    are unit vectors, one for each picture; `decode` is the autoencoder's.
    """

    def __init__(self, clip: CLIP, texts: mx.array, decode: Callable[[mx.array], mx.array]):
        self.clip, self.texts, self._decode = clip, texts, decode
        self._guide = of_estimate(self.logits)

    def logits(self, x_0: mx.array) -> mx.array:
        """CLIP's logit (B,) of each estimate's picture and text, the mean over shifts by TILT pixels."""
        side = self.clip.side
        pictures = self._decode(x_0).astype(mx.float32)
        height, width = pictures.shape[1:3]
        k = min(height, width) // side
        if height != width or height % side:
            raise InputError(f"CLIP reads squares of {side}, {2 * side}, ... pixels, not {width}x{height}.")
        pictures = pictures.reshape(len(x_0), side, k, side, k, 3).mean((2, 4))
        shifts = [(0, 0), (TILT, 0), (-TILT, 0), (0, TILT), (0, -TILT)]
        total = mx.zeros((len(x_0),))
        for down, right in shifts:
            moved = _shifted(pictures, down, right)
            total = total + (self.clip.model.encode_images(moved) * self.texts).sum(axis=-1)
        return self.clip.model.scale * total / len(shifts)

    def __call__(self, x: mx.array, level: NoiseLevel, x_0: mx.array) -> mx.array:
        mx.eval(x_0)
        return self._guide(x, level, x_0)

    def only(self, places: Sequence[int]) -> CLIPGuide:
        """The same for some of the pictures."""
        return CLIPGuide(self.clip, self.texts[mx.array(list(places))], self._decode)


def _wanted(text: str, network: LatentClassifier) -> dict[str, str]:
    found = named_in(text, network.config.heads)
    if not found:
        known = "; ".join(f"{name}: {', '.join(options)}" for name, options in network.config.heads.items())
        raise InputError(f"The classifier knows nothing of what {text[:80]!r} says. It knows {known}.")
    return found


def _shifted(pictures: mx.array, down: int, right: int) -> mx.array:
    """Pictures (B, H, W, C) moved, with their edges repeated."""
    height, width = pictures.shape[1:3]
    rows = mx.clip(mx.arange(height) - down, 0, height - 1)
    columns = mx.clip(mx.arange(width) - right, 0, width - 1)
    return pictures[:, rows][:, :, columns]
