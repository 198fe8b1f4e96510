"""The lessons of the page "How it works": each is a function of a loaded model that returns plain objects.

They run in the worker's thread; any thread may read what they return.
"""

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..attention import AttentionMaps, PictureMaps
from ..diffusion.schedule import NoiseLevel, NoiseSchedule
from ..pictures import arrays, heat
from ..pictures.reading import fit
from ..sampler import sampler_by_name
from .jobs import Report
from .painting import MAPS_SIDE
from .preview import jpeg, latents_jpeg
from .word_maps import ALL, EVERY

N_COLUMNS = 6  # of a strip of steps
GUIDANCES = (1.0, 3.0, 5.0, 9.0, 15.0)
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
TIMES = (0, 100, 250, 500, 750, 999)  # of the forward process, in thousandths of the training times


@dataclass(frozen=True)
class Schedule:
    """The noise of every training time; each array is (T,)."""

    beta: np.ndarray
    alpha_bar: np.ndarray
    sigma: np.ndarray  # noise to signal


@dataclass(frozen=True)
class Token:
    """One piece of a prompt."""

    position: int
    text: str
    id: int


@dataclass(frozen=True)
class Noised:
    """A picture at one time of the forward process, as JPEGs."""

    t: int
    alpha: float  # how much of the picture is left
    sigma: float  # how much noise there is
    latents: bytes
    picture: bytes


@dataclass(frozen=True)
class Space:
    """Texts as points: their first two principal components (N, 2), and all cosine similarities (N, N)."""

    texts: tuple[str, ...]
    points: np.ndarray
    share: float  # of the variance that the two components hold
    similarity: np.ndarray


@dataclass(frozen=True)
class Moment:
    """One step of a denoising: x_t and the estimate of x_0, decoded, as JPEGs."""

    index: int
    total: int
    sigma: float
    x_t: bytes
    x_0: bytes


@dataclass(frozen=True)
class Acting:
    """A painted picture as a JPEG, and where each word of its prompt acted."""

    picture: bytes
    maps: PictureMaps


@dataclass(frozen=True)
class Settings:
    """Settings of the lessons that paint."""

    prompt: str
    negative: str = ""
    steps: int = 20
    cfg: float = 5.0
    seed: int = 1
    sampler: str = "euler"


def schedule(model: Any, report: Report) -> Schedule:
    """The betas that the model was trained with, and the quantities derived from them."""
    noise = _noise_schedule(model)
    alpha_bar = noise.alpha_bars.astype(np.float64)
    beta = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    return Schedule(beta, alpha_bar, noise.ve_sigmas.astype(np.float64))


def tokens(model: Any, report: Report, text: str) -> tuple[Token, ...]:
    """The pieces of a prompt and their numbers, with the marks of its start and end, as far as the encoder reads."""
    tokenizer = model.tokenizer
    room = tokenizer.max_length - 2
    pieces, ids = tokenizer.tokens(text)[:room], tokenizer.encode(text)[:room]
    marked = [("(start)", tokenizer.bos_id), *zip(pieces, ids, strict=True), ("(end)", tokenizer.eos_id)]
    return tuple(Token(i, piece, token_id) for i, (piece, token_id) in enumerate(marked))


def forward(model: Any, report: Report, picture: Image.Image | None, settings: Settings) -> tuple[Noised, ...]:
    """A picture's latents with the noise of several times, and each decoded; without a picture the model paints one."""
    import mlx.core as mx

    from ..diffusion.noise import unit_normal

    if picture is None:
        x_0 = _paint(model, report, settings, "Painting a picture to begin with").latents
    else:
        report("Encoding the picture", None)
        x_0 = model.encode(picture, seed=settings.seed)
    noise = _noise_schedule(model)
    eps = unit_normal(x_0.shape, mx.random.key(settings.seed))
    shown = []
    for i, thousandth in enumerate(TIMES):
        report("Adding noise", i / len(TIMES))
        t = round(thousandth * (len(noise) - 1) / 999)
        level = NoiseLevel.from_alpha_bar(t, float(noise.alpha_bars[t]))
        x_t = level.noised(x_0, eps)
        shown.append(Noised(t, level.alpha, level.sigma, latents_jpeg(np.asarray(x_t)[0]), _decoded(model, x_t)))
    return tuple(shown)


def space(model: Any, report: Report, texts: Sequence[str]) -> Space:
    """Texts as points: the mean of the encoder's hidden states over a text's tokens, projected to a plane."""
    means = []
    for i, text in enumerate(texts):
        report("Reading the texts", i / len(texts))
        end = min(max(len(model.tokenizer.encode(text)), 1), model.tokenizer.max_length - 2) + 1
        means.append(np.asarray(model.encode_text(text), dtype=np.float64)[0, 1:end].mean(axis=0))
    return projected(tuple(texts), np.stack(means))


def projected(texts: tuple[str, ...], vectors: np.ndarray) -> Space:
    """Vectors (N, D), N at least 1, on their first two principal components, and their cosine similarities."""
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(texts), 2))
    points[:, : min(2, s.size)] = (u * s)[:, :2]
    total = float((s**2).sum())
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return Space(texts, points, float((s[:2] ** 2).sum()) / total if total else 1.0, unit @ unit.T)


def denoising(model: Any, report: Report, settings: Settings) -> tuple[Moment, ...]:
    """One picture in the making: x_t and the estimate of x_0 at some of its steps."""
    shown = []
    wanted = set(np.linspace(1, settings.steps, min(N_COLUMNS, settings.steps)).round().astype(int).tolist())
    with closing(_steps(model, settings)) as steps:
        for step in steps:
            report(f"Step {step.index} of {step.total}", step.index / step.total)
            if step.index in wanted:
                x_t, x_0 = _decoded(model, step.latents), _decoded(model, step.denoised)
                shown.append(Moment(step.index, step.total, float(step.sigma), x_t, x_0))
            else:
                np.asarray(step.latents)  # computed step by step, so that a cancel takes effect
    return tuple(shown)


def acting(model: Any, report: Report, settings: Settings) -> Acting:
    """Where each word acts while a picture is painted, in N_COLUMNS stages."""
    maps = AttentionMaps(N_COLUMNS)
    last = _paint(model, report, settings, "Painting a picture", attention=maps)
    return Acting(_decoded(model, last.latents), maps.pictures[0].smaller(MAPS_SIDE))


def overlaid(found: Acting, word: int, stage: int = ALL, level: str = EVERY) -> bytes:
    """A word's place at a stage and level, over the picture, as a JPEG."""
    stages, levels = None if stage == ALL else [stage], None if level == EVERY else [level]
    picture = Image.open(io.BytesIO(found.picture))
    return jpeg(heat.overlay(picture, found.maps.heat_map(word, stages, levels)))


def guidances(model: Any, report: Report, settings: Settings) -> tuple[tuple[float, bytes], ...]:
    """The same seed with increasing guidance."""
    shown = []
    for i, cfg in enumerate(GUIDANCES):
        step = _paint(model, report, settings, f"Guidance {cfg:g}, picture {i + 1} of {len(GUIDANCES)}", cfg_weight=cfg)
        shown.append((cfg, _decoded(model, step.latents)))
    return tuple(shown)


def strengths(
    model: Any, report: Report, picture: Image.Image | None, settings: Settings, other: str
) -> tuple[tuple[float, bytes], ...]:
    """A picture (strength 0) repainted with the prompt `other`, from increasing noise levels."""
    if picture is None:
        first = _paint(model, report, settings, "Painting a picture to begin with")
        picture = arrays.to_picture(np.asarray(model.decode(first.latents), dtype=np.float32)[0])
    picture = fit(picture, *model.default_size)
    shown = [(0.0, jpeg(picture))]
    for i, strength in enumerate(STRENGTHS):
        note = f"Strength {strength:g}, picture {i + 1} of {len(STRENGTHS)}"
        changes = {"text": other, "input_image": picture, "denoising_strength": strength}
        shown.append((strength, _decoded(model, _paint(model, report, settings, note, **changes).latents)))
    return tuple(shown)


def _noise_schedule(model: Any) -> NoiseSchedule:
    return NoiseSchedule.from_config(sampler_by_name("ddim").resolve(model.scheduler_config))


def _steps(model: Any, settings: Settings, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "text": settings.prompt,
        "negative_text": settings.negative or None,
        "num_steps": settings.steps,
        "cfg_weight": settings.cfg,
        "seed": settings.seed,
        "sampler": settings.sampler,
    }
    return model.generate_latents(**(arguments | changes))


def _paint(model: Any, report: Report, settings: Settings, note: str, **changes: Any) -> Any:
    """The last step of a generation."""
    last = None
    with closing(_steps(model, settings, **changes)) as steps:
        for last in steps:
            report(note, last.index / last.total)
            np.asarray(last.latents)
    return last


def _decoded(model: Any, latents: Any) -> bytes:
    return jpeg(arrays.to_picture(np.asarray(model.decode(latents), dtype=np.float32)[0]))
