#!/bin/sh
# Runs the recipes of docs/clusters on this machine: `make test-clusters`. Installs Ray, Daft and Spark (1.3 GB on disk)
# into target/python/clusters, with the wheel that `make test-python` packed. Tests of what cannot be installed are not
# run, and say so. Arguments are pytest's.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
venv=$target/python/clusters
here=tests/clusters

install() {
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --no-binary=pyspark --no-compile \
        --requirement "$here/$1"
}

if ! cat "$here"/requirements*.txt | cmp -s - "$venv/requirements.txt"; then
    rm -rf "$venv"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv"
    install requirements.txt
    missing=
    for engine in ray daft spark; do
        install "requirements-$engine.txt" || missing="$missing $engine"
    done
    # A later run tries again to install what is missing.
    [ -n "$missing" ] || cat "$here"/requirements*.txt >"$venv/requirements.txt"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$target"/python/dist/*.whl

KUDOS_TEST_SOFTGPU=$target/softgpu RAY_USAGE_STATS_ENABLED=0 exec "$venv/bin/python" -m pytest -q -rs -p no:cacheprovider \
    -c /dev/null --rootdir "$here" "$here" "$@"
