#!/usr/bin/env bash
# Installs what this machine needs, then starts the page or runs another command.
set -u
ROOT=$(cd "$(dirname "$0")" && pwd) || exit 1

usage() {
    cat <<'TEXT'
Usage: ./webui.sh [OPTIONS] [OPTIONS OF streamlit run]     start the page and open it in the browser
       ./webui.sh COMMAND ...                              run another command; see ./webui.sh COMMAND --help
       ./webui.sh --setup                                  install only
       ./webui.sh --update                                 get the newest version of this program (git pull) and install it
       ./webui.sh --version                                print the versions of this program, MLX and Python

Commands:
  txt2img     make a picture from a text: ./webui.sh txt2img "a red house on green hills"
  img2img     make a picture from a picture and a text
  inpaint     repaint part of a picture
  outpaint    extend a picture beyond its edges
  imagic      change a picture by a text, and keep the rest of it
  invert      find the noise that a picture comes from
  reconstruct paint a picture from its noise, as it was or with another text
  edit        paint a picture by one text, and the same picture by another
  blend       make a strip or an animation from one text or seed to another
  grid        paint a grid with one to three settings varied
  again       regenerate a picture from its own metadata
  upscale     enlarge pictures
  models      list the available models
  samplers    list the samplers
  convert     convert a model to another format or precision
  merge       mix two or three models into a new one
  styles      list the styles
  wildcards   list the wildcards of dynamic prompts
  info        show how a picture was made
  train       train a small model, or teach a model something from pictures
  page        start the page (the default)
  serve       serve the HTTP API without the page
  selftest    check that this machine computes correctly, and how fast

Options of the page:
  --port N                          its port (default: 8501)
  --ckpt-dir FOLDER                 another folder with models, in addition to models/; may be given several times
  --default-negative TEXT           text appended to every negative prompt, or public for a text against abuse
  --listen [ADDRESS]                let other machines reach the page; needs a password
  --allow-host NAME                 a name by which browsers may ask for it, such as that of a proxy; may be given several times
  --password TEXT                   ask for this password

The first start creates a virtual environment in .venv and installs what this machine needs (Mac: Metal; Linux: CUDA if there is
an NVIDIA driver, otherwise the CPU), in the versions of locks/. Later starts skip this. With --newest as the first option, it
installs the newest versions that requirements.txt allows.

Environment:
  PYTHON=/path/to/python3           the Python for the environment (default: the newest of 3.11 to 3.13 that is found)
  VENV=/path                        the environment's folder (default: .venv in this folder)
  MLX_BACKEND=cpu|cuda12|cuda13     on Linux, instead of detecting the driver
  STABLE_DIFFUSION_MODELS=/a:/b     like --ckpt-dir; STABLE_DIFFUSION_NEGATIVE=TEXT like --default-negative
  STABLE_DIFFUSION_PASSWORD=TEXT    like --password, but does not show in the list of processes
  STABLE_DIFFUSION_OUTPUTS=/path    where finished pictures are saved (default: outputs in this folder)
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
    [ -e "$ROOT/.git" ] || fail "$ROOT is not a git checkout. Download the new version the way you got this one, or use git clone."
    changed=$(git -C "$ROOT" status --porcelain --untracked-files=no) || exit 1
    [ -z "$changed" ] || fail "These files have local changes; commit or revert them, then update again:
$changed"
    git -C "$ROOT" pull --ff-only >&2 ||
        fail "git pull failed, for the reason above. Nothing was changed."
    # This script itself may have changed.
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
# In the caller's folder, so that relative paths work.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$VENV/bin/python" -m stable_diffusion "$@"
