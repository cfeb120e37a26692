#!/usr/bin/env bash
# Makes sure that the build finds an nvcc: does nothing where one is installed, otherwise puts the pinned one of
# cuda-toolchain.txt into target/cuda (100 MB to download, 270 MB on disk), for which it needs python3 with pip or venv.
set -euo pipefail
cd "$(dirname "$0")/.."

pins=tools/cuda-toolchain.txt
dir=target/cuda

# The same paths and least version, 12.4, as in build.rs.
new_enough() {
    local release
    release=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    local major=${release% *} minor=${release#* }
    [ "${major:-0}" -gt 12 ] || { [ "${major:-0}" -eq 12 ] && [ "$minor" -ge 4 ]; }
}
for nvcc in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [ -n "$nvcc" ] && new_enough "$nvcc"; then
        exit 0
    fi
done
if cmp --silent "$pins" "$dir/pins.txt"; then
    exit 0
fi

echo "no nvcc of CUDA 12.4 or later on this machine: installing one into $dir" >&2
pip=(python3 -m pip)
if ! "${pip[@]}" --version >/dev/null 2>&1; then
    python3 -m venv target/cuda-pip
    pip=(target/cuda-pip/bin/python -m pip)
fi
# All or nothing: an interrupted download leaves no partial toolchain.
rm -rf "$dir.partial"
"${pip[@]}" install --quiet --quiet --disable-pip-version-check --no-cache-dir --root-user-action=ignore \
    --no-deps --only-binary=:all: --require-hashes --target "$dir.partial" --requirement "$pins"
cp "$pins" "$dir.partial/pins.txt"
rm -rf "$dir" target/cuda-pip
mv "$dir.partial" "$dir"
