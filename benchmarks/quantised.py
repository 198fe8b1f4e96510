"""8- and 4-bit weights compared with full precision: memory, error and time.

    python benchmarks/quantised.py               the embedded model, and Stable Diffusion 1.5's shapes, random weights
    python benchmarks/quantised.py postcards     the embedded model alone

Memory is that of the U-Net's and the text encoder's weights, with what is not quantised in float32 or in float16. The
error of a network is the root mean square of its output's change over that of the output, in float32. The error of a
picture is the mean and the largest change of a value, of 255, over several prompts and seeds.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from mlx.utils import tree_flatten

from stable_diffusion import StableDiffusion, __version__, backend
from stable_diffusion.backend import mx, nn
from stable_diffusion.clip import CLIPTextModel
from stable_diffusion.config import CLIPTextConfig, UNetConfig
from stable_diffusion.model_io.quantised import BITS, quantise
from stable_diffusion.unet import UNet

PROMPTS = ("a red house on green hills at sunset", "a lighthouse by the sea", "a blue tent under the moon")
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
SIDE = 16  # of the latents in a U-Net call


def size(networks: list[nn.Module], rest: int = 4) -> float:
    """MB of the weights, with `rest` bytes for each number that is not packed."""
    tensors = [tensor for network in networks for _, tensor in tree_flatten(network.parameters())]
    return sum(each.nbytes if each.dtype == mx.uint32 else each.size * rest for each in tensors) / 1e6


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


def postcards(bits: int | None) -> tuple[list[np.ndarray], float, list[nn.Module]]:
    """Pictures, seconds for each, and the networks."""
    sd = StableDiffusion("postcards-tiny", float16=False, bits=bits)
    start, pictures = time.perf_counter(), []
    for i, prompt in enumerate(PROMPTS):
        for step in sd.generate_latents(prompt, seed=i, cfg_weight=5.0):
            mx.eval(step.latents)
        pictures.append(np.array(sd.decode(step.latents)))
    return pictures, (time.perf_counter() - start) / len(PROMPTS), [sd._unet, *sd._conditioner.encoders]


def postcards_rows() -> None:
    print("| postcards-tiny | float32, MB | rest float16, MB | s a picture | mean change of 255 | largest |")
    print("|---|---|---|---|---|---|")
    exact: list[np.ndarray] = []
    for bits in (None, *BITS):
        pictures, seconds, networks = postcards(bits)
        exact = exact or pictures
        changes = [255 * np.abs(a - b) for a, b in zip(pictures, exact, strict=True)]
        mean, largest = np.mean([each.mean() for each in changes]), max(each.max() for each in changes)
        sizes = f"{size(networks):.1f} | {size(networks, 2):.1f}"
        print(f"| {bits or 'full'} | {sizes} | {seconds:.2f} | {mean:.2f} | {largest:.0f} |", flush=True)


def sd15_rows() -> None:
    """Each precision in turn turns over the same random networks, so that no more than one is in memory."""
    print("\n| SD 1.5's shapes | float32, MB | rest float16, MB | U-Net call, s | error, U-Net | error, text |")
    print("|---|---|---|---|---|---|")
    ids = mx.array(np.random.default_rng(0).integers(0, 49406, (1, 77)).astype(np.int32))
    x, t = mx.random.normal((1, SIDE, SIDE, 4), key=mx.random.key(1)), mx.array([500.0])
    words = mx.random.normal((1, 77, 768), key=mx.random.key(2))
    exact: list[np.ndarray] = []
    for bits in (None, *BITS):
        mx.random.seed(1)
        unet, text = UNet(UNetConfig(cross_attention_dim=768)), CLIPTextModel(CLIPTextConfig(**TEXT))
        mx.eval(unet.parameters(), text.parameters())
        if bits is not None:
            quantise(unet, [text], bits)
        context = unet.project_text(words)
        outputs = [unet(x, t, context), text(ids).last_hidden_state]
        mx.eval(outputs)
        start = time.perf_counter()
        mx.eval(unet(x, t, context))
        seconds = time.perf_counter() - start
        outputs = [np.array(each) for each in outputs]
        exact = exact or outputs
        errors = [rms(a - b) / rms(b) for a, b in zip(outputs, exact, strict=True)]
        sizes = f"{size([unet, text]):.0f} | {size([unet, text], 2):.0f}"
        print(f"| {bits or 'full'} | {sizes} | {seconds:.2f} | {errors[0]:.4f} | {errors[1]:.4f} |", flush=True)
        del unet, text, context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("postcards", "sd15"), help="one of the two tables alone")
    options = parser.parse_args()
    print(f"stable_diffusion {__version__}; {backend.describe()}; load average {os.getloadavg()[0]:.1f}\n")
    if options.what != "sd15":
        postcards_rows()
    if options.what != "postcards":
        sd15_rows()


if __name__ == "__main__":
    main()
