"""What the documents say is so: public names, paths, links, commands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_library_is_documented_as_its_docstrings_say():
    made = runpy.run_path(str(ROOT / "scripts" / "api_docs.py"))["document"]()
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == made, "python scripts/api_docs.py"


def test_the_lessons_are_written_down_as_the_page_has_them():
    made = runpy.run_path(str(ROOT / "scripts" / "learn_docs.py"))["document"]()
    written = (ROOT / "docs" / "learn.md").read_text(encoding="utf-8")
    assert written == made, "python scripts/learn_docs.py"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_code_are_there(path):
    text = path.read_text(encoding="utf-8")
    for quoted in re.findall(r"`((?:stable_diffusion|tests|benchmarks|scripts|docs|locks|examples)/[\w./-]+)`", text):
        assert (ROOT / quoted).exists(), quoted


def test_the_readme_is_short_and_its_commands_exist(capsys):
    from stable_diffusion.__main__ import build_parser

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    commands = set(re.findall(r"^stable-diffusion ([a-z0-9]+)", text, re.MULTILINE))
    offered = next(action for action in build_parser()._actions if action.dest == "command").choices
    assert commands <= set(offered) and {"txt2img", "img2img", "inpaint", "again"} <= commands
