"""The lessons in their order. A new one is one file of this folder and one row here."""

from __future__ import annotations

from . import (
    algorithm_1,
    algorithm_2,
    attention,
    clip_matrix,
    clusters,
    convolution,
    denoising,
    fewer_steps,
    flat_bound,
    flat_climb,
    flat_gan,
    flat_joint,
    flat_score,
    flat_vae,
    glossary,
    gradients,
    guidance,
    ink,
    inpainting,
    latent_walk,
    latents,
    markov,
    meaning,
    negative,
    norms,
    other_words,
    reverse,
    sampler_levels,
    sampler_noise,
    sampler_race,
    schedule,
    seeds,
    strength,
    system_map,
    text_arithmetic,
    tokens,
    training_record,
    unet_shapes,
)
from .lesson import Chapter, Lesson

CHAPTERS = (
    Chapter("Overview", (system_map.LESSON, denoising.LESSON)),
    Chapter(
        "A flat world",
        (flat_joint.LESSON, flat_score.LESSON, flat_bound.LESSON, flat_gan.LESSON, flat_climb.LESSON),
    ),
    Chapter("Where diffusion comes from", (ink.LESSON, markov.LESSON, schedule.LESSON, reverse.LESSON)),
    Chapter("From scratch", (algorithm_1.LESSON, algorithm_2.LESSON, training_record.LESSON)),
    Chapter("Samplers", (sampler_levels.LESSON, sampler_race.LESSON, sampler_noise.LESSON, fewer_steps.LESSON)),
    Chapter("Networks", (unet_shapes.LESSON, attention.LESSON, convolution.LESSON, norms.LESSON)),
    Chapter("Words", (tokens.LESSON, meaning.LESSON, clip_matrix.LESSON, text_arithmetic.LESSON)),
    Chapter("Latents", (flat_vae.LESSON, latents.LESSON, latent_walk.LESSON, clusters.LESSON)),
    Chapter(
        "Steering",
        (
            guidance.LESSON,
            gradients.LESSON,
            negative.LESSON,
            strength.LESSON,
            inpainting.LESSON,
            other_words.LESSON,
            seeds.LESSON,
        ),
    ),
    Chapter("Glossary", (glossary.LESSON,)),
)
LESSONS: dict[str, Lesson] = {lesson.key: lesson for chapter in CHAPTERS for lesson in chapter.lessons}
