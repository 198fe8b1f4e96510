"""The networks and the embedded model against stored outputs of diffusers and transformers, with no torch at hand.

tests/parity/make_goldens.py made the outputs; tests/parity/ makes the same comparison live, and more of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stable_diffusion import StableDiffusion, ops
from stable_diffusion.backend import mx

from . import drawn, networks, shapes
from .networks import relative_error

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-5

NUM_STEPS, CFG_WEIGHT = 20, 5.0
COLUMNS = 5
# (prompt, negative prompt, seed)
POSTCARDS = [
    ("a red house on green hills at sunset, with clouds", "", 1),
    ("a blue sailboat on the sea by day, with a rainbow", "", 2),
    ("a yellow tent in the desert at night, with stars", "", 3),
    ("a pine tree in snowy mountains on a bright day, with the sun", "", 4),
    ("a white lighthouse by the sea on a dark night, with a full moon", "", 5),
    ("a purple hot air balloon over rolling hills in the evening, with birds", "", 6),
    ("an orange windmill on the hills by day, a clear sky", "", 7),
    ("a cactus in desert dunes at sunset", "clouds", 8),
    ("a pink house in the mountains at night, with the moon", "stars", 9),
    ("a black sailboat on the ocean at sunset, with birds", "", 10),
    ("a red balloon over the sea on a bright day, with clouds", "", 11),
    ("a tree on green hills at night, with stars", "a house", 12),
    ("a white tent in snowy mountains at sunset", "", 13),
    ("a lighthouse by the ocean in the evening, with a rainbow", "", 14),
    ("a house in the desert on a dark night, with a full moon", "", 15),
    ("a yellow windmill on rolling hills at sunset, with the sun", "", 16),
    ("", "", 17),
    ("a green cactus, a clear sky", "a dark night", 18),
    ("é ü 日本 🏠 a blue house", "", 19),
    ("a sailboat, " * 40, "", 20),
]


def noise_for(seed: int) -> np.ndarray:
    """The initial noise (1, 16, 16, 4) of one of POSTCARDS."""
    return drawn.normal(f"postcard {seed}", 1, 16, 16, 4)


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "networks.npz") as file:
        return dict(file)


@pytest.fixture(params=["device", "plain"])
def forms(request) -> Iterator[None]:
    """Run with the forms of operations that this device takes, and with the plain ones."""
    with ops.use("plain") if request.param == "plain" else contextlib.nullcontext():
        yield


def write_weights(stored: dict[str, np.ndarray], network: str, folder: Path) -> Path:
    """The file that the reference would have saved, with the same drawn weights."""
    expected = json.loads(str(stored[network]))
    path = folder / "weights.safetensors"
    save_file({name: drawn.weight(name, tuple(shape)) for name, shape in expected.items()}, path)
    return path


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("name", shapes.UNETS)
def test_unet(name, stored, tmp_path):
    model = networks.load_unet(shapes.UNETS[name], write_weights(stored, f"unet/{name}", tmp_path))
    output = networks.run_unet(model, shapes.unet_inputs(name, 9, 7))
    assert relative_error(output, stored[f"unet/{name}/out"]) <= TOLERANCE


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("name", shapes.VAES)
def test_vae(name, stored, tmp_path):
    model = networks.load_vae(shapes.VAES[name], write_weights(stored, f"vae/{name}", tmp_path))
    for key, value in networks.run_vae(model, shapes.vae_inputs()).items():
        assert relative_error(value, stored[f"vae/{name}/{key}"]) <= TOLERANCE, key


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("kind", ["", "_projected"])
@pytest.mark.parametrize("name", shapes.TEXTS)
def test_text_encoder(name, kind, stored, tmp_path):
    config = {**shapes.TEXTS[name], "architectures": ["CLIPTextModelWithProjection" if kind else "CLIPTextModel"]}
    model = networks.load_text_encoder(config, write_weights(stored, f"text/{name}{kind}", tmp_path))
    for key, value in networks.run_text_encoder(model, shapes.text_ids()).items():
        assert relative_error(value[..., ::4], stored[f"text/{name}{kind}/{key}"]) <= TOLERANCE, key


@pytest.mark.filterwarnings("ignore::stable_diffusion.text.conditioning.PromptTruncatedWarning")
def test_postcards():
    """20 prompts with fixed noise: 8-bit pictures equal within 1 level on 99.9 % of values, each picture."""
    sheet = np.asarray(Image.open(GOLDENS / "postcards.png").convert("RGB")).astype(int)
    sd = StableDiffusion("postcards-tiny", float16=False)
    for i, (prompt, negative, seed) in enumerate(POSTCARDS):
        steps = sd.generate_latents(
            prompt,
            negative_text=negative,
            num_steps=NUM_STEPS,
            cfg_weight=CFG_WEIGHT,
            latents=noise_for(seed),
            prompt_language="plain",  # the reference's
        )
        for step in steps:
            mx.eval(step.latents)
        picture = np.rint(np.array(sd.decode(step.latents)[0]) * 255)
        top, left = i // COLUMNS * 128, i % COLUMNS * 128
        expected = sheet[top : top + 128, left : left + 128]
        assert np.ptp(expected) > 100
        assert (np.abs(picture - expected) <= 1).mean() >= 0.999, prompt
