#!/usr/bin/env bash
# Starts the page, or passes on to the command line; installs what it needs first.
set -u
ROOT=$(cd "$(dirname "$0")" && pwd) || exit 1

usage() {
    cat <<'TEXT'
Usage: ./webui.sh [--port N] [OPTIONS OF streamlit run]    start the page in the browser
       ./webui.sh txt2img "a red house on green hills"     make a picture from the command line
       ./webui.sh COMMAND --help                           COMMAND: txt2img, img2img, models, info
       ./webui.sh --setup                                  only install, start nothing

The first start makes a virtual environment in .venv and installs what this machine needs (Mac: Metal; Linux: the CPU, or CUDA
where an NVIDIA driver answers). Later starts skip that.

Environment:
  PYTHON=/path/to/python3           the Python to make the environment with (default: the newest of 3.10 to 3.13 that is found)
  VENV=/path                        where the environment is (default: .venv beside this script)
  MLX_BACKEND=cpu|cuda12|cuda13     on Linux, instead of looking for a driver
  STABLE_DIFFUSION_OUTPUTS=/path    where the page puts finished pictures (default: outputs beside this script)
TEXT
}

case ${1:-} in
-h | --help)
    usage
    exit 0
    ;;
esac

# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"
prepare

case ${1:-} in
--setup)
    say "Ready."
    exit 0
    ;;
--port)
    [ -n "${2:-}" ] || fail "--port needs a number: ./webui.sh --port 8501"
    port=$2
    shift 2
    set -- --server.port "$port" "$@"
    ;;
--port=*)
    port=${1#--port=}
    shift
    set -- --server.port "$port" "$@"
    ;;
esac

case ${1:-} in
"" | --*)
    # Streamlit reads .streamlit/config.toml from the folder it is started in.
    cd "$ROOT" || exit 1
    exec "$VENV/bin/python" -m streamlit run app.py "$@"
    ;;
*)
    # From the folder of the caller, whose relative paths are meant.
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    exec "$VENV/bin/python" -m stable_diffusion "$@"
    ;;
esac
