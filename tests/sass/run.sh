#!/usr/bin/env bash
# Checks the machine code of the kernels as `cargo build` makes it, `make test-sass`: the tables of
# kernels/README.md, which `make sass` writes anew, and the promises of the kernels' design. Installs the
# disassembler (5 MB to download) into target/sass-venv; KUDOS_NO_SASS=1 leaves the checks out. Arguments are
# unittest's.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${CARGO_TARGET_DIR:-$PWD/target}/sass-venv
pins=tools/sass/requirements.txt

failed() {
    echo "error: $1" >&2
    exit 1
}

if [ "${KUDOS_NO_SASS:-}" = 1 ]; then
    echo "not run: the checks of the kernels' machine code (KUDOS_NO_SASS is 1)"
    exit 0
fi

if ! cmp -s "$pins" "$venv/requirements.txt"; then
    rm -rf "$venv"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv" || failed "python3 makes no venv; Debian's package is \`python3-venv\`"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --requirement "$pins" ||
        failed "the disassembler of $pins cannot be installed: is PyPI reached? KUDOS_NO_SASS=1 leaves these checks out"
    cp "$pins" "$venv/requirements.txt"
fi

# The folder that build.rs wrote the fatbins to, which cargo reports even where there is nothing to build.
cargo build --release --locked --workspace --lib --message-format=json-render-diagnostics >"$venv/build.json"
KUDOS_FATBINS=
while IFS= read -r folder; do
    if [ -f "$folder/fatbins.rs" ]; then KUDOS_FATBINS=$folder; fi
done < <(sed -n 's/.*"reason":"build-script-executed".*"out_dir":"\([^"]*\)".*/\1/p' "$venv/build.json")
[ -n "$KUDOS_FATBINS" ] || failed "the build made no kernels"
export KUDOS_FATBINS

if [ "${KUDOS_WRITE_KERNELS_PAGE:-}" = 1 ]; then
    "$venv/bin/python" tools/sass "$KUDOS_FATBINS" --write
fi
exec "$venv/bin/python" tests/sass/checks.py "$@"
