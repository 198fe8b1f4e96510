"""The judge of painted postcards: a small classifier of a picture's attributes, whose features measure realism.

It is trained only on the painter's own pictures, slightly blurred, shifted and noisy, so that it does not misread a
generated picture just because it is soft. adherence.py uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mlx.optimizers as optim
import numpy as np

from stable_diffusion import backend
from stable_diffusion.backend import mx, nn
from stable_diffusion.errors import InputError
from stable_diffusion.training.postcards.painter import (
    COLOURS,
    NEW_THINGS,
    PLACES,
    SKIES,
    THINGS,
    TIMES,
    Postcard,
    new_postcard,
    paint,
    random_postcard,
)

SIZE = 64  # pixels a side: larger pictures are shrunk to this
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "time": TIMES,
    "place": PLACES,
    "thing": THINGS,
    "colour": COLOURS,
    "sky": SKIES,
}
WITH_NEW_THINGS = {**ATTRIBUTES, "thing": (*THINGS, *NEW_THINGS)}
WIDTHS = (16, 40, 80)
Attributes = Mapping[str, Sequence[str]]
RATE, DECAY = 2e-3, 1e-2


class Classifier(nn.Module):
    """Pictures (B, 64, 64, 3) in [-1, 1] -> features (B, 160), and for each attribute logits (B, options)."""

    def __init__(self, attributes: Attributes = ATTRIBUTES) -> None:
        super().__init__()
        self.attributes = {name: tuple(options) for name, options in attributes.items()}
        inputs = (3, *WIDTHS[:-1])
        self.halve = [nn.Conv2d(4 * i, o, 3, padding=1) for i, o in zip(inputs, WIDTHS, strict=True)]
        self.refine = [nn.Conv2d(width, width, 3, padding=1) for width in WIDTHS]
        self.heads = {name: nn.Linear(2 * WIDTHS[-1], len(options)) for name, options in attributes.items()}

    def features(self, x: mx.array) -> mx.array:
        for halve, refine in zip(self.halve, self.refine, strict=True):
            x = nn.relu(halve(_space_to_depth(x)))
            x = x + nn.relu(refine(x))
        return mx.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)

    def __call__(self, x: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        features = self.features(x)
        return features, {name: head(features) for name, head in self.heads.items()}

    def read(self, pictures: np.ndarray) -> tuple[np.ndarray, dict[str, list[str]]]:
        """Pictures (N, H, W, 3) uint8 -> features (N, 160) and, for each attribute, the N predicted options."""
        features, predicted = [], {name: [] for name in self.attributes}  # type: tuple[list, dict[str, list[str]]]
        for i in range(0, len(pictures), 64):
            found, logits = self(mx.array(as_input(pictures[i : i + 64])))
            features.append(np.array(found))
            for name, options in self.attributes.items():
                predicted[name] += [options[int(j)] for j in np.array(logits[name]).argmax(-1)]
        return np.concatenate(features), predicted


def _space_to_depth(x: mx.array) -> mx.array:
    """(B, 2H, 2W, C) -> (B, H, W, 4C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def as_input(pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8, square, a multiple of 64 a side -> (N, 64, 64, 3) float32 in [-1, 1].

    Raises `InputError` for other shapes.
    """
    count, side = pictures.shape[:2]
    k = side // SIZE
    if pictures.shape[1:] != (k * SIZE, k * SIZE, 3) or k < 1:
        raise InputError(
            f"The judge reads square pictures of {SIZE}, {2 * SIZE}, ... pixels, not {pictures.shape[1:]}."
        )
    means = pictures.reshape(count, SIZE, k, SIZE, k, 3).astype(np.float32).mean((2, 4))
    return means / 127.5 - 1.0


def any_postcard(rng: np.random.Generator) -> Postcard:
    """Any combination, including those held out from training: the judge must know them too."""
    return random_postcard(rng, held_out=rng.random() < 1 / 9)


def any_postcard_or_new(rng: np.random.Generator) -> Postcard:
    """Any combination, or one of a thing that the embedded model never saw."""
    return new_postcard(rng) if rng.random() < 1 / (len(THINGS) + 1) else any_postcard(rng)


def train(
    steps: int = 4000,
    batch: int = 32,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
    attributes: Attributes = ATTRIBUTES,
    draw: Callable[[np.random.Generator], Postcard] = any_postcard,
) -> Classifier:
    """Train a classifier from scratch: AdamW, warm-up, cosine decay; the loss sums the attributes' cross-entropies."""
    backend.prepare()
    mx.random.seed(seed)
    rng = np.random.default_rng((seed, 1))
    model = Classifier(attributes)
    warm = max(min(100, steps // 4), 1)
    rate = optim.join_schedules(
        [optim.linear_schedule(1e-5, RATE, warm), optim.cosine_decay(RATE, steps - warm)], [warm]
    )
    optimizer = optim.AdamW(learning_rate=rate, weight_decay=DECAY)
    gradients_of = nn.value_and_grad(model, _loss)
    for step in range(1, steps + 1):
        cards = [draw(rng) for _ in range(batch)]
        pictures = disturbed(np.stack([np.asarray(paint(card, SIZE)) for card in cards]), rng)
        loss, gradients = gradients_of(
            model, mx.array(pictures), {k: mx.array(v) for k, v in labels(cards, attributes).items()}
        )
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, loss)
        if report:
            report(step, loss.item())
    return model


def labels(cards: Sequence[Postcard], attributes: Attributes = ATTRIBUTES) -> dict[str, np.ndarray]:
    """For each attribute the index of each card's option, (N,)."""
    return {
        name: np.array([options.index(getattr(card, name)) for card in cards]) for name, options in attributes.items()
    }


def _loss(model: Classifier, pictures: mx.array, truth: dict[str, mx.array]) -> mx.array:
    _, logits = model(pictures)
    return sum((nn.losses.cross_entropy(logits[name], truth[name], reduction="mean") for name in truth), mx.array(0))


def disturbed(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B, 64, 64, 3) uint8 -> float32 in [-1, 1], each slightly shifted, blurred and noisy, half of them mirrored."""
    x = pictures.astype(np.float32) / 127.5 - 1.0
    for i in range(len(x)):
        if rng.random() < 0.5:
            x[i] = x[i, :, ::-1]
        down, right = rng.integers(0, 5, 2)
        x[i] = np.pad(x[i], ((2, 2), (2, 2), (0, 0)), mode="edge")[down : down + SIZE, right : right + SIZE]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
    share = rng.uniform(0.0, 1.0, (len(x), 1, 1, 1)).astype(np.float32)
    noise = rng.uniform(0.0, 0.08, (len(x), 1, 1, 1)).astype(np.float32)
    gain = rng.uniform(0.94, 1.06, (len(x), 1, 1, 1)).astype(np.float32)
    return (x + share * (blurred - x)) * gain + noise * rng.standard_normal(x.shape, np.float32)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between normal distributions fitted to two sets of features (N, D): |m_a - m_b|^2 + tr(A + B - 2 sqrt(A B)).

    Dowson and Landau 1982; used on an image network's features by Heusel et al. 2017.
    """
    means, spreads = zip(*((x.mean(0), np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b)), strict=True)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(spreads[0] @ spreads[1]).real, 0.0)).sum()
    return float(np.square(means[0] - means[1]).sum() + np.trace(spreads[0] + spreads[1]) - 2 * roots)
