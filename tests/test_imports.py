"""Imports follow the data's way: a file may import only what stands above it, and Streamlit stays on the screen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom of the engine to the screen. A folder stands for all its files.
ORDER = [
    "stable_diffusion/__init__.py",  # resolves its names when they are asked for
    "stable_diffusion/errors.py",
    "stable_diffusion/atomic.py",
    "stable_diffusion/checks.py",
    "stable_diffusion/hires.py",
    "stable_diffusion/steering.py",
    "stable_diffusion/places.py",
    "stable_diffusion/gpu_lock.py",
    "stable_diffusion/listing.py",
    "stable_diffusion/relink.py",
    "stable_diffusion/mlx_packages.py",
    "stable_diffusion/backend.py",
    "stable_diffusion/ranks.py",
    "stable_diffusion/config.py",
    "stable_diffusion/families.py",
    "stable_diffusion/schedules.py",
    "stable_diffusion/recipes.py",
    "stable_diffusion/pictures",
    "stable_diffusion/record/parameters.py",
    "stable_diffusion/record/inputs.py",
    "stable_diffusion/text/tokenizer_files.py",
    "stable_diffusion/text/tokenizer.py",
    "stable_diffusion/text/language.py",
    "stable_diffusion/text/tags.py",
    "stable_diffusion/text/wildcards.py",
    "stable_diffusion/text/dynamic.py",
    "stable_diffusion/text/styles.py",
    "stable_diffusion/text/prompt.py",
    "stable_diffusion/text/blend.py",
    "stable_diffusion/text/script.py",
    "stable_diffusion/text/chunks.py",
    "stable_diffusion/text/words.py",
    "stable_diffusion/record/used.py",
    "stable_diffusion/record/keys.py",
    "stable_diffusion/record/passes.py",
    "stable_diffusion/record/programs",
    "stable_diffusion/record/reading.py",
    "stable_diffusion/record/long.py",
    "stable_diffusion/record/picture_files.py",
    "stable_diffusion/record/film.py",
    "stable_diffusion/setting.py",
    "stable_diffusion/ops",
    "stable_diffusion/diffusion/network.py",
    "stable_diffusion/attention.py",
    "stable_diffusion/prompt_edit.py",
    "stable_diffusion/layers.py",
    "stable_diffusion/clip.py",
    "stable_diffusion/unet.py",
    "stable_diffusion/vae.py",
    "stable_diffusion/vae_tiny.py",
    "stable_diffusion/tiles.py",
    "stable_diffusion/memory.py",
    "stable_diffusion/diffusion/enlarging.py",
    "stable_diffusion/diffusion/noise.py",
    "stable_diffusion/diffusion/schedule.py",
    "stable_diffusion/diffusion/spacing.py",
    "stable_diffusion/text/conditioning.py",
    "stable_diffusion/diffusion/guiding.py",
    "stable_diffusion/diffusion/denoiser.py",
    "stable_diffusion/diffusion/tiled.py",
    "stable_diffusion/diffusion/samplers",
    "stable_diffusion/sampler.py",
    "stable_diffusion/diffusion/inversion.py",
    "stable_diffusion/diffusion/start.py",
    "stable_diffusion/diffusion/refining.py",
    "stable_diffusion/diffusion/call.py",
    "stable_diffusion/model_io",
    "stable_diffusion/catalogue.py",
    "stable_diffusion/adapters",
    "stable_diffusion/upscaling",
    "stable_diffusion/guides",
    "stable_diffusion/hires_upscalers.py",
    "stable_diffusion/finite.py",
    "stable_diffusion/diffusion/deep_cache.py",
    "stable_diffusion/diffusion/conditioned.py",
    "stable_diffusion/request.py",
    "stable_diffusion/generation.py",
    "stable_diffusion/model.py",
    "stable_diffusion/pipeline.py",
    "stable_diffusion/training",
    "stable_diffusion/selftest",
    "stable_diffusion/recorded.py",
    "stable_diffusion/prompts.py",
    "stable_diffusion/compare",
    "stable_diffusion/morph.py",
    "stable_diffusion/service",
    "stable_diffusion/lessons",
    "stable_diffusion/commands",
    "stable_diffusion/webui",
    "stable_diffusion/__main__.py",
    "models.py",
    "utils.py",
    "app.py",
]


def files() -> list[Path]:
    found = [*ROOT.glob("*.py"), *ROOT.glob("stable_diffusion/**/*.py")]
    return sorted(path.relative_to(ROOT) for path in found)


def place(path: Path) -> int:
    """The line of ORDER that a file belongs to."""
    for i, entry in enumerate(ORDER):
        if path.as_posix() == entry or path.as_posix().startswith(entry + "/"):
            return i
    raise AssertionError(f"{path} has no place in ORDER: where does it stand in the house?")


def imported(path: Path) -> set[Path]:
    """The project's files that a file imports, when it is loaded or later."""
    found = set()
    package = path.parent
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= modules(Path(*alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom):
            base = package
            for _ in range(max(node.level - 1, 0)):
                base = base.parent
            base = (base if node.level else Path()) / Path(*(node.module or "").split("."))
            for alias in node.names:
                found |= modules(base / alias.name) or modules(base)
    return found - {path}


def modules(base: Path) -> set[Path]:
    candidates = {base.with_suffix(".py") if base.name else base, base / "__init__.py"}
    return {path for path in candidates if (ROOT / path).is_file()}


@pytest.mark.parametrize("path", files(), ids=str)
def test_only_what_stands_above_is_imported(path):
    # The engine's own package file names its public classes for type checkers, and imports nothing when loaded.
    if path == Path("stable_diffusion/__init__.py"):
        return
    for other in imported(path):
        if place(other) == place(path):  # files of one folder: model_io, samplers, webui
            continue
        assert place(other) < place(path), f"{path} imports {other}, which stands below it"


def test_no_cycles():
    edges = {path: imported(path) for path in files() if path != Path("stable_diffusion/__init__.py")}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " -> ".join(map(str, (*trail, path)))
        if path in done:
            return
        for other in edges.get(path, ()):
            visit(other, (*trail, path))
        done.add(path)

    for path in edges:
        visit(path, ())


@pytest.mark.parametrize("path", files(), ids=str)
def test_streamlit_and_torch_stay_out(path):
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    assert not names & {"torch", "diffusers", "transformers"}
    screen = path == Path("app.py") or path.parts[:2] == ("stable_diffusion", "webui")
    if not screen:
        assert "streamlit" not in names
    if path.parts[:2] in (("stable_diffusion", "pictures"), ("stable_diffusion", "catalogue.py")):
        assert "mlx" not in names


def test_the_package_needs_nothing_of_the_root():
    """It works wherever it is installed."""
    for path in files():
        if path.parts[0] == "stable_diffusion":
            assert not {other for other in imported(path) if other.parts[0] != "stable_diffusion"}, path


def test_errors_and_configurations_load_without_mlx():
    """`--help`, and a page that shows an error, need no accelerator."""
    code = (
        "import sys, stable_diffusion.errors, stable_diffusion.config, stable_diffusion.pictures.reading\n"
        "import utils, models\n"
        "assert not any(name.startswith('mlx') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_public_names():
    import stable_diffusion
    from stable_diffusion import errors

    own = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert sorted(stable_diffusion.__all__) == sorted(
        [
            *own, "AttentionMaps", "Blend", "GeneratedPicture", "Generation", "GenerationStep", "Guidance", "Hires",
            "Inpainting", "PictureMaps", "PromptEdit", "SimpleEulerSampler", "StableDiffusion", "Steering",
            "open_picture", "outpaint", "sampler_by_name", "samplers",
        ]
    )  # fmt: skip
    for name in stable_diffusion.__all__:
        assert getattr(stable_diffusion, name).__name__ == name
    with pytest.raises(AttributeError, match="Unet"):
        stable_diffusion.Unet  # noqa: B018


def test_public_names_load_no_more_than_they_need():
    code = (
        "import sys, stable_diffusion\n"
        "from stable_diffusion import Inpainting, InputError, open_picture, outpaint\n"
        "assert not any(name.startswith('mlx') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
