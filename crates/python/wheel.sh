#!/bin/sh
# Builds a wheel of the Python package in target/wheels, by maturin with the given options, in the profile for
# distribution. maturin and zig come from PyPI, in the versions below.
set -eu
cd "$(dirname "$0")/../.."
root=$PWD
venv=$root/target/wheel-venv
pins='maturin==1.16.0 ziglang==0.17.1'

if [ "$(cat "$venv/pins.txt" 2>/dev/null)" != "$pins" ]; then
    rm -rf "$venv"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv"
    # Split into words.
    # shellcheck disable=SC2086
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: $pins
    echo "$pins" >"$venv/pins.txt"
fi
# maturin starts zig by the Python of its own folder.
PATH=$venv/bin:$PATH
export PATH
exec maturin build --profile dist --locked --manifest-path crates/python/Cargo.toml --target-dir "$root/target/wheel" \
    --out "$root/target/wheels" --interpreter "$venv/bin/python" "$@"
