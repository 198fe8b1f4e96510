"""Paths that people give: `~` is a home folder in every option, variable and name."""

import argparse
import re
from pathlib import Path

import pytest

from stable_diffusion import catalogue, checks, places
from stable_diffusion.__main__ import build_parser
from stable_diffusion.adapters import files
from stable_diffusion.errors import CheckpointNotFoundError
from stable_diffusion.model_io import hashes, load_vae, locate
from stable_diffusion.model_io.convert import convert
from stable_diffusion.service import shared

PATHS = {"FILE", "FOLDER", "DIR", "DEST", "PICTURE", "MASK", "FILE-OR-FOLDER", "postcards|FOLDER"}  # metavars


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def actions(parser, name=""):
    """Every argument of every command, with the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, inner in action.choices.items():
                yield from actions(inner, f"{name} {command}".strip())
        else:
            yield name, action


def test_every_path_on_a_command_line_is_expanded(home):
    found = [(name, action) for name, action in actions(build_parser()) if action.metavar in PATHS]
    commands = {"txt2img", "inpaint", "blend", "again", "info", "convert", "train vae", "page"}
    assert commands <= {name for name, _ in found}
    for name, action in found:
        assert action.type is not None, f"{name} {action.dest} takes no path"
        assert action.type("~/a b/") == f"{home}/a b/", f"{name} {action.dest}"


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        (places.HOME_VARIABLE, places.home),
        (catalogue.FOLDERS_VARIABLE, lambda: catalogue.model_folders()[-1]),
        (files.VARIABLES[files.LORAS], lambda: files.folders(files.LORAS)[-1]),
        (files.VARIABLES[files.EMBEDDINGS], lambda: files.folders(files.EMBEDDINGS)[-1]),
        (shared.OUTPUTS_VARIABLE, shared.outputs),
        (hashes.CACHE_VARIABLE, hashes.cache_folder),
    ],
)
def test_every_variable_is_expanded(home, monkeypatch, variable, folder):
    monkeypatch.setenv(variable, "~/here")
    assert folder() == home / "here"
    monkeypatch.setenv(variable, "~nobody-of-this-name/here")
    assert folder() == Path("~nobody-of-this-name/here")  # as a shell does
    monkeypatch.setenv(variable, "")
    assert folder() not in (Path(), Path("."))


def test_names_may_be_paths_at_home_or_begin_with_a_tilde(home, monkeypatch):
    monkeypatch.chdir(home)
    (home / "a.safetensors").write_bytes(b"x")
    assert catalogue.find("~/a.safetensors").source == str(home / "a.safetensors")
    assert files.find(files.LORAS, "~/a.safetensors") == home / "a.safetensors"
    assert locate.locate("~/a.safetensors", False)[1] == load_vae.locate_vae("~/a.safetensors", False)
    for find in (
        catalogue.find,
        lambda name: files.find(files.LORAS, name),
        lambda name: locate.locate(name, False),
        lambda name: load_vae.locate_vae(name, False),
        lambda name: convert(name, home / "new"),
    ):
        with pytest.raises(CheckpointNotFoundError, match="~nobody-of-this-name"):
            find("~nobody-of-this-name")
    (home / "loras").mkdir()
    (home / "loras" / "~ink.safetensors").write_bytes(b"x")
    monkeypatch.setenv(places.HOME_VARIABLE, "~")
    assert files.find(files.LORAS, "~ink") == home / "loras" / "~ink.safetensors"


def test_home_folders_are_written_out_in_one_place():
    """`Path.expanduser` raises RuntimeError where there is no such user."""
    package = Path(places.__file__).parent
    using = [path for path in package.rglob("*.py") if re.search(r"expanduser\(", path.read_text(encoding="utf-8"))]
    assert sorted(using) == [Path(checks.__file__), Path(places.__file__)]
