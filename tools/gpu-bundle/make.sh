#!/usr/bin/env bash
# Makes the folder that README.md beside this file describes: make.sh FOLDER. It fails when the folder gets too large.
set -euo pipefail
tools=$(cd "$(dirname "$0")" && pwd)
cd "$tools/../.."
bundle=${1:?usage: make.sh FOLDER}

size_kib_max=$((60 * 1024))

# The libraries that an executable may need: glibc's, and the unwinder that comes with it everywhere.
allowed='^(libc|libm|libdl|libpthread|librt|libgcc_s|ld-linux-x86-64)\.so\.'

# Without the server and tables, which no section runs.
targets=(--workspace --no-default-features --features cuda --bin kudos --bin bench --test kernels --test cuda)
# The commit in the reports of `bench`.
KUDOS_COMMIT=$(git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null || true)
export KUDOS_COMMIT
built=$(mktemp)
trap 'rm -f "$built"' EXIT
cargo build --locked --profile dist "${targets[@]}" --message-format=json-render-diagnostics >"$built"

rm -rf "$bundle"
mkdir -p "$bundle/bin" "$bundle/tests/fixtures" "$bundle/demo"
glibc=0
while IFS= read -r executable; do
    # Names of tests end in a digest.
    name=$(basename "$executable" | sed 's/-[0-9a-f]\{16\}$//')
    needed=$(readelf -d "$executable" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -Ev "$allowed" || true)
    if [ -n "$needed" ]; then
        printf 'error: %s needs %s\n  at %s\n' "$name" "$needed" "$executable" >&2
        exit 1
    fi
    glibc=$({ echo "$glibc" && "$tools/../newest-glibc.sh" "$executable"; } | sort -V | tail -n 1)
    # Packed, because each carries the machine code of every kernel for every architecture, uncompressed so that its PTX
    # can be read: four executables are 183 MB, and 42 MB packed.
    gzip -9n <"$executable" >"$bundle/bin/$name.gz"
    printf '%s  %s\n' "$(sha256sum <"$executable" | cut -d ' ' -f 1)" "$name" >>"$bundle/SHA256SUMS"
done < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$built")

cp "$tools"/run.sh "$tools"/metadata.py "$tools"/checkpoint.py "$tools"/parity.py "$tools"/README.md benches/baseline/sdpa.py "$bundle/"
cp -r tests/fixtures/models tests/fixtures/families "$bundle/tests/fixtures/"
cp -r demo/model "$bundle/demo/"
find "$bundle" -name __pycache__ -prune -exec rm -r {} +

digest=$(cd "$bundle" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c 1-12)
{
    echo "commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
    if state=$(git status --porcelain 2>/dev/null); then
        if [ -z "$state" ]; then echo 'working tree=clean'; else echo 'working tree=dirty'; fi
    else
        echo 'working tree=unknown'
    fi
    echo "bundle=$digest"
    echo "built=$(date -u +%Y-%m-%dT%H:%M:%SZ) with $(rustc --version)"
    echo "needs glibc=$glibc"
    # Otherwise for every architecture.
    [ -z "${KUDOS_CUDA_ARCHS:-}" ] || echo "machine code only for=$KUDOS_CUDA_ARCHS"
} >"$bundle/commit.txt"

size_kib=$(du -sk --apparent-size "$bundle" | cut -f 1)
if [ "$size_kib" -gt "$size_kib_max" ]; then
    printf 'error: the bundle has %s KiB, more than the limit of %s KiB\n  at %s\n\n' "$size_kib" "$size_kib_max" "$bundle" >&2
    du -ak --apparent-size "$bundle" | sort -rn | head -n 12 >&2
    exit 1
fi
echo "$bundle: $((size_kib / 1024)) MiB, for glibc $glibc and later; on the machine with the GPU: ./run.sh"
