#!/usr/bin/env bash
# Starts the page, or passes on to the command line; installs what it needs first.
set -u
ROOT=$(cd "$(dirname "$0")" && pwd) || exit 1

usage() {
    cat <<'TEXT'
Usage: ./webui.sh [OPTIONS] [OPTIONS OF streamlit run]     start the page in the browser
       ./webui.sh txt2img "a red house on green hills"     make a picture from the command line
       ./webui.sh COMMAND --help                           COMMAND: txt2img, img2img, models, convert, info
       ./webui.sh --setup                                  only install, start nothing

Options of the page:
  --port N                          the port that it answers at (default: 8501)
  --ckpt-dir FOLDER                 a further folder with models, beside models/; may be given several times
  --default-negative TEXT           what every picture's negative prompt ends with

The first start makes a virtual environment in .venv and installs what this machine needs (Mac: Metal; Linux: the CPU, or CUDA
where an NVIDIA driver answers). Later starts skip that.

Environment:
  PYTHON=/path/to/python3           the Python to make the environment with (default: the newest of 3.10 to 3.13 that is found)
  VENV=/path                        where the environment is (default: .venv beside this script)
  MLX_BACKEND=cpu|cuda12|cuda13     on Linux, instead of looking for a driver
  STABLE_DIFFUSION_MODELS=/a:/b     as --ckpt-dir; STABLE_DIFFUSION_NEGATIVE=TEXT as --default-negative
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
esac

case ${1:-} in
"" | --*)
    # Ours become Streamlit's or go into the environment; the others are Streamlit's own.
    left=$#
    while [ "$left" -gt 0 ]; do
        option=$1 value=""
        shift
        left=$((left - 1))
        case $option in
        --port | --ckpt-dir | --default-negative)
            [ "$left" -gt 0 ] || fail "$option needs a value. ./webui.sh --help shows how it is used."
            value=$1
            shift
            left=$((left - 1))
            ;;
        --port=* | --ckpt-dir=* | --default-negative=*)
            value=${option#*=}
            option=${option%%=*}
            ;;
        esac
        case $option in
        --port) set -- "$@" --server.port "$value" ;;
        --ckpt-dir)
            [ -d "$value" ] || fail "--ckpt-dir $value: there is no such folder."
            folder=$(cd "$value" && pwd) || exit 1
            export STABLE_DIFFUSION_MODELS="$folder${STABLE_DIFFUSION_MODELS:+:$STABLE_DIFFUSION_MODELS}"
            ;;
        --default-negative) export STABLE_DIFFUSION_NEGATIVE="$value" ;;
        *) set -- "$@" "$option" ;;
        esac
    done
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
