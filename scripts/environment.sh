# shellcheck shell=bash
# Sourced by webui.sh and test.sh: sets up a virtual environment for this machine. Plain bash 3.2, for macOS.

VENV=${VENV:-$ROOT/.venv}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
LOG=$VENV/install.log

say() { printf '%s\n' "$*" >&2; }

fail() {
    say ""
    say "$@"
    exit 1
}

# Being on the PATH is not enough: version managers leave shims that only print an error.
is_usable_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_usable_python "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer. Give the path of one, or leave PYTHON unset."
        return
    fi
    for PYTHON in python3.13 python3.12 python3.11 python3 python; do
        is_usable_python "$PYTHON" && return
    done
    fail "Python 3.11 or newer was not found. Install it, then run this again:
    macOS:           brew install python@3.13      (or the installer from python.org)
    Debian, Ubuntu:  sudo apt install python3 python3-venv      (Debian 12, Ubuntu 24.04 or newer)
    Fedora:          sudo dnf install python3
If it is installed under another name: PYTHON=/path/to/python3 $0"
}

# cpu, cuda12 or cuda13 on Linux; metal on a Mac.
choose_backend() {
    case $(uname -s) in
    Darwin)
        [ "$("$PYTHON" -c 'import platform; print(platform.machine())')" = arm64 ] ||
            fail "MLX on a Mac needs Apple silicon and a Python built for it; $PYTHON is for $("$PYTHON" -c 'import platform; print(platform.machine())')."
        BACKEND=metal
        return
        ;;
    Linux) ;;
    *) fail "This runs on macOS and Linux. On Windows, run it inside WSL (https://learn.microsoft.com/windows/wsl)." ;;
    esac
    case ${MLX_BACKEND:-} in
    cpu | cuda12 | cuda13)
        BACKEND=$MLX_BACKEND
        return
        ;;
    "") ;;
    *) fail "MLX_BACKEND=$MLX_BACKEND: use cpu, cuda12 or cuda13." ;;
    esac
    BACKEND=cpu
    command -v nvidia-smi >/dev/null 2>&1 || return 0
    # The header of nvidia-smi gives the newest CUDA that the driver supports: "CUDA Version: 12.8".
    local cuda
    cuda=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version: *\([0-9][0-9]*\).*/\1/p' | head -n 1)
    if [ -z "$cuda" ]; then
        say "nvidia-smi is installed, but the NVIDIA driver does not answer: using the CPU. (MLX_BACKEND=cuda12 or cuda13 overrides this.)"
    elif [ "$cuda" -ge 13 ]; then
        BACKEND=cuda13
    elif [ "$cuda" -ge 12 ]; then
        BACKEND=cuda12
    else
        say "This NVIDIA driver supports CUDA $cuda; MLX needs 12 or newer: using the CPU until the driver is updated."
    fi
}

make_venv() {
    if [ -x "$VENV/bin/python" ] && is_usable_python "$VENV/bin/python"; then
        # Finished before, by this script or by hand; an interrupted one has no working pip yet.
        [ -f "$VENV/.made" ] && return
        "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && touch "$VENV/.made" && return
    fi
    # Never clear a folder with other content.
    if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
        fail "$VENV exists and is not a virtual environment. Move it away, or choose another folder: VENV=/path/to/venv $0"
    fi
    find_python
    say "Making a virtual environment in $VENV with $("$PYTHON" --version 2>&1)."
    local output
    if ! output=$("$PYTHON" -m venv --clear "$VENV" 2>&1); then
        say "$output"
        case $output in
        *ensurepip* | *"No module named venv"*) fail "This Python cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv" ;;
        *"No space left"*) fail "The disk is full: the environment needs about 1 GB (./test.sh --all: 3 GB)." ;;
        *"Permission denied"* | *"Read-only file system"*) fail "$(dirname "$VENV") cannot be written to. Put the environment elsewhere: VENV=/path/to/venv $0" ;;
        *) fail "The virtual environment could not be made in $VENV: see above." ;;
        esac
    fi
    touch "$VENV/.made"
}

# install WHAT LOCK FILE...: installs the requirement files, in the versions of locks/LOCK.txt, or with NEWEST=yes in the newest
# that the files allow. Does nothing if exactly that is installed already. ALONE=--no-deps leaves out what they ask for.
install() {
    local what=$1 lock="$ROOT/locks/$2.txt" stamp="$VENV/.installed-$1" wanted
    shift 2
    wanted="$BACKEND $("$VENV/bin/python" --version 2>&1) $(cat "$lock" "$@")"
    if [ "$NEWEST" = no ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    rm -f "$stamp"
    say "Installing packages ($what, $BACKEND). The first time takes some minutes; the full log is $LOG"
    leave_one_backend
    local file list="$VENV/.requirements"
    : >"$list"
    for file in "$@"; do
        case $BACKEND in
        cuda*) sed "s/^mlx\[cpu\]/mlx[$BACKEND]/" "$file" >>"$list" ;;
        *) cat "$file" >>"$list" ;;
        esac
        echo >>"$list"
    done
    # As constraints: -r would install everything in the lock, also for other machines and for torch on a GPU.
    case $NEWEST in
    yes) set -- --upgrade --upgrade-strategy eager ;;
    *) set -- --upgrade-strategy only-if-needed -c "$lock" ;;
    esac
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install ${ALONE:+"$ALONE"} "$@" -r "$list" 2>&1 </dev/null |
        tee "$LOG" | sed -n 's/^ *Downloading \([A-Za-z0-9_.]*\)-[^ ]* \((.*)\).*/  \1 \2/p' >&2
    [ "${PIPESTATUS[0]}" -eq 0 ] || explain_pip
    # The next start without --newest returns to the lock.
    [ "$NEWEST" = yes ] || printf '%s' "$wanted" >"$stamp"
}

# mlx-cpu, mlx-cuda-12 and mlx-cuda-13 write the same files, so only one of them may be installed.
leave_one_backend() {
    local previous="" stamp="$VENV/.backend"
    [ -f "$stamp" ] && previous=$(cat "$stamp")
    if [ -n "$previous" ] && [ "$previous" != "$BACKEND" ]; then
        say "Changing from $previous to $BACKEND."
        rm -f "$VENV"/.installed-*
        "$VENV/bin/python" -m pip uninstall -y -q mlx mlx-cpu mlx-cuda-12 mlx-cuda-13 >>"$LOG" 2>&1 || true
    fi
    printf '%s' "$BACKEND" >"$stamp"
}

explain_pip() {
    say ""
    tail -n 15 "$LOG" >&2
    if grep -q "No space left on device" "$LOG"; then
        fail "The disk is full. Free some space (about 1 GB; ./test.sh --all: 3 GB; CUDA: 5 GB) and run this again to continue."
    elif grep -qE "NewConnectionError|NameResolutionError|Temporary failure in name|Network is unreachable|ProxyError|ConnectTimeout|ReadTimeout|SSLError|No route to host" "$LOG"; then
        fail "The package registry could not be reached. Check the network (and HTTPS_PROXY, if you need a proxy), then run this again."
    elif grep -qE "No matching distribution|Could not find a version" "$LOG"; then
        fail "A package is not available for this machine (see above): $(uname -sm), $("$VENV/bin/python" --version 2>&1).
Another Python may work: PYTHON=python3.12 VENV=$VENV-3.12 $0"
    fi
    fail "The installation failed: its last lines are above, the full log is $LOG. Run this again to retry."
}

prepare() {
    make_venv
    PYTHON=$VENV/bin/python
    choose_backend
    local lock=$BACKEND
    [ "$lock" = metal ] && lock=cpu # every lock includes the packages for Macs
    install runtime "$lock" "$ROOT/requirements.txt"
}
