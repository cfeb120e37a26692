#!/bin/sh
# Reading and tokenizing a million rows of a Parquet file, beside nothing else: a record. Uses the venv of `make test-python`, and the
# tokenizer of the demo model unless KUDOS_BENCH_MODEL names another.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
rows=$target/million.parquet
[ -f "$rows" ] || "$target/python/venv/bin/python" benches/rows.py "$rows"
commit=$(git describe --always --dirty --abbrev=9)
KUDOS_COMMIT=$commit cargo build --release --locked --workspace --bin bench
"$target/release/bench" rows --model "${KUDOS_BENCH_MODEL:-demo/model}" "$rows" --threads 2 --output json | python3 benches/record.py
