"""What several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

EMBEDDED = Path(__file__).parents[1] / "stable_diffusion" / "checkpoints" / "postcards-tiny"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test remembers hashes in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STABLE_DIFFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def plain_prompts():
    """AppTest runs no JavaScript, so it types into Streamlit's own field; the tests in a browser have the page's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STABLE_DIFFUSION_PROMPT_FIELD", "plain")
        yield


@pytest.fixture(autouse=True, scope="session")
def ready_machine():
    """Networks that a test builds by itself are computed as those that are loaded."""
    from stable_diffusion import backend

    backend.prepare()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The embedded checkpoint as a folder of links, any of which a test may replace by a file of its own."""
    folder = tmp_path / "checkpoint"
    for source in EMBEDDED.rglob("*"):
        if source.is_file():
            target = folder / source.relative_to(EMBEDDED)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    return folder


def replace(file: Path, content: str | bytes) -> None:
    """Write a file of one's own where a link stood."""
    file.unlink()
    file.write_bytes(content.encode() if isinstance(content, str) else content)
