#!/bin/sh
# Packs the extension module that `cargo build --release --workspace --lib` made into a wheel, as maturin describes it,
# installs that into target/python/venv, and runs the tests there. maturin's own build, which `make wheel` runs, would
# compile the library once more, with other features of its dependencies.
set -eu
cd "$(dirname "$0")/../../.."
root=$PWD
target=${CARGO_TARGET_DIR:-$root/target}
dir=$target/python
venv=$dir/venv
requirements=$root/crates/python/tests/requirements.txt

if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    rm -rf "$venv"
    mkdir -p "$dir"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi

rm -rf "$dir/wheel" "$dir/dist"
mkdir -p "$dir/wheel" "$dir/dist"
(cd crates/python && "$venv/bin/maturin" pep517 write-dist-info --compatibility linux \
    --interpreter "$venv/bin/python" --metadata-directory "$dir/wheel" >"$dir/metadata.log" 2>&1) || {
    cat "$dir/metadata.log" >&2
    exit 1
}
cp -R crates/python/python/kudos "$dir/wheel/"
rm -rf "$dir/wheel/kudos/__pycache__"
strip -o "$dir/wheel/kudos/_kudos.abi3.so" "$target/release/lib_kudos.so"
"$venv/bin/wheel" pack --dest-dir "$dir/dist" "$dir/wheel" >/dev/null
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$dir"/dist/*.whl

KUDOS_TEST_WHEEL=$(echo "$dir"/dist/*.whl)
export KUDOS_TEST_WHEEL
exec "$venv/bin/python" -m pytest --rootdir crates/python -c crates/python/pyproject.toml crates/python/tests "$@"
