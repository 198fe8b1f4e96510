#!/usr/bin/env bash
# Writes locks/: the newest versions that the requirements allow, for all supported Pythons and machines.
# Needs uv (pip install uv) and the registry. Run the tests before committing the result.
set -eu
cd "$(dirname "$0")/.."

# lock FILE OPTIONS...: constraints may not have extras in pip, and must not say where packages come from.
lock() {
    local file=$1
    shift
    uv pip compile --quiet --no-config --universal --python-version 3.11 --strip-extras --upgrade \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@" --output-file "$file"
}

cat >locks/head.tmp <<'TEXT'
# Made by scripts/lock.sh; do not edit. For Python 3.11 to 3.13 on macOS (Apple silicon) and Linux (x86-64, AArch64).
TEXT
trap 'rm -f locks/*.tmp' EXIT

# Everything first, so that all files agree. The CUDA libraries that torch asks for are left out: they would conflict with MLX's,
# and torch for the CPU does not need them.
lock locks/test.tmp requirements.txt requirements-dev.txt requirements-parity.txt
grep -vE '^(nvidia-|cuda-|triton)' locks/test.tmp | cat locks/head.tmp - >locks/test.txt
grep == requirements-alone.txt >>locks/test.txt # installed without its own requirements, which are not locked
for backend in cpu cuda12 cuda13; do
    # What webui.sh installs for it. Every file includes the packages for Macs.
    sed "s/^mlx\[cpu\]/mlx[$backend]/" requirements.txt >locks/wanted.tmp
    lock locks/$backend.tmp locks/wanted.tmp --constraint locks/test.txt
    cat locks/head.tmp locks/$backend.tmp >locks/$backend.txt
done
