"""Which hosts the server answers to, and whose pages may use it."""

import json

import pytest

pytest.importorskip("starlette")

from stable_diffusion.service.guard import HostGuard, host_name, is_own
from tests.asgi import Page, ask

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


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8501", "localhost"),
        ("pictures.example.org.", "pictures.example.org"),
        ("[::1]:8501", "::1"),
        ("[::1]", "::1"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("", None),
        ("localhost:", None),
        ("localhost:8501, evil.example", None),
        ("user@localhost", None),
        ("localhost/evil", None),
        ("::1", None),
    ],
)
def test_the_name_in_a_host_header(host, name):
    assert host_name(host) == name


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("path", ["/", "/static/css/index.css", "/_stcore/health", "/_stcore/stream", "/media/a.png"])
@pytest.mark.parametrize(
    ("headers", "code", "words"),
    [
        ({"host": "evil.example"}, 400, "'evil.example'. If it should, start it with --allow-host evil.example"),
        ({"host": "evil.example:8501"}, 400, "--allow-host evil.example"),
        ({"host": ["localhost", "evil.example"]}, 400, "does not answer to the name"),
        ({"host": "<script>"}, 400, "--allow-host NAME"),
        ({}, 400, "--allow-host NAME"),
        ({"host": "localhost", "origin": "http://evil.example"}, 403, "does not answer pages of 'evil.example'"),
        ({"host": "localhost", "origin": "null"}, 403, "'null'"),
        ({"host": "localhost", "origin": ["http://localhost", "http://evil.example"]}, 403, "'evil.example'"),
    ],
)
def test_foreign_hosts_and_origins_are_refused_everywhere_and_told_why(kind, path, headers, code, words):
    page = Page()
    answer = ask(HostGuard(page, HOSTS), path, kind=kind, **headers)
    assert page.scopes == []
    if kind == "http":
        assert answer.status == code and words in answer.text
        kind = "application/json" if path.startswith("/_stcore/") else "text/plain"
        assert answer.headers["content-type"].startswith(kind), "the name is the asker's, and no HTML"
    else:
        assert answer.type == "websocket.close"


def test_a_page_whose_scripts_are_refused_says_so_instead_of_staying_blank():
    page = Page()
    answer = ask(HostGuard(page, HOSTS), "/static/js/index.js", host="localhost", origin="http://evil.example")
    assert page.scopes == [] and answer.status == 200 and answer.headers["content-type"].startswith("text/javascript")
    assert answer.text.startswith("document.body.textContent = \"This server does not answer pages of 'evil.example'.")
    assert answer.headers["cache-control"] == "no-store" and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("host", ["localhost", "localhost:8501", "127.0.0.1:1", "[::1]:8501", "a.example.org:80"])
@pytest.mark.parametrize("origin", [[], ["http://localhost:8501"], ["https://pictures.example.org"]])
def test_own_ones_pass_without_an_origin_for_streamlit_to_judge(kind, host, origin):
    page = Page()
    assert ask(HostGuard(page, HOSTS), kind=kind, host=host, origin=origin, accept="*/*").status in (200, None)
    assert page.scopes[0]["headers"] == [(b"host", host.encode()), (b"accept", b"*/*")]


def test_a_page_behind_a_proxy_that_rewrites_its_host_learns_why_nothing_comes():
    guard = HostGuard(Page(), HOSTS)
    for path in ("/_stcore/health", "/sd/_stcore/health", "/sd/_stcore/host-config"):
        answer = ask(guard, path, host="localhost:8501", referer="https://pictures.example.com/gallery")
        assert answer.status == 400 and "--allow-host pictures.example.com" in json.loads(answer.text)
        assert ask(guard, path, host="localhost:8501", referer="https://a.example.org/").status == 200
    # Whoever follows a link to the page comes from anywhere.
    assert ask(guard, "/", host="localhost:8501", referer="https://pictures.example.com/").status == 200


def test_redirects_to_the_same_server_name_no_host_that_a_proxy_may_hide():
    async def redirecting(scope, receive, send):
        target = scope["query_string"]
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", target)]})

    for given, seen in [
        (b"http://localhost:8501/sd/", "/sd/"),
        (b"http://localhost:8501/", "/"),
        (b"./gallery", "./gallery"),
        (b"http://localhost:8501.example/", "http://localhost:8501.example/"),
        (b"https://localhost:8501/sd/", "https://localhost:8501/sd/"),
    ]:
        assert ask(HostGuard(redirecting, HOSTS), query=given, host="localhost:8501").headers["location"] == seen


def test_what_is_no_request_passes():
    page = Page()
    ask(HostGuard(page, HOSTS), kind="lifespan")
    assert page.scopes
