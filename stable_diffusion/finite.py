"""NaN and infinite numbers in a generation: found, and traced to the part that makes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mlx.utils import tree_flatten

from .adapters.overlay import Choice, Overlay
from .backend import mx
from .errors import CheckpointError, NotFiniteError

FULL = "float16=False, --no-float16"


def is_finite(array: mx.array) -> bool:
    """Whether there is no NaN and no infinity in an array; evaluates it."""
    return bool(mx.isfinite(array).all().item())


def all_finite(tree: Any) -> bool:
    """The same of all floating-point arrays of a tree, such as a network's parameters."""
    return all(is_finite(array) for array in _arrays(tree) if mx.issubdtype(array.dtype, mx.floating))


def is_half(network: Any) -> bool:
    """Whether some weights of a network are in half precision, whose largest number is 65,504."""
    return any(array.dtype == mx.float16 for array in _arrays(network.parameters()))


def one_colour(pictures: mx.array) -> list[int]:
    """The indices of pictures (B, H, W, C) that are a single colour."""
    flat = (pictures.max(axis=(1, 2)) == pictures.min(axis=(1, 2))).all(axis=1)
    return [i for i in range(len(flat)) if flat[i].item()]


def blame_latents(
    name: str, float16: bool, overlay: Overlay, choices: Sequence[Choice], encoders: Iterable[Any], vae: Any
) -> NotFiniteError:
    """The error for latents that are not finite, after looking at the weights of all networks.

    `overlay` has the bare U-Net, `choices` are the LoRAs over it, and `encoders` the bare text encoders.
    """
    damaged = f"The file may be damaged: download or copy it again, choose another one, or load it in float32 ({FULL})."
    if not all_finite(overlay.bare.unet.parameters()):
        return NotFiniteError(f"The U-Net of {name!r} has weights that are NaN or infinite. {damaged}", "unet")
    if not all(all_finite(each.parameters()) for each in encoders):
        return NotFiniteError(f"The text encoder of {name!r} has weights that are NaN or infinite. {damaged}", "text")
    if broken := [choice for choice in choices if not _is_finite_with(overlay, choice)]:
        names = ", ".join(repr(choice.name) for choice in broken)
        return NotFiniteError(
            f"With the LoRA {names} weights are NaN or infinite, without it they are not: leave it out, lower its "
            "strength, or download it again.",
            "lora",
        )
    if not all_finite(vae.parameters()):
        return blame_vae(name, vae)
    loras = ", ".join(repr(choice.name) for choice in choices)
    less = f"lower the strength of the LoRA {loras}, or try" if loras else "try"
    rest = f"{less} another sampler, a lower CFG, or the prompt without embeddings."
    mend = f"Load the model in float32 ({FULL}), or {rest}" if float16 else f"{rest[0].upper()}{rest[1:]}"
    return NotFiniteError(
        f"The U-Net of {name!r} gives NaN or infinite numbers, although its weights are finite. {mend}", "unet"
    )


def blame_vae(name: str, vae: Any) -> NotFiniteError:
    """The error for pictures that are not finite although the latents are."""
    if not all_finite(vae.parameters()):
        mend = (
            f"The VAE of {name!r} has weights that are NaN or infinite: choose another VAE (vae=, --vae), or load the "
            f"model in float32 ({FULL})."
        )
        return NotFiniteError(mend, "vae")
    return NotFiniteError(
        f"The VAE of {name!r} decodes to NaN or infinite numbers. Choose another VAE (vae=, --vae).", "vae"
    )


def _is_finite_with(overlay: Overlay, lora: Choice) -> bool:
    """Whether weights are finite with this LoRA alone over them."""
    try:
        networks = overlay.networks((lora,))
        return all(all_finite(network.parameters()) for network in networks.components().values())
    except (CheckpointError, OSError):  # its file has changed meanwhile
        return True


def _arrays(tree: Any) -> list[mx.array]:
    flat: Any = tree_flatten(tree)
    return [value for _, value in flat if isinstance(value, mx.array)]
