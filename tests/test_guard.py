"""Whose pages may talk to the server."""

import pytest

from stable_diffusion.service.guard import is_own

HOSTS = ["localhost", "127.0.0.1", "::1", "*.example.org"]


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("http://localhost:8501", True),
        ("https://LOCALHOST", True),
        ("http://127.0.0.1:1", True),
        ("http://[::1]:8501", True),
        ("https://pictures.example.org", True),
        ("http://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://evil.example#localhost", False),
        ("http://localhost@evil.example", False),
        ("http://example.org.evil", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("ftp://localhost", False),
        ("http://[::1", False),
        ("localhost", False),
    ],
)
def test_an_origin_counts_by_its_hosts_name_alone(origin, own):
    assert is_own(origin, HOSTS) is own
    assert is_own(origin, []) is False


def test_a_star_is_any_host():
    assert is_own("http://evil.example", ["*"])
    assert not is_own("null", ["*"])
