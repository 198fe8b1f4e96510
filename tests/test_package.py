"""The package as pip installs it: what is in it, what it needs, and that it works where nothing else of ours is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from PIL import Image

import stable_diffusion

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MACHINES = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]
PYTHONS = ("3.11", "3.12", "3.13")


def package_files() -> set[str]:
    """What belongs to the package: what git tracks or would; without git, all that lies in its folder."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "stable_diffusion"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return {name for name in listed if (ROOT / name).is_file()}
    found = (path for path in (ROOT / "stable_diffusion").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from a copy (a build leaves its traces) and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    source, target = folder / "source", folder / "installed"
    for name in [*package_files(), "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in ("app.py", "models.py", "utils.py", "tests/drawn.py", "benchmarks/engine.py"):  # which stay outside
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--no-compile", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A command in a folder, with the installed package in the place of the checkout."""
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_everything_of_the_package_is_in_it_and_nothing_else(installed):
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    outside = {name for name in names if not name.startswith(("stable_diffusion/", "stable_diffusion_mlx-"))}
    assert {name for name in names if name.startswith("stable_diffusion/")} == package_files()
    assert outside == {"bin/stable-diffusion"}


def test_what_it_says_of_itself(installed):
    (told,) = metadata.distributions(path=[str(installed)])
    assert (told.name, told.version) == ("stable-diffusion-mlx", stable_diffusion.__version__)
    assert told.metadata["License-Expression"] == "MIT" and told.metadata["Requires-Python"] == ">=3.11"
    assert told.metadata["Description"].startswith("# Stable Diffusion for MLX")
    assert set(told.metadata.get_all("Provides-Extra")) == {"cpu", "cuda12", "cuda13", "heic", "page", "serve", "test"}
    (script,) = told.entry_points
    assert (script.group, script.name) == ("console_scripts", "stable-diffusion")
    assert any(file.name == "LICENSE" for file in told.files)


def test_it_paints_from_an_empty_folder(installed, tmp_path):
    program = str(installed / "bin" / "stable-diffusion")
    told = run(installed, tmp_path, program, "--version")
    assert told.stdout.startswith(f"stable_diffusion {stable_diffusion.__version__}, mlx "), told.stderr
    assert run(installed, tmp_path, program, "--help").stdout.startswith("usage: stable-diffusion [-h]")
    painted = run(installed, tmp_path, program, "txt2img", "a red house", "--steps", "1", "--output", "a.png")
    assert painted.returncode == 0, painted.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (128, 128)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_page_is_in_it(installed, tmp_path):
    pytest.importorskip("streamlit")
    code = (
        "import stable_diffusion; from stable_diffusion.webui import main; from stable_diffusion.commands import page\n"
        "print(stable_diffusion.__file__, len(page.settings([])) > 20, len(main.middleware()))"
    )
    done = run(installed, tmp_path, sys.executable, "-c", code)
    assert done.stdout.split() == [str(installed / "stable_diffusion" / "__init__.py"), "True", "2"], done.stderr


# --- What it needs


def requirements(name: str) -> list[Requirement]:
    """Those of a file; comments and empty lines are left out."""
    lines = ((ROOT / name).read_text()).splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def environment(python: str, machine: tuple[str, str, str]) -> dict[str, str]:
    platform, system, processor = machine
    return default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": platform,
        "platform_system": system,
        "platform_machine": processor,
        "extra": "",
    }


def wanted(needed: list[Requirement], python: str, machine: tuple[str, str, str]) -> dict[str, tuple[set, str]]:
    """What is needed on a machine: by name, the extras and the range."""
    here = [each for each in needed if not each.marker or each.marker.evaluate(environment(python, machine))]
    merged: dict[str, tuple[set, str]] = {}
    for each in here:
        name = each.name.lower().replace("_", "-")
        extras, _ = merged.get(name, (set(), ""))
        merged[name] = (extras | each.extras, str(each.specifier))
    return merged


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: f"{machine[0]} {machine[2]}")
@pytest.mark.parametrize("python", PYTHONS)
def test_the_requirement_files_and_the_package_ask_for_the_same(python, machine):
    extras = PROJECT["optional-dependencies"]
    whole = map(Requirement, [*PROJECT["dependencies"], *extras["cpu"], *extras["page"]])
    assert wanted(list(whole), python, machine) == wanted(requirements("requirements.txt"), python, machine)
    tests = list(map(Requirement, extras["test"]))
    assert wanted(tests, python, machine) == wanted(requirements("requirements-dev.txt"), python, machine)


def test_the_page_serves_the_api_too():
    extras = PROJECT["optional-dependencies"]
    assert set(extras["serve"]) < set(extras["page"])


def test_the_extras_for_cuda_differ_in_mlx_alone():
    extras = PROJECT["optional-dependencies"]
    for backend in ("cuda12", "cuda13"):
        assert extras[backend] == [extras["cpu"][0].replace("[cpu]", f"[{backend}]")]


LOCKS = {
    "cpu": ["requirements.txt"],
    "cuda12": ["requirements.txt"],
    "cuda13": ["requirements.txt"],
    "test": ["requirements.txt", "requirements-dev.txt", "requirements-parity.txt", "requirements-alone.txt"],
}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_fixes_all_that_is_needed_on_every_machine(lock):
    assert {path.stem for path in (ROOT / "locks").iterdir()} == set(LOCKS)
    fixed = requirements(f"locks/{lock}.txt")
    needed = [each for name in LOCKS[lock] for each in requirements(name)]
    for python in PYTHONS:
        for machine in MACHINES:
            versions = wanted(fixed, python, machine)
            for name, (_, ranges) in wanted(needed, python, machine).items():
                assert name in versions, f"{name} is not in locks/{lock}.txt for Python {python} on {machine}"
                version = versions[name][1].removeprefix("==")
                assert Requirement(f"{name}{ranges}").specifier.contains(version), f"{name} {version} in {lock}"
            library = {"darwin": "mlx-metal"}.get(
                machine[0], {"cuda12": "mlx-cuda-12", "cuda13": "mlx-cuda-13"}.get(lock, "mlx-cpu")
            )
            assert versions[library] == versions["mlx"]


@pytest.mark.parametrize("lock", LOCKS)
def test_pip_takes_a_lock_as_constraints(lock):
    """Which have no extras, no addresses and no options; and what torch brings for a GPU is not for us to fix."""
    for each in requirements(f"locks/{lock}.txt"):
        assert re.fullmatch(r"==[^,*]+", str(each.specifier)) and not each.extras and not each.url, each
        assert not (lock == "test" and re.match("nvidia-|cuda-|triton", each.name))


def test_the_locks_agree():
    for python in PYTHONS:
        for machine in MACHINES:
            tests = wanted(requirements("locks/test.txt"), python, machine)
            for lock in ("cpu", "cuda12", "cuda13"):
                own = wanted(requirements(f"locks/{lock}.txt"), python, machine)
                assert {name: own[name] for name in own.keys() & tests.keys()} == {
                    name: tests[name] for name in own.keys() & tests.keys()
                }
