"""The page for other machines: a real server with a password, and a reverse proxy in front of it."""

from __future__ import annotations

import base64

import pytest

pytest.importorskip("streamlit")

from tests.serving import Proxy, asked, opened, served, status

SECRET = "correct horse"
BASIC = "Basic " + base64.b64encode(f":{SECRET}".encode()).decode()
FORM = "application/x-www-form-urlencoded"
ROUTES = [
    "/sd", "/sd/gallery", "/sd/_stcore/health", "/sd/_stcore/host-config", "/sd/_stcore/stream", "/sd/_stcore/metrics",
    "/sd/_stcore/upload_file/a/b", "/sd/_stcore/bidi-components/a/b.css", "/sd/_stcore/agent/openapi.json",
    "/sd/media/a", "/sd/component/a/b", "/sd/static/a.css", "/sd/favicon.png", "/", "/_stcore/health",
]  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    command = ["stable_diffusion", "page", "--listen", "127.0.0.1", "--allow-host", "pictures.example"]
    with served(
        tmp_path_factory.mktemp("served"), *command, "--server.baseUrlPath", "sd", health="/sd/_stcore/health",
        headers={"Authorization": BASIC}, environment={"STABLE_DIFFUSION_PASSWORD": SECRET},
    ) as (port, _):  # fmt: skip
        yield port


def test_every_route_is_guarded(port):
    for path in ROUTES:
        known = {"Authorization": BASIC}
        tried = ({}, known | {"Host": "evil.example"}, known | {"Origin": "http://evil.example"})
        assert [status(port, path, **headers) for headers in tried] == [401, 400, 403], path
        assert [opened(port, path, **headers) for headers in tried] == [403, 403, 403], path


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "pictures.example", "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"},
        {"Host": "localhost:8501", "X-Forwarded-For": "192.0.2.7"},
    ],
    ids=["direct", "proxy that keeps Host", "proxy that rewrites Host"],
)
def test_signing_in_by_form_opens_pages_and_socket(port, headers):
    with Proxy(port, **headers) as proxy:
        browser = {"Host": "pictures.example:8443", "Origin": "https://pictures.example:8443"}
        asked_for = asked(proxy.port, "/sd/gallery", Accept="text/html", Host="pictures.example:8443")
        assert asked_for[0] == 401 and 'type="password"' in asked_for[2]
        done = asked(proxy.port, "/sd/gallery", "POST", f"password={SECRET}", Content_Type=FORM, **browser)
        assert done[0] == 303 and done[1]["Location"] == "./gallery"
        cookie, *flags = done[1]["Set-Cookie"].split("; ")
        assert ("Secure" in flags) is ("X-Forwarded-Proto" in headers)
        page = asked(proxy.port, "/sd/gallery", Cookie=cookie, Host="pictures.example:8443")
        assert page[0] == 200 and "<title>Streamlit</title>" in page[2]
        assert status(proxy.port, "/sd/_stcore/health", Cookie=cookie, Host="pictures.example:8443") == 200
        redirected = asked(proxy.port, "/sd", Cookie=cookie, Host="pictures.example:8443")
        assert redirected[0] == 307 and redirected[1]["Location"] == "/sd/"
        assert opened(proxy.port, "/sd/_stcore/stream", Cookie=cookie, **browser) == 101
        assert opened(proxy.port, "/sd/_stcore/stream", **browser) == 403


def test_a_proxy_that_is_not_allowed_is_told_so(port):
    with Proxy(port, Host="localhost:8501") as proxy:
        foreign = {"Host": "other.example", "Origin": "https://other.example"}
        refused = asked(proxy.port, "/sd", "POST", f"password={SECRET}", Content_Type=FORM, **foreign)
        assert refused[0] == 403 and "--allow-host other.example" in refused[2]
