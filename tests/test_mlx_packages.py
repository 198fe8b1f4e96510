"""MLX's packages, as they may be installed on Linux: none, one, or several; and what a person is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stable_diffusion import mlx_packages

ROOT = Path(__file__).parents[1]
BROKEN = 'raise ImportError("libmlx.so: cannot open shared object file")'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on other systems plain mlx has all")


def installed(folder: Path, *packages: str) -> Path:
    """A folder for the path in which these packages are installed, as their metadata has it."""
    for package in packages:
        info = folder / f"{package.replace('-', '_')}-0.32.4.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.32.4\n")
    return folder


def run(*command: str, path: Path) -> subprocess.CompletedProcess:
    """Python with `path` before all others."""
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        (
            ("mlx",),
            "MLX's library is not installed: pip install 'mlx[cpu]==0.32.4' installs the one for CPUs (with an NVIDIA "
            "GPU take cuda12 or cuda13 instead of cpu).",
        ),
        (
            (),
            "MLX's library is not installed: pip install 'mlx[cpu]' installs the one for CPUs (with an NVIDIA GPU take "
            "cuda12 or cuda13 instead of cpu).",
        ),
        (
            ("mlx", "mlx-cuda-13"),
            "MLX cannot be imported (libmlx.so: cannot open shared object file): "
            "pip install --force-reinstall 'mlx[cuda13]==0.32.4'",
        ),
        (
            ("mlx", "mlx-cpu", "mlx-cuda-12"),
            "mlx-cpu and mlx-cuda-12 are installed together, and overwrite each other's files. Keep one: "
            "pip uninstall -y mlx mlx-cpu mlx-cuda-12 && pip install 'mlx[cuda12]==0.32.4'",
        ),
    ],
)
def test_an_mlx_that_cannot_be_imported_is_explained(tmp_path, packages, told):
    mlx = installed(tmp_path, *packages) / "mlx"
    mlx.mkdir()
    (mlx / "__init__.py").touch()
    (mlx / "core.py").write_text(BROKEN)
    code = (
        "from importlib import metadata\n"
        "import stable_diffusion\n"
        "from stable_diffusion import mlx_packages\n"
        "def version(package):\n"
        f"    found = metadata.distributions(name=package, path=[{str(tmp_path)!r}])\n"
        "    return next((each.version for each in found), None)\n"
        "mlx_packages._version = version\n"
        "for name in ('StableDiffusion', 'sampler_by_name', 'GenerationStep'):\n"
        "    try:\n"
        "        getattr(stable_diffusion, name)\n"
        "    except ImportError as error:\n"
        "        print(type(error).__name__, error, type(error.__cause__).__name__)\n"
    )
    done = run("-c", code, path=tmp_path)
    assert done.stdout.splitlines() == [f"BackendError {told} ImportError"] * 3, done.stderr


def test_the_command_line_says_it_in_one_line(tmp_path):
    mlx = installed(tmp_path, "mlx-cuda-12", "mlx-cuda-13") / "mlx"
    mlx.mkdir()
    (mlx / "core.py").write_text(BROKEN)
    done = run("-m", "stable_diffusion", "txt2img", "a cat", "--output", str(tmp_path / "a.png"), path=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: mlx-cpu and mlx-cuda-12 and mlx-cuda-13 are installed together")
    assert not (tmp_path / "a.png").exists()


def test_two_libraries_are_refused_although_they_import(tmp_path):
    others = sorted({"mlx-cpu", "mlx-cuda-12"} - set(mlx_packages._installed()))
    done = run("-c", "import stable_diffusion.backend", path=installed(tmp_path, *others))
    assert "BackendError: mlx-cpu and mlx-cuda-12 " in done.stderr and "are installed together" in done.stderr


def test_one_library_or_a_build_of_ones_own_is_fine(monkeypatch):
    for found in ([], ["mlx-cpu"], ["mlx-cuda-12"], ["mlx-cuda-13"]):
        monkeypatch.setattr(mlx_packages, "_installed", lambda found=found: found)
        mlx_packages.check_single()


def test_a_mac_needs_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(mlx_packages, "_installed", lambda: ["mlx-cpu", "mlx-cuda-12"])
    mlx_packages.check_single()
    assert str(mlx_packages.import_failed(ImportError("no"))).endswith("pip install --force-reinstall mlx")
