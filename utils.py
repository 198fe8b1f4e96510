"""Arrays to pictures and back, and picture files with their parameters: the names that users know, gathered."""

from stable_diffusion.pictures.arrays import approximate_rgb, grid, latent_picture, to_picture, to_uint8
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.record.picture_files import read_parameters, read_text, save_new_picture, save_picture

__all__ = [
    "Parameters",
    "approximate_rgb",
    "grid",
    "latent_picture",
    "read_parameters",
    "read_text",
    "save_new_picture",
    "save_picture",
    "to_picture",
    "to_uint8",
]
