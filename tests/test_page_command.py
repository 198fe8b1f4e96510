"""`stable-diffusion page`: the options that it passes to Streamlit, and the server that it starts."""

from __future__ import annotations

import ast
import importlib.util
import os
import socket
import sys
import tomllib
from pathlib import Path

import pytest

from stable_diffusion import __main__ as program
from stable_diffusion.errors import InputError
from stable_diffusion.places import packaged
from stable_diffusion.service import addresses
from tests.serving import ROOT, Proxy, free_port, opened, served, status

SETTINGS = tomllib.loads(packaged("webui", "streamlit.toml").read_text())


class Started(BaseException):
    """This process would have become another one."""


@pytest.fixture
def start(monkeypatch):
    """Runs the command; returns what it would have started: the arguments after `python`, and the environment."""

    def execve(path, command, environment):
        assert path == command[0] == sys.executable
        raise Started(command[1:], environment)

    def run(*argv):
        try:
            return program.main(["page", *map(str, argv)])
        except Started as started:
            return started.args

    monkeypatch.setattr(os, "execve", execve)
    for name in [name for name in os.environ if name.startswith("STREAMLIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(addresses.PASSWORD_VARIABLE, raising=False)
    return run


def options(command):
    """The options of `streamlit run` and their values, each with all that it was given."""
    assert command[:3] == ["-m", "streamlit", "run"]
    names, values = command[4::2], command[5::2]
    return {name: [v for n, v in zip(names, values, strict=True) if n == name] for name in names}


def test_the_packages_settings_hold_in_any_folder(start):
    command, _ = start()
    assert Path(command[3]) == packaged("webui", "server", "entry.py")
    given = options(command)
    assert given["--server.address"] == ["localhost"]
    assert given["--server.allowedHosts"] == SETTINGS["server"]["allowedHosts"] and len(SETTINGS["server"]) > 5
    assert given["--server.enableXsrfProtection"] == ["true"] and given["--browser.gatherUsageStats"] == ["false"]
    assert given["--theme.dark.primaryColor"] == [SETTINGS["theme"]["dark"]["primaryColor"]]
    assert "--server.port" not in given


def test_streamlit_knows_every_setting_by_the_name_that_it_gets(start):
    template = pytest.importorskip("streamlit.config")._config_options_template
    for name in options(start()[0]):
        assert name.removeprefix("--") in template


def test_what_the_caller_says_comes_before_the_settings(start, monkeypatch):
    monkeypatch.setenv("STREAMLIT_SERVER_MAX_UPLOAD_SIZE", "7")
    monkeypatch.setenv("STREAMLIT_SERVER_ENABLE_CORS", "false")
    monkeypatch.setenv("STREAMLIT_RUNNER_POST_SCRIPT_GC", "true")
    port = free_port()
    command, _ = start("--server.address=127.0.0.1", "--port", port, "--server.allowedHosts", "a.example")
    assert "localhost" not in command and command[-3:] == [
        "--server.address=127.0.0.1",
        "--server.allowedHosts",
        "a.example",
    ]
    assert f"--server.port {port}" in " ".join(command)
    for taken in ("--server.maxUploadSize", "--server.enableCORS", "--runner.postScriptGC"):
        assert taken not in command


def test_models_and_negative_reach_the_page(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my models", "others"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", "/before")
    _, environment = start(
        "--ckpt-dir", "my models", f"--ckpt-dir={tmp_path / 'others'}", "--default-negative=low *res*"
    )
    folders = [str(tmp_path / "my models"), str(tmp_path / "others"), "/before"]
    assert environment["STABLE_DIFFUSION_MODELS"] == os.pathsep.join(folders)
    assert environment["STABLE_DIFFUSION_NEGATIVE"] == "low *res*"
    _, environment = start()
    assert environment["STABLE_DIFFUSION_MODELS"] == "/before" and "STABLE_DIFFUSION_NEGATIVE" not in environment


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--ckpt-dir", "nowhere"], "--ckpt-dir nowhere: there is no such folder"),
        (["pictures"], "'pictures': the page takes options only"),
        (["--port", "0"], "should be a whole number from 1 to 65535"),
        (["--port"], "expected one argument"),
        (["--server.allowedHosts", '["name"]'], "is not the name of a host"),
        (["--allow-host", "http://name"], "is not the name of a host"),
        (["--listen", "--password", "short"], "at least 8 characters"),
        (["--password", ""], "at least 8 characters"),
    ],
)
def test_what_makes_no_sense_is_refused(start, capsys, argv, words):
    try:
        code = start(*argv)
    except SystemExit as end:
        code = end.code
    assert code == program.USAGE and words in capsys.readouterr().err


PASSWORD = ("--password", "correct horse")


@pytest.mark.parametrize(
    ("argv", "address"),
    [
        (["--listen"], "0.0.0.0"),
        (["--listen", "127.0.0.1"], "127.0.0.1"),
        (["--listen", "::1"], "::1"),
        (["--server.address=0.0.0.0"], None),
    ],
)
def test_listen_is_the_address_and_its_names_are_answered_to(start, argv, address):
    command, environment = start(*argv, *PASSWORD, "--allow-host", "pictures.example", "--allow-host=*.lan")
    given = options([part for option in command for part in option.split("=", 1)])
    assert given["--server.address"] == [address or "0.0.0.0"]
    hosts = given["--server.allowedHosts"]
    assert hosts[: len(SETTINGS["server"]["allowedHosts"])] == SETTINGS["server"]["allowedHosts"]
    assert {"pictures.example", "*.lan"} <= set(hosts) and "*" not in hosts
    own = set(addresses.own_names(given["--server.address"][0]))
    if addresses.is_loopback(given["--server.address"][0]):
        assert "--browser.serverAddress" not in given and not own - {address} & set(hosts)
    else:
        assert own <= set(hosts) and given["--browser.serverAddress"] == ["pictures.example"]
        assert start(*argv, *PASSWORD)[0].count(addresses.own_names("0.0.0.0")[0]) == 2, "as a host, and in the address"
    assert environment[addresses.PASSWORD_VARIABLE] == "correct horse"
    assert "correct horse" not in command, "it would show in the list of processes"


def test_the_password_may_come_from_the_environment(start, monkeypatch):
    monkeypatch.setenv(addresses.PASSWORD_VARIABLE, "from the environment")
    assert start("--listen")[1][addresses.PASSWORD_VARIABLE] == "from the environment"
    assert start("--listen", *PASSWORD)[1][addresses.PASSWORD_VARIABLE] == "correct horse"


@pytest.mark.parametrize("argv", [["--listen"], ["--listen", "192.0.2.7"], ["--server.address", "::"]])
def test_no_other_machine_is_served_without_a_password(start, capsys, monkeypatch, argv):
    assert start(*argv) == program.USAGE
    assert "needs a password: --password TEXT, or $STABLE_DIFFUSION_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv(addresses.PASSWORD_VARIABLE, "")
    assert start(*argv) == program.USAGE
    monkeypatch.delenv(addresses.PASSWORD_VARIABLE)
    monkeypatch.setenv("STREAMLIT_SERVER_ADDRESS", "0.0.0.0")
    assert start() == program.USAGE


def test_allow_host_adds_to_the_names_that_are_given_in_streamlits_way(start):
    hosts = options(start("--server.allowedHosts", "a.example", "--allow-host", "b.example")[0])[
        "--server.allowedHosts"
    ]
    assert hosts == ["b.example", "a.example"]
    assert "--server.address" in start("--allow-host", "b.example")[0], "this machine only, behind a proxy of its own"


@pytest.mark.parametrize("port", ["given", "given in use"])
def test_a_port_in_use_is_named_at_once(start, capsys, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        if port == "given":
            taken.close()
            assert f"--server.port {number}" in " ".join(start("--port", number)[0])
        else:
            assert start("--port", number) == program.FAILED
            said = capsys.readouterr().err
            assert f"Port {number} is in use" in said and f"--port {number + 1}" in said


def test_an_address_of_another_machine_is_refused(start, capsys):
    assert start("--listen", "192.0.2.7", *PASSWORD) == program.FAILED
    assert "cannot listen at 192.0.2.7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True),
        ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("", False),
        ("::ffff:192.168.1.5", False), ("localhost.example", False),
    ],
)  # fmt: skip
def test_which_addresses_are_this_machine_only(address, loopback):
    assert addresses.is_loopback(address) is loopback


@pytest.mark.parametrize(
    "name", ["pictures.example", "my-mac.local", "*.example", "*", "192.168.1.5", "::1", "[fe80::1]"]
)
def test_names_of_hosts(name):
    assert addresses.checked_host(f" {name} ") == name.strip("[]")


@pytest.mark.parametrize("name", ['["name"]', "a,b", "http://name", "name:8501", "name/path", "", "*name", "a b"])
def test_what_names_no_host_is_refused(name):
    with pytest.raises(InputError, match="one name at a time"):
        addresses.checked_host(name)


def test_without_streamlit_it_says_which_extra_to_install(start, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert start() == program.FAILED
    assert "extra `page` (in a checkout: pip install '.[page]')" in capsys.readouterr().err


def test_other_commands_take_no_unknown_options(capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["info", "a.png", "--server.headless", "true"])
    assert end.value.code == program.USAGE
    assert "unrecognized arguments: --server.headless true" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["app.py", "stable_diffusion/webui/server/entry.py"])
def test_streamlit_finds_the_server_in_the_script(script):
    """By reading it, as streamlit.web.server.app_discovery does: `app = st.App(...)`. Without, nobody is on guard."""
    pytest.importorskip("streamlit")
    from streamlit.web.server.app_discovery import discover_asgi_app

    found = discover_asgi_app(ROOT / script)
    assert found.is_asgi_app and found.app_name == "app"
    assert not [node for node in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(node, ast.FunctionDef)]
    assert not (ROOT / script).with_name("pages").exists(), "Streamlit would run a page from there without the script"


@pytest.mark.parametrize(
    "command",
    [("stable_diffusion", "page"), ("streamlit", "run", str(ROOT / "app.py"), "--server.address", "localhost")],
    ids=["page", "app.py"],
)
def test_the_server_starts_anywhere_guarded_and_without_a_warning(tmp_path, command):
    pytest.importorskip("streamlit")
    with served(tmp_path, *command) as (port, log):
        assert status(port, "/") == 200
        if command[0] == "stable_diffusion":
            assert status(port, "/", Host="evil.example") == 400
            with Proxy(port, **{"X-Forwarded-For": "192.0.2.7"}) as proxy:  # another machine, and no password
                assert status(proxy.port, "/") == opened(proxy.port) == 403
        assert status(port, "/", Origin="null") == 403
        told = [line for line in log.read_text().splitlines() if line.strip()]
        assert [line.strip().partition(":")[0] for line in told] == [
            "You can now view your Streamlit app in your browser.",
            "URL",
        ]
