"""torch brings a BLAS and an OpenMP runtime of its own: both engines are right in one process, in either order."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.parity

TORCH = "import torch; a = torch.arange(1.0, 401.0).reshape(20, 20); assert (a @ torch.eye(20) == a).all()\n"
OURS = """
import warnings; warnings.simplefilter("error")
from stable_diffusion import backend
from stable_diffusion.backend import mx
backend.prepare()
a = mx.arange(1.0, 401.0).reshape(20, 20)
assert mx.array_equal(a @ mx.eye(20), a).item()
warnings.resetwarnings()
"""
TOGETHER = """
x = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
ours = torch.tensor((mx.array(x.numpy()) @ mx.array(x.numpy()).T).tolist())
assert (ours - x @ x.T).abs().max() < 1e-3
print(backend.describe())
"""


@pytest.mark.parametrize("order", [TORCH + OURS, OURS + TORCH], ids=["torch first", "torch second"])
def test_shares_a_process_with_torch(order):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", order + TOGETHER], env=os.environ | {"PYTHONPATH": root},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "MLX" in done.stdout
