"""webui.sh and test.sh with a fake Python and pip: what they install, when, and what they print."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stable_diffusion.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash")
TOOLS = "bash cat cp dirname git grep head id ls mkdir rm sed tail tee touch uname".split()

pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")

PRETEND_PYTHON = r"""#!/usr/bin/env bash
case "$*" in
"-c import sys; sys.exit"*) exit "${PRETEND_TOO_OLD:-0}" ;;
"-c import platform"*) echo "${PRETEND_MACHINE:-x86_64}" ;;
--version) echo "Python ${PRETEND_VERSION:-3.12.9}" ;;
"-m venv --clear "*)
    [ -z "${PRETEND_VENV_SAYS:-}" ] || { echo "$PRETEND_VENV_SAYS"; exit 1; }
    mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" && touch "${@: -1}/pyvenv.cfg"
    ;;
"-m pip --version") ;;
"-m pip "*uninstall*) echo "uninstall: $*" >>"$PRETEND_LOG" ;;
"-m pip "*" install "*)
    [ -z "${PRETEND_PIP_SAYS:-}" ] || { echo "$PRETEND_PIP_SAYS"; exit 1; }
    echo "  Downloading mlx-0.32.4-cp311-cp311-manylinux_2_35_x86_64.whl (781 kB)"
    while [ $# -gt 0 ]; do
        case $1 in
        -r) { echo "install:"; cat "$2"; } >>"$PRETEND_LOG" ;;
        -c) echo "constraints: $2" >>"$PRETEND_LOG" ;;
        --upgrade) echo "upgrade" >>"$PRETEND_LOG" ;;
        esac
        shift
    done
    ;;
*)
    echo "run in $PWD: $*" >>"$PRETEND_LOG"
    for name in ${PRETEND_TELLS:-}; do echo "$name=${!name}" >>"$PRETEND_LOG"; done
    case "$*" in *"${PRETEND_FAILS:-nothing fails}"*) exit "${PRETEND_CODE:-1}" ;; esac
    ;;
esac
"""


class House:
    """A copy of the scripts in a folder with a space in its name, and a PATH with only the tools they need."""

    def __init__(self, folder):
        self.root, self.bin, self.log = folder / "a house", folder / "bin", folder / "log"
        self.bin.mkdir()
        self.root.mkdir()
        for name in ("webui.sh", "webui.command", "test.sh", *(path.name for path in ROOT.glob("requirements*.txt"))):
            shutil.copy(ROOT / name, self.root)
        for name in ("scripts", "locks"):
            shutil.copytree(ROOT / name, self.root / name)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.tool("uname", '[ "$1" = -sm ] && echo "Linux x86_64" || echo Linux')
        self.tool("python3.12", PRETEND_PYTHON)

    def tool(self, name, text):
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def run(self, *command, cwd=None, **environment):
        self.log.write_text("")
        clean = {"PATH": str(self.bin), "HOME": str(self.root), "PRETEND_LOG": str(self.log)}
        done = subprocess.run(
            [BASH, str(self.root / command[0]), *command[1:]],
            cwd=cwd or self.root,
            env=clean | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        done.log = self.log.read_text()
        return done

    @property
    def venv(self):
        return self.root / ".venv"


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_the_first_start_installs_and_starts_the_page(house):
    done = house.run("webui.sh")
    assert done.returncode == 0, done.stderr
    assert "mlx[cpu]>=" in done.log and "streamlit>=" in done.log
    assert f"run in {house.root}: -m stable_diffusion page\n" in done.log
    assert "  mlx (781 kB)" in done.stderr


def test_the_second_start_installs_nothing(house):
    house.run("webui.sh")
    again = house.run("webui.sh", "--port", "9000", "--server.headless", "true")
    assert again.log == f"run in {house.root}: -m stable_diffusion page --port 9000 --server.headless true\n"
    assert again.stderr == ""


def test_options_are_those_of_the_page_in_the_callers_folder(house, tmp_path):
    arguments = ("--ckpt-dir", "my models", "--default-negative=low *res*", "--port=9")
    done = house.run("webui.sh", *arguments, cwd=tmp_path, PRETEND_TELLS="PYTHONPATH")
    assert done.returncode == 0, done.stderr
    assert f"run in {tmp_path}: -m stable_diffusion page {' '.join(arguments)}\n" in done.log
    assert f"PYTHONPATH={house.root}\n" in done.log


@pytest.mark.parametrize("flags", [["-h"], ["page", "--help"]])
def test_the_page_has_a_help_of_its_own(house, flags):
    house.run("webui.sh", "--setup")
    done = house.run("webui.sh", *flags)
    assert done.log == ("" if flags == ["-h"] else f"run in {house.root}: -m stable_diffusion page --help\n")


def test_the_version_is_the_programs(house):
    assert house.run("webui.sh", "--version").log.endswith("-m stable_diffusion --version\n")


def test_the_finders_file_starts_the_page(house, tmp_path):
    done = house.run("webui.command", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.log.endswith(f"run in {house.root}: -m stable_diffusion page\n")


def test_arguments_pass_to_the_command_line_in_the_callers_folder(house, tmp_path):
    done = house.run("webui.sh", "txt2img", "a red house", "--steps", "3", cwd=tmp_path)
    assert done.log.endswith(f"run in {tmp_path}: -m stable_diffusion txt2img a red house --steps 3\n")


def test_a_failure_of_the_command_is_the_commands_exit_code(house):
    assert house.run("webui.sh", "info", "x.png", PRETEND_FAILS="stable_diffusion", PRETEND_CODE="2").returncode == 2


def test_help_installs_nothing(house):
    for command in ("webui.sh", "test.sh"):
        for flag in ("-h", "--help"):
            done = house.run(command, flag)
            assert (done.returncode, done.log, done.stderr) == (0, "", "")
            assert done.stdout.startswith(f"Usage: ./{command}")
    assert not house.venv.exists()


def test_the_help_lists_every_command(house):
    listed = house.run("webui.sh", "--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert [line.split()[0] for line in listed.splitlines()] == list(commands)


def test_the_help_lists_every_option_of_the_page(house):
    listed = house.run("webui.sh", "--help").stdout.partition("Options of the page:\n")[2].partition("\n\n")[0]
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    options = {option for action in commands["page"]._actions for option in action.option_strings}
    assert {line.split()[0] for line in listed.splitlines()} == options - {"-h", "--help", "--debug"}


@pytest.mark.parametrize(
    ("says", "backend"),
    [
        ("| NVIDIA-SMI 580.65  Driver Version: 580.65  CUDA Version: 13.0 |", "cuda13"),
        ("| NVIDIA-SMI 550.54  Driver Version: 550.54  CUDA Version: 12.4 |", "cuda12"),
        ("| NVIDIA-SMI 590.1  Driver Version: 590.1  CUDA UMD Version: 14.1 |", "cuda13"),
        ("| NVIDIA-SMI 470.10  Driver Version: 470.10  CUDA Version: 11.4 |", "cpu"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "cpu"),
    ],
)
def test_the_driver_decides_about_cuda(house, says, backend):
    house.tool("nvidia-smi", f"cat <<'TEXT'\n{says}\nTEXT")
    done = house.run("webui.sh", "--setup")
    assert done.returncode == 0, done.stderr
    assert f"mlx[{backend}]>=" in done.log
    assert done.log.count('sys_platform == "linux"') == 2  # one mlx, not two, and the BLAS
    if "11.4" in says:
        assert "MLX needs 12 or newer" in done.stderr
    if "failed" in says:
        assert "the NVIDIA driver does not answer" in done.stderr


@pytest.mark.parametrize("backend", ["cpu", "cuda12", "cuda13", "metal"])
def test_what_is_installed_is_what_is_locked(house, backend):
    if backend == "metal":
        house.tool("uname", "echo Darwin")
    done = house.run("webui.sh", "--setup", MLX_BACKEND=backend, PRETEND_MACHINE="arm64")
    lock = house.root / "locks" / f"{'cpu' if backend == 'metal' else backend}.txt"
    assert f"constraints: {lock}\n" in done.log and "upgrade" not in done.log
    lock.write_text(lock.read_text() + "another==1\n")
    again = house.run("webui.sh", "--setup", MLX_BACKEND=backend, PRETEND_MACHINE="arm64")
    assert "install:" in again.log, "a changed lock is installed"


@pytest.mark.parametrize("command", [("webui.sh", "--newest", "--setup"), ("test.sh", "--newest", "--all")])
def test_newest_ignores_the_locks(house, command):
    house.tool("chromium", "exit 0")
    name = command[0]
    house.run(name, *command[2:])
    newest = house.run(*command)
    assert newest.returncode == 0, newest.stderr
    assert "constraints" not in newest.log
    assert newest.log.count("upgrade\n") == newest.log.count("install:\n") == (1 if name == "webui.sh" else 4)
    assert "constraints" in house.run(name, *command[2:]).log, "the next start returns to the lock"


def git(folder, *command):
    options = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", "-C", str(folder), *options, *command], check=True, capture_output=True)


@pytest.fixture
def origin(house, tmp_path):
    """The repository that the house was cloned from, one commit ahead: its script prints another greeting."""
    git(house.root, "init")
    git(house.root, "add", ".")
    git(house.root, "commit", "-m", "first")
    git(tmp_path, "clone", str(house.root), "origin")
    git(house.root, "remote", "add", "origin", str(tmp_path / "origin"))
    git(house.root, "fetch", "origin")
    git(house.root, "branch", "-u", "origin/main")
    script = tmp_path / "origin" / "webui.sh"
    script.write_text(script.read_text().replace('"Ready."', '"Ready and new."'))
    git(tmp_path / "origin", "commit", "-am", "second")
    return tmp_path / "origin"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
class TestUpdate:
    def test_pulls_then_installs_as_the_new_version_does(self, house, origin):
        done = house.run("webui.sh", "--update")
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith("Ready and new.\n") and "install:" in done.log
        again = house.run("webui.sh", "--update")
        assert again.returncode == 0 and again.log == ""

    def test_local_changes_are_named_and_kept(self, house, origin):
        (house.root / "requirements.txt").write_text("mine\n")
        done = house.run("webui.sh", "--update")
        assert done.returncode == 1 and "requirements.txt" in done.stderr and "commit or revert them" in done.stderr
        assert (house.root / "requirements.txt").read_text() == "mine\n" and done.log == ""

    def test_untracked_files_do_not_matter(self, house, origin):
        (house.root / "my.png").touch()
        assert house.run("webui.sh", "--update").returncode == 0

    def test_local_commits_are_not_merged(self, house, origin):
        (house.root / "requirements.txt").write_text("mine\n")
        git(house.root, "commit", "-am", "mine")
        done = house.run("webui.sh", "--update")
        assert done.returncode == 1 and "git pull failed" in done.stderr and done.log == ""

    def test_a_download_without_git_is_explained(self, house):
        done = house.run("webui.sh", "--update")
        assert done.returncode == 1 and "is not a git checkout" in done.stderr and done.log == ""

    def test_needs_git(self, house, origin):
        (house.bin / "git").unlink()
        done = house.run("webui.sh", "--update")
        assert done.returncode == 1 and "needs git" in done.stderr


def test_another_backend_leaves_nothing_of_the_first(house):
    house.run("webui.sh", "--setup")
    done = house.run("webui.sh", "--setup", MLX_BACKEND="cuda12")
    first, rest = done.log.split("\n", 1)
    assert first.startswith("uninstall:") and "mlx mlx-cpu mlx-cuda-12 mlx-cuda-13" in first
    assert "mlx[cuda12]>=" in rest and "\nmlx[cpu]" not in rest
    assert house.run("webui.sh", "--setup", MLX_BACKEND="cuda12").log == ""


def test_an_unknown_backend_is_refused(house):
    done = house.run("webui.sh", MLX_BACKEND="vulkan")
    assert done.returncode == 1
    assert "MLX_BACKEND=vulkan: use cpu, cuda12 or cuda13" in done.stderr


def test_a_changed_requirement_is_installed(house):
    house.run("webui.sh", "--setup")
    with (house.root / "requirements.txt").open("a") as file:
        file.write("another-package\n")
    assert "another-package" in house.run("webui.sh", "--setup").log


def test_an_interrupted_install_is_done_again(house):
    failed = house.run("webui.sh", PRETEND_PIP_SAYS="Killed")
    assert failed.returncode == 1 and "run in" not in failed.log
    assert "install:" in house.run("webui.sh").log


def test_a_half_made_environment_is_made_again(house):
    (house.venv / "bin").mkdir(parents=True)
    (house.venv / "pyvenv.cfg").touch()
    assert house.run("webui.sh").returncode == 0


def test_a_folder_with_other_content_is_left_alone(house, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    done = house.run("webui.sh", VENV=str(mine))
    assert done.returncode == 1
    assert "is not a virtual environment" in done.stderr
    assert (mine / "thesis.txt").exists()


def test_a_missing_python_is_explained(house):
    (house.bin / "python3.12").unlink()
    house.tool("python3.13", "echo 'command not found' >&2; exit 127")  # a shim of a version manager
    done = house.run("webui.sh")
    assert done.returncode == 1
    assert "Python 3.11 or newer was not found" in done.stderr and "brew install python" in done.stderr


def test_a_python_that_is_too_old_is_passed_over(house):
    house.tool("python3.13", "exit 1")
    assert house.run("webui.sh").returncode == 0
    done = house.run("webui.sh", VENV=str(house.root / "other"), PYTHON=str(house.bin / "python3.13"))
    assert done.returncode == 1 and "is not Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError: Failed to establish a new connection", "registry could not be reached"),
        ("ERROR: No matching distribution found for mlx", "is not available for this machine"),
        ("something else", "The installation failed"),
    ],
)
def test_a_pip_that_fails_is_explained(house, says, words):
    done = house.run("webui.sh", PRETEND_PIP_SAYS=says)
    assert done.returncode == 1
    assert says in done.stderr and words in done.stderr


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("ensurepip is not available", "apt install python3-venv"),
        ("No space left on device", "The disk is full"),
        ("Error: [Errno 13] Permission denied: '/opt/sd/.venv'", "Put the environment elsewhere: VENV="),
        ("Error: [Errno 30] Read-only file system: '/opt/sd/.venv'", "cannot be written to"),
    ],
)
def test_an_environment_that_cannot_be_made_is_explained(house, says, words):
    done = house.run("webui.sh", PRETEND_VENV_SAYS=says)
    assert done.returncode == 1
    assert words in done.stderr


def test_a_mac_gets_plain_mlx_and_needs_apple_silicon(house):
    house.tool("uname", "echo Darwin")
    assert house.run("webui.sh", "--setup", PRETEND_MACHINE="arm64").returncode == 0
    done = house.run("webui.sh", "--setup", PRETEND_MACHINE="x86_64")
    assert done.returncode == 1 and "Apple silicon" in done.stderr


def test_the_tests_need_neither_torch_nor_a_browser(house):
    done = house.run("test.sh", "-k", "sampler")
    assert done.returncode == 0, done.stderr
    assert "hypothesis" in done.log and "torch" not in done.log and "playwright" not in done.log
    assert "-m ruff check" in done.log and "-m mypy" in done.log
    assert "not browser and not parity" in done.log and done.log.rstrip().endswith("-k sampler")


def test_all_means_all(house):
    for name in ("chromium", "apt-get"):
        house.tool(name, "exit 0")
    done = house.run("test.sh", "--all")
    assert done.returncode == 0, done.stderr
    assert "torch==" in done.log and "playwright" in done.log
    assert "-m pytest -n 2 -m not browser\n" in done.log and "-m pytest -m browser\n" in done.log


@pytest.mark.parametrize("step", ["ruff check", "ruff format", "mypy", "pytest"])
def test_any_failure_fails_it_all(house, step):
    done = house.run("test.sh", PRETEND_FAILS=f"-m {step}")
    assert done.returncode == 1
    assert "Failed:" in done.stderr
    assert "-m pytest" in done.log  # the other steps still run


def test_no_test_at_all_is_a_failure(house):
    done = house.run("test.sh", "-k", "typo", PRETEND_FAILS="pytest", PRETEND_CODE="5")
    assert done.returncode == 1
    assert "No tests were run" in done.stderr


@pytest.mark.parametrize("path", ["webui.sh", "webui.command", "test.sh", "scripts/lock.sh", ".ci/run"])
def test_the_commands_can_be_started_as_they_are(path):
    assert os.access(ROOT / path, os.X_OK)


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_the_workflows_do_what_the_scripts_do(house, path):
    steps = [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]
    commands = [step["run"].split() for step in steps if "run" in step]
    assert commands
    for script, *options in commands:
        told = house.run(script, "--help").stdout
        assert all(option in told for option in options), options
