"""The examples run, with few steps: scripts as a person starts them, the notebook cell by cell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}


def run(tmp_path, name, *options):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *options], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_example_is_tried_here():
    tried = {"text_to_image.py", "morph.py", "own_sampler.py", "text_to_image.ipynb"}
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} == tried


def test_text_to_image(tmp_path):
    run(tmp_path, "text_to_image.py", "--steps", "4", "--output", "made")
    assert Image.open(tmp_path / "made" / "picture.png").size == (128, 128)
    assert Image.open(tmp_path / "made" / "steps.png").width == 4 * 130, "four latents and four estimates"


def test_morph(tmp_path):
    run(tmp_path, "morph.py", "--steps", "2", "--frames", "3", "--output", "morph.gif")
    with Image.open(tmp_path / "morph.gif") as film:
        assert film.n_frames == 3


def test_own_sampler(tmp_path):
    run(tmp_path, "own_sampler.py", "--steps", "3", "--output", "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    one, same, other, _ = (sheet.crop((128 * i, 0, 128 * i + 128, 128)).tobytes() for i in range(4))
    assert one == same != other, "without stirring it is Euler's method"


def test_the_notebook(tmp_path, monkeypatch):
    pytest.importorskip("stable_diffusion")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "text_to_image.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "committed without outputs"
            exec("".join(cell["source"]).replace("STEPS = 20", "STEPS = 3"), names)
    assert len(names["pictures"]) == 2 and "Steps: 3" in names["pictures"][0].parameters.to_text()
