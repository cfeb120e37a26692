#!/bin/sh
# Compares the numbers of `kudos eval` with a second implementation, and with rewardbench's own functions:
# `make test-eval`, after a build. Installs what they need (100 MB on disk) into target/eval-venv. Arguments are
# pytest's.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
venv=$target/eval-venv
here=tests/eval

failed() {
    echo "error: $1" >&2
    exit 1
}

[ -x "$target/release/kudos" ] || failed "there is no $target/release/kudos: run \`make build\`"

install() {
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: "$@" ||
        failed "what the tests need cannot be installed: is PyPI reached? $here/requirements.txt names it"
}

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv" || failed "python3 makes no venv; Debian's package is \`python3-venv\`"
    install --requirement "$here/requirements.txt"
    # Its dependencies run models; of its own code the tests use the functions that compute numbers.
    install --no-deps rewardbench==0.1.4
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

KUDOS=$target/release/kudos exec "$venv/bin/python" -m pytest -q -rs -p no:cacheprovider -c /dev/null --rootdir "$here" \
    "$here" "$@"
