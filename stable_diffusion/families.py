"""What is known of each family of models."""

from __future__ import annotations

# How latents become colours without the VAE: rows are latent channels, columns R, G, B; then the bias; the outcome lies
# in [-1, 1]. sd1, sd2 (they share one latent space) and sdxl: the constants of InvokeAI (Apache-2.0),
# invokeai/app/util/step_callback.py, there credited to @keturn and @torridgristle (SD 1.x) and @StAlKeR7779 (SDXL).
# postcards-tiny: least squares, by benchmarks/fit_latent_rgb.py.
_SD1_RGB = ((0.3444, 0.1385, 0.0670), (0.1247, 0.4027, 0.1494), (-0.3192, 0.2513, 0.2103), (-0.1307, -0.1874, -0.7445))
RGB_FACTORS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, float, float]]] = {
    "sd1": (_SD1_RGB, (0.0, 0.0, 0.0)),
    "sd2": (_SD1_RGB, (0.0, 0.0, 0.0)),
    "sdxl": (
        ((0.3816, 0.4930, 0.5320), (-0.3753, 0.1631, 0.1739), (0.1770, 0.3588, -0.2048), (-0.4350, -0.2644, -0.4289)),
        (0.0, 0.0, 0.0),
    ),
    "postcards-tiny": (
        ((0.2136, 0.1851, 0.2926), (-0.3970, -0.1402, 0.0749), (0.1615, 0.2139, 0.4853), (0.1241, -0.0916, 0.1696)),
        (0.0848, 0.0021, 0.1259),
    ),
}
