"""The lessons with less to compute: smaller numbers, the same code."""

from stable_diffusion.lessons import (
    clusters,
    fewer_steps,
    guidance,
    one_picture,
    other_words,
    sampler_race,
    seeds,
    text_arithmetic,
)

NUMBERS = (
    (sampler_race, "SAMPLERS", {"Euler": "euler", "DPM++ 2M": "dpmpp_2m"}),
    (sampler_race, "LIMIT", 20),
    (sampler_race, "STEPS", (4, 8)),
    (fewer_steps, "STEPS", (2, 4)),
    (clusters, "N", 40),
    (guidance, "WEIGHTS", (0.0, 1.0, 9.0)),
    (one_picture, "TEXT_STEPS", 2),
    (one_picture, "UNET_STEPS", 2),
    (one_picture, "PAINTING_STEPS", 3),
    (one_picture, "AMOUNTS", (0.0, 1.6)),
    (other_words, "SHARES", (0.0, 0.8)),
    (other_words, "MOST_STEPS", 6),
    (text_arithmetic, "SHARES", (0.0, 1.0)),
    (seeds, "STRENGTHS", (0.0, 1.0)),
)
