#!/usr/bin/env bash
# Installs what this machine needs, then starts the page or another command of the program.
set -u
ROOT=$(cd "$(dirname "$0")" && pwd) || exit 1

usage() {
    cat <<'TEXT'
Usage: ./webui.sh [OPTIONS] [OPTIONS OF streamlit run]     start the page in the browser
       ./webui.sh COMMAND ...                              run another command; ./webui.sh COMMAND --help tells more
       ./webui.sh --setup                                  only install, start nothing
       ./webui.sh --update                                 get the newest version of this program (git pull), install
       ./webui.sh --version                                print the versions of this program, MLX and Python

Commands:
  txt2img     paint a picture from a text: ./webui.sh txt2img "a red house on green hills"
  img2img     repaint a picture after a text
  inpaint     repaint a part of a picture
  outpaint    extend a picture beyond its edges
  blend       paint the way from one text or seed to another, as a strip or a film
  again       regenerate a picture from its own metadata
  models      list the models to choose from
  samplers    list the samplers
  convert     write a model in another form or precision
  info        show how a picture was made
  train       train a small model
  page        start the page, as without a command
  selftest    check that this machine computes correctly, and how fast

Options of the page:
  --port N                          the port that it answers at (default: 8501)
  --ckpt-dir FOLDER                 another folder with models, beside models/; may be given several times
  --default-negative TEXT           text that ends every picture's negative prompt

The first start makes a virtual environment in .venv and installs what this machine needs (Mac: Metal; Linux: the CPU, or CUDA
where an NVIDIA driver answers), in the versions of locks/. Later starts skip that. --newest before all else takes the newest
versions that requirements.txt allows.

Environment:
  PYTHON=/path/to/python3           the Python to make the environment with (default: the newest of 3.11 to 3.13 that is found)
  VENV=/path                        where the environment is (default: .venv beside this script)
  MLX_BACKEND=cpu|cuda12|cuda13     on Linux, instead of looking for a driver
  STABLE_DIFFUSION_MODELS=/a:/b     as --ckpt-dir; STABLE_DIFFUSION_NEGATIVE=TEXT as --default-negative
  STABLE_DIFFUSION_OUTPUTS=/path    where the page puts finished pictures (default: outputs beside this script)
TEXT
}

setup=no update=no NEWEST=no
while :; do
    case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
    --setup) setup=yes ;;
    --update) update=yes ;;
    --newest) NEWEST=yes ;;
    *) break ;;
    esac
    shift
done

# shellcheck source=scripts/environment.sh
. "$ROOT/scripts/environment.sh"

if [ $update = yes ]; then
    command -v git >/dev/null 2>&1 || fail "--update needs git, which is not installed."
    [ -e "$ROOT/.git" ] || fail "$ROOT is not a git checkout. Download the new version as you did this one, or use git clone."
    changed=$(git -C "$ROOT" status --porcelain --untracked-files=no) || exit 1
    [ -z "$changed" ] || fail "These files have been changed here; commit the changes or take them back, then update again:
$changed"
    git -C "$ROOT" pull --ff-only >&2 ||
        fail "git pull did not work, for the reason above. Nothing was changed."
    # This script may have become another one.
    [ "$NEWEST" = no ] || set -- --newest
    exec "$BASH" "$ROOT/webui.sh" --setup "$@"
fi

prepare
if [ $setup = yes ]; then
    say "Ready."
    exit 0
fi

case ${1:-} in
--version) ;;
"" | -*) set -- page "$@" ;;
esac
# In the folder of the caller, whose relative paths are meant.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$VENV/bin/python" -m stable_diffusion "$@"
