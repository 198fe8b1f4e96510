"""A sharper decoder: Taming Transformers for High-Resolution Image Synthesis (Esser et al. 2021), section 3.1.

Squared error alone paints the mean of all pictures that a latent may stand for, and the mean is soft. Here a
discriminator tells the painter's patches from the decoder's, and the decoder learns to be mistaken for the painter:

    L_rec = |x - D(z)| + |phi(x) - phi(D(z))|^2         phi: normalised features (Zhang et al. 2018, equation 1)
    L_GAN: max over the discriminator, min over the decoder (equation 5), as hinge losses (Lim and Ye 2017)
    L     = L_rec + lambda L_GAN                         (equation 6)
    lambda = |grad L_rec| / (|grad L_GAN| + delta)       (equation 7; gradients of the decoder's last layer)

phi is the autoencoder's own encoder at four resolutions, which knows no pictures but the data's. Encoder and latents
stay as they are, so a diffusion that was trained on them need not be trained again.

The discriminator sees only what changes from pixel to pixel. Given the pictures themselves, whose colours differ far
more than their sharpness, it was right about 50 % of the patches after 1,000 steps, and lambda made noise of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..backend import mx, nn
from ..errors import InputError
from ..layers import Conv2d
from ..vae import Autoencoder, Encoder
from .data import Data
from .loop import Inputs, Loss
from .networks import load_autoencoder, write_decoder, write_part
from .recipe import Recipe
from .vae import DecoderTask

WIDTHS = (48, 96)  # of the discriminator's layers
DELTA = 1e-6  # equation 7
MOST = 1e4  # the largest lambda, as in the paper's code


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): pictures (B, H, W, 3) -> logits (B, H/4, W/4, 1), one for each patch of 20x20.

    Above 0: taken for real.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = [Conv2d(12, WIDTHS[0]), Conv2d(WIDTHS[0], WIDTHS[1], stride=2)]
        for conv in self.convs:  # to variance 2 / inputs, which keeps a signal's scale (He et al. 2015)
            conv.weight = math.sqrt(6) * conv.weight
        self.conv_out = Conv2d(WIDTHS[1], 1)

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, channels = x.shape
        cells = (2 * laplacian(x)).reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        x = cells.reshape(batch, height // 2, width // 2, 4 * channels)
        for conv in self.convs:
            x = conv(x)
            x = mx.maximum(x, 0.2 * x)
        return self.conv_out(x)


class AdversarialAutoencoder(Autoencoder):
    """An autoencoder and the discriminator of its pictures: one training state keeps both."""

    def __init__(self, autoencoder: Autoencoder, seed: int):
        super().__init__(autoencoder.config)
        self.update(autoencoder.parameters())
        mx.random.seed(seed)
        self.discriminator = Discriminator()

    def autoencoder(self) -> Autoencoder:
        """Without the discriminator."""
        model = Autoencoder(self.config)
        weights: dict[str, mx.array] = dict(tree_flatten(self.parameters()))
        model.update(tree_unflatten([(name, weights[name]) for name in dict(tree_flatten(model.parameters()))]))
        return model


class SharpTask(DecoderTask):
    """The task of the module's docstring. `gan_weight` multiplies lambda, which is 0 for the first `alone` steps."""

    name = "sharp"
    model: AdversarialAutoencoder

    def __init__(
        self,
        data: Data,
        model: Autoencoder,
        folder: Path,
        batch: int,
        seed: int = 0,
        gan_weight: float = 0.15,
        perceptual_weight: float = 0.5,
        alone: int = 100,
        decoder_only: bool = False,
        share: float = 1.0,
    ):
        self.before: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        super().__init__(data, AdversarialAutoencoder(model, seed), folder, batch, seed)
        self.gan_weight, self.perceptual_weight, self.alone = gan_weight, perceptual_weight, alone
        self.decoder_only, self.share = decoder_only, share

    def batch(self, examples: Sequence[int]) -> Inputs:
        """What `AutoencoderTask.batch` returns, and whether the discriminator has a say yet, 0 or 1."""
        step = examples[0] // self.step_size
        return *super().batch(examples), np.asarray(step >= self.alone, np.float32)

    def loss(self, x: mx.array, noise: mx.array, adversarial: mx.array | None = None) -> Loss:
        """Equation 6 for the decoder, equation 5 for the discriminator, both with the current weights.

        `adversarial` 0 leaves the discriminator out of equation 6. The value is L_rec + L_D. Decoder and discriminator
        get only their own gradients.
        """
        mean, deviation = self.model.moments(x)
        features = self.model.decoder.features(self.model.post_quant_conv(mean + deviation * noise))
        y = self.model.decoder.conv_out(features)
        shown = mx.stop_gradient(y)
        (rec, perceptual), towards_x = mx.value_and_grad(lambda y: self.reconstruction(x, y))(shown)
        fooling, towards_real = mx.value_and_grad(lambda y: -self.model.discriminator(y).mean())(shown)
        weight = adaptive_weight(self.model.decoder.conv_out, features, towards_x, towards_real)
        weight = self.gan_weight * weight * (1.0 if adversarial is None else adversarial)
        # A scalar with the gradient of L_rec + lambda L_GAN by y: each network is differentiated once.
        pull = (y * mx.stop_gradient(towards_x + weight * towards_real)).sum()
        telling = hinge(self.model.discriminator(x), self.model.discriminator(shown))
        figures = {"rec": rec, "perceptual": perceptual, "fooling": fooling, "telling": telling, "lambda": weight}
        return rec + telling + pull - mx.stop_gradient(pull), figures

    def reconstruction(self, x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        """L_rec, and its perceptual part alone."""
        perceptual = perceptual_distance(self.model.encoder, x, y)
        return mx.abs(x - y).mean() + self.perceptual_weight * perceptual, perceptual

    def measured(self, pictures: np.ndarray, back: np.ndarray) -> dict[str, float]:
        """With `edge_strength`."""
        return super().measured(pictures, back) | {"edges": edge_strength(back.clip(0, 1), pictures)}

    def exported(self) -> Autoencoder:
        """The trained decoder, or with a `share` below 1 a mixture with the one before: softer, nearer to the picture.

        Weights are mixed, not pictures (Wang et al. 2018, ESRGAN, equation 4).
        """
        model = self.model.autoencoder()
        trained: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        mixed = [(name, (1 - self.share) * self.before[name] + self.share * now) for name, now in trained.items()]
        model.update(tree_unflatten(mixed))
        return model

    def export(self) -> None:
        if self.decoder_only:
            write_decoder(self.folder, self.exported())
        else:
            write_part(self.folder, "vae", self.exported(), sample_size=self.data.size)


def sharp_task(
    data: Data, output: Path, recipe: Recipe, vae: str | None = None, share: float = 1.0, **own: Any
) -> SharpTask:
    """Sharpen the decoder of `vae`, a folder, or of the one in `output`.

    Raises `CheckpointNotFoundError` where there is no such folder, and `InputError` for a `share` of weights that the
    run itself replaces.
    """
    if share < 1 and vae is None:
        raise InputError(f"share = {share} mixes with the decoder before: say where it stays, with --vae DIR.")
    model = load_autoencoder(Path(vae) if vae else output / "vae")
    return SharpTask(data, model, output, recipe.batch, recipe.seed, share=share, **own)


def adaptive_weight(last: Conv2d, features: mx.array, of_rec: mx.array, of_gan: mx.array) -> mx.array:
    """Equation 7: |grad L_rec| / (|grad L_GAN| + delta), by the weights of the layer that made y of `features`.

    `of_rec` and `of_gan` are the losses' gradients by y (B, H, W, 3).
    """

    def norm(cotangent: mx.array) -> mx.array:
        made: Callable[[mx.array], mx.array] = lambda w: mx.conv2d(features, w, padding=last.padding)  # noqa: E731
        _, (gradient,) = mx.vjp(made, [last.weight], [cotangent])
        return mx.sqrt(mx.square(gradient).sum())

    return mx.stop_gradient(mx.minimum(norm(of_rec) / (norm(of_gan) + DELTA), MOST))


def hinge(real: mx.array, made: mx.array) -> mx.array:
    """The discriminator's loss: half of max(0, 1 - D(x)) + max(0, 1 + D(y)), means over patches."""
    return 0.5 * (mx.maximum(0, 1 - real).mean() + mx.maximum(0, 1 + made).mean())


def laplacian(x: mx.array) -> mx.array:
    """Each pixel's difference from its four neighbours, (B, H, W, C); 0 where colours change evenly, but for edges."""
    around = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    return 4 * x - around[:, :-2, 1:-1] - around[:, 2:, 1:-1] - around[:, 1:-1, :-2] - around[:, 1:-1, 2:]


def perceptual_distance(encoder: Encoder, x: mx.array, y: mx.array) -> mx.array:
    """Zhang et al. 2018, equation 1, without weights: squared differences of unit features, a mean over positions.

    Sums over the channels and over the encoder's resolutions; 0 to 4 for each.
    """
    pairs = zip(_levels(encoder, x), _levels(encoder, y), strict=True)
    return sum((mx.square(_unit(a) - _unit(b)).sum(axis=-1).mean() for a, b in pairs), mx.array(0.0))


def edge_strength(pictures: np.ndarray, originals: np.ndarray, edge: float = 0.1) -> float:
    """How steep edges are, as a share of the originals': the mean gradient where the originals have edges.

    Pictures (N, H, W, 3) in [0, 1]. An edge is a pixel at which the original's gradient exceeds `edge`. Elsewhere the
    gradient is noise, which would count as sharpness.
    """
    steepness, original = _steepness(pictures), _steepness(originals)
    edges = original > edge
    return float(steepness[edges].sum() / original[edges].sum())


def _steepness(pictures: np.ndarray) -> np.ndarray:
    """The gradient's magnitude at each pixel, the largest of the three channels; (N, H - 1, W - 1)."""
    down = pictures[:, 1:, :-1] - pictures[:, :-1, :-1]
    right = pictures[:, :-1, 1:] - pictures[:, :-1, :-1]
    return np.hypot(down, right).max(axis=-1)


def _levels(encoder: Encoder, x: mx.array) -> Iterator[mx.array]:
    """The features at each resolution."""
    x = encoder.conv_in(x)
    for level in encoder.down_blocks:
        for block in level.resnets:
            x = block(x)
        yield x
        if "downsample" in level:
            x = level.downsample(x)


def _unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt(mx.square(x).sum(axis=-1, keepdims=True) + 1e-8)
