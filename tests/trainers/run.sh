#!/bin/sh
# Runs the reward functions in the trainers' own code: `make test-trainers`. It installs torch, TRL, verl, OpenRLHF and
# AReaL (some 4 GB) into target/python/trainers, with the wheel that `make test-python` packed. No GPU is needed.
set -eu
cd "$(dirname "$0")/../.."
dir=${CARGO_TARGET_DIR:-$PWD/target}/python
venv=$dir/trainers
here=tests/trainers

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --only-binary=:all: --requirement "$here/requirements.txt"
    # These name GPU libraries and servers as dependencies, of which their reward paths use none.
    "$venv/bin/pip" install --quiet --only-binary=:all: --no-deps verl==0.9.1 openrlhf==0.11.2 areal==1.0.4
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi
"$venv/bin/pip" install --quiet --no-deps --force-reinstall "$dir"/dist/*.whl
HF_HUB_OFFLINE=1 exec "$venv/bin/python" -m pytest -qs -p no:cacheprovider -c /dev/null --rootdir "$here" "$here" "$@"
