#!/bin/sh
# Runs the server with the libraries of its clients, and Schemathesis on its description: `make test-clients`, after a
# build. Installs them (300 MB on disk) into target/clients-venv. Arguments are pytest's.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
venv=$target/clients-venv
here=tests/clients

failed() {
    echo "error: $1" >&2
    exit 1
}

for command in kudos bench; do
    [ -x "$target/release/$command" ] || failed "there is no $target/release/$command: \`make test-clients\` builds it"
done

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv" || failed "python3 makes no venv; Debian's package is \`python3-venv\`"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --no-compile \
        --requirement "$here/requirements.txt" ||
        failed "the clients' libraries cannot be installed: is PyPI reached? $here/requirements.txt names them"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

KUDOS=$target/release/kudos exec "$venv/bin/python" -m pytest -q -p no:cacheprovider -c /dev/null --rootdir "$here" \
    "$here" "$@"
