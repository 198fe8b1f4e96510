#!/usr/bin/env bash
# Installs what the checks and tests need, then runs them.
set -u
ROOT=$(cd "$(dirname "$0")" && pwd) || exit 1

usage() {
    cat <<'TEXT'
Usage: ./test.sh [--all] [--newest] [OPTIONS OF pytest]
  ./test.sh                        lint, format, types, and all tests that need neither torch nor a browser
  ./test.sh --all                  also compare with torch and diffusers, and drive a browser
  ./test.sh --newest               use the newest packages that the requirements allow instead of those in locks/
  ./test.sh -k sampler -x          other options go to pytest: run the tests named sampler, stop at the first failure

Environment: PYTHON, VENV and MLX_BACKEND as in ./webui.sh --help; JOBS=N for the number of test processes (default: 2).
TEXT
}

all=no NEWEST=no
while :; do
    case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
    --all) all=yes ;;
    --newest) NEWEST=yes ;;
    *) break ;;
    esac
    shift
done

# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

has_browser() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    [ -d "/Applications/Google Chrome.app" ] || [ -d "/Applications/Chromium.app" ] && return 0
    "$VENV/bin/python" - <<'PYTHON' 2>/dev/null
import pathlib, sys
from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    sys.exit(not pathlib.Path(p.chromium.executable_path).exists())
PYTHON
}

get_browser() {
    has_browser && return
    say "Installing Chromium."
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            chromium fonts-dejavu-core; } >>"$LOG" 2>&1 </dev/null
        has_browser && return
    fi
    "$VENV/bin/python" -m playwright install chromium >>"$LOG" 2>&1 </dev/null
    has_browser || say "Chromium could not be installed: the browser tests will be skipped."
}

# OpenAI's client for Node, in the version of its lock file, next to Python's packages.
get_node_client() {
    local from="$ROOT/tests/parity/node" to="$VENV/node"
    command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 || return 0
    [ -d "$to/node_modules/openai" ] && cmp -s "$from/package-lock.json" "$to/package-lock.json" && return
    say "Installing OpenAI's client for Node."
    mkdir -p "$to" && cp "$from/package.json" "$from/package-lock.json" "$to" &&
        (cd "$to" && npm ci --no-audit --no-fund --ignore-scripts) >>"$LOG" 2>&1 </dev/null ||
        say "OpenAI's client for Node could not be installed, so its test will fail: see $LOG"
}

prepare
install tests test "$ROOT/requirements-dev.txt"
if [ $all = yes ]; then
    install comparison test "$ROOT/requirements-parity.txt"
    ALONE=--no-deps install alone test "$ROOT/requirements-alone.txt"
    get_browser
    get_node_client
fi

cd "$ROOT" || exit 1
# Several processes with a thread pool each would only wait for each other on few cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
failed=""
ran=no

check() {
    local name=$1 code=0
    shift
    say "== $name"
    "$VENV/bin/python" -m "$@" || code=$?
    case "$1 $code" in
    "pytest 0") ran=yes ;;
    "pytest 5") ;; # no test selected: fine for one of the two runs if arguments select tests
    *" 0") ;;
    *) failed="$failed $name," ran=yes ;;
    esac
}

check lint ruff check .
check format ruff format --check .
check types mypy
if [ $all = yes ]; then
    check tests pytest -n "${JOBS:-2}" -m "not browser" "$@"
    # Separately: they measure how long the page takes to respond.
    check "browser tests" pytest -m browser "$@"
else
    check tests pytest -n "${JOBS:-2}" -m "not browser and not parity" --ignore tests/browser --ignore tests/parity "$@"
fi

[ $ran = yes ] || fail "No tests were run."
[ -z "$failed" ] || fail "Failed:${failed%,}."
say "Everything passed."
