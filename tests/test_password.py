"""The page's password: what passes with it and without, the cookie, the form, and the limit to guesses."""

import base64
import re

import pytest

pytest.importorskip("starlette")

from stable_diffusion.service.api.links import PREFIX, is_link
from stable_diffusion.service.password import VALID, PasswordGate
from tests.asgi import Page, ask

SECRET = "correct horse: ü"


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def gate(page, clock):
    return PasswordGate(page, SECRET, clock)


def sign_in(gate, password=SECRET, path="/", **more):
    body = f"password={''.join(f'%{byte:02x}' for byte in password.encode())}".encode()
    more = {"content_type": "application/x-www-form-urlencoded"} | more
    return ask(gate, path, "POST", body, host="localhost", **more)


def cookie_of(answer):
    return answer.headers["set-cookie"].partition(";")[0]


def basic(password, user="anybody"):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


ROUTES = ["/", "/gallery", "/static/js/index.js", "/media/a.png", "/_stcore/health", "/_stcore/upload_file/a/b"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"])
def test_nothing_passes_without_it(gate, page, path, method):
    assert ask(gate, path, method).status == 401
    assert ask(gate, path, method, authorization=basic("guess")).status == 401
    assert ask(gate, path, method, cookie="stable_diffusion=1; stable_diffusion_00000000=9999999999.00").status == 401
    assert page.scopes == []


def test_no_socket_opens_without_it(gate, page):
    for headers in ({}, {"authorization": basic("guess")}, {"cookie": "a=b"}):
        assert ask(gate, "/_stcore/stream", kind="websocket", **headers).type == "websocket.close"
    assert page.scopes == []


@pytest.mark.parametrize("path", ROUTES)
def test_the_forms_cookie_opens_everything(gate, page, path):
    cookie = cookie_of(sign_in(gate))
    assert ask(gate, path, cookie=f"other=1; {cookie}").status == 200
    assert ask(gate, path, kind="websocket", cookie=cookie).type == "websocket.accept"
    assert len(page.scopes) == 2


def test_the_form_leads_back_to_where_it_was_asked(gate):
    for path, query, target in [
        ("/", b"", "./"),
        ("/sd/gallery", b"a=1&b", "./gallery?a=1&b"),
        ("/a b:c", b"", "./a%20b%3Ac"),
        ("//evil.example", b"", "./evil.example"),
    ]:
        answer = sign_in(gate, path=path, query=query)
        assert (answer.status, answer.headers["location"]) == (303, target)


def test_the_cookie_is_for_this_site_alone_and_not_for_scripts(gate):
    given = sign_in(gate).headers["set-cookie"]
    assert re.fullmatch(r"stable_diffusion_[0-9a-f]{8}=\d+\.[0-9a-f]{64}; Path=/; HttpOnly; SameSite=Strict", given)
    assert SECRET not in given
    assert sign_in(gate, scheme="https").headers["set-cookie"] == given + "; Secure"


def test_a_cookie_ends_and_cannot_be_prolonged_or_forged(gate, clock):
    name, _, value = cookie_of(sign_in(gate)).partition("=")
    until, _, signature = value.partition(".")
    for forged in (f"{int(until) + 1}.{signature}", f"{until}.{'0' * 64}", until, f".{signature}", f"{until}.ü", ""):
        assert ask(gate, cookie=f"{name}={forged}").status == 401, forged
    clock.now += VALID - 1
    assert ask(gate, cookie=f"{name}={value}").status == 200
    clock.now += 1
    assert ask(gate, cookie=f"{name}={value}").status == 401


def test_a_restart_keeps_cookies_and_another_password_ends_them(gate, page, clock):
    cookie = cookie_of(sign_in(gate))
    assert ask(PasswordGate(page, SECRET, clock), cookie=cookie).status == 200
    other = PasswordGate(page, "another one", clock)
    assert ask(other, cookie=cookie).status == 401
    renamed = cookie_of(sign_in(other, "another one")).partition("=")[0] + "=" + cookie.partition("=")[2]
    assert ask(other, cookie=renamed).status == 401
    # Ports do not tell cookies apart: two servers with two passwords on one host both stay signed in.
    both = f"{cookie}; {cookie_of(sign_in(other, 'another one'))}"
    assert ask(gate, cookie=both).status == ask(other, cookie=both).status == 200


def test_browsers_get_a_form_and_programs_a_challenge(gate):
    asked = ask(gate, accept="text/html,*/*", sec_fetch_mode="navigate")
    assert asked.status == 401 and "www-authenticate" not in asked.headers, "which would open the browser's own dialog"
    assert '<form method="post" action="">' in asked.text and 'autocomplete="current-password"' in asked.text
    assert (
        asked.headers["cache-control"] == "no-store"
        and "frame-ancestors 'none'" in asked.headers["content-security-policy"]
    )
    script = ask(gate, accept="*/*", sec_fetch_mode="cors")
    assert "www-authenticate" not in script.headers and "reload the page" in script.text
    assert ask(gate).headers["www-authenticate"].startswith("Basic ")


def test_a_wrong_password_is_said_in_the_form(gate, page):
    for wrong in ("", "guess", SECRET + " ", SECRET.upper()):
        answer = sign_in(gate, wrong)
        assert answer.status == 401 and '<p role="alert">Wrong password.</p>' in answer.text
        assert "set-cookie" not in answer.headers
    assert page.scopes == []


def test_authorization_works_and_leaves_a_cookie_for_the_socket(gate, page):
    answer = ask(gate, authorization=basic(SECRET))
    assert answer.status == 200 and answer.text == "the page"
    assert ask(gate, kind="websocket", cookie=cookie_of(answer)).type == "websocket.accept"
    assert ask(gate, kind="websocket", authorization=basic(SECRET)).type == "websocket.accept"
    assert ask(gate, authorization=f"Bearer {SECRET}").status == 200
    for broken in ("Basic", "Basic !", "Basic Zm9v", "Bearer guess", "Digest " + SECRET):
        assert ask(gate, authorization=broken).status == 401


def test_guesses_are_limited_by_address_for_a_minute(gate, clock):
    signed = cookie_of(sign_in(gate))
    for i in range(10):
        assert (sign_in(gate, "guess") if i % 2 else ask(gate, authorization=basic("guess"))).status == 401
    refused = sign_in(gate)
    assert refused.status == 429 and "Try again in a minute" in refused.text, "even the right one tells nothing now"
    assert ask(gate, authorization=basic(SECRET)).status == 429
    assert sign_in(gate, client="192.168.1.7").status == 303
    assert ask(gate, cookie=signed).status == 200
    clock.now += 60
    assert sign_in(gate).status == 303


def test_one_customer_of_version_6_is_one_address(gate):
    for i in range(10):
        sign_in(gate, "guess", client=f"2001:db8:1:2::{i}")
    assert sign_in(gate, client="2001:db8:1:2:3::4").status == 429
    assert sign_in(gate, client="2001:db8:1:3::4").status == 303
    for i in range(10):
        sign_in(gate, "guess", client=f"::ffff:192.168.1.{i}")
    assert sign_in(gate, client="::ffff:192.168.1.77").status == 303


def test_guesses_from_everywhere_do_not_fill_memory(gate):
    for i in range(1100):
        gate._guesses.note(f"10.0.{i // 256}.{i % 256}")
    assert len(gate._guesses._times) == gate._guesses.ADDRESSES


def test_a_link_that_cannot_be_guessed_needs_no_password(page, clock):
    gate = PasswordGate(page, SECRET, clock, is_open=is_link)
    link = f"/{PREFIX}{'aB3_-xyz' * 4}"
    assert ask(gate, link, client="192.168.1.5").text == "the page"
    for path in ("/", f"/{PREFIX}", link + "a", link[:-1], f"{link}/..", f"/sd{link}", f"/{PREFIX}../{'a' * 29}"):
        assert ask(gate, path).status == 401, path
    assert ask(gate, link, kind="websocket").type == "websocket.close"
    assert ask(PasswordGate(page, None, is_open=is_link), link, client="192.168.1.5").status == 403


def test_forms_are_small(gate):
    assert sign_in(gate, "x" * 5000).status == 413


def test_who_is_signed_in_already_is_sent_on(gate):
    answer = sign_in(gate, "guess", cookie=cookie_of(sign_in(gate)))
    assert answer.status == 303 and "set-cookie" in answer.headers


@pytest.mark.parametrize("password", [None, ""])
def test_without_a_password_only_this_machine_is_answered(page, password):
    gate = PasswordGate(page, password)
    for client in ("127.0.0.1", "::1", "::ffff:127.0.0.1", None):
        assert ask(gate, client=client).status == 200
        assert ask(gate, client=client, kind="websocket").type == "websocket.accept"
    for client in ("192.168.1.5", "2001:db8::1", "::ffff:192.168.1.5"):
        answer = ask(gate, client=client)
        assert answer.status == 403 and "start it with --password" in answer.text
        assert ask(gate, client=client, kind="websocket").type == "websocket.close"
    empty = ask(gate, authorization=basic(""), client="192.168.1.5")
    assert empty.status == 403


def test_what_is_no_request_passes(gate, page):
    ask(gate, kind="lifespan")
    assert page.scopes
