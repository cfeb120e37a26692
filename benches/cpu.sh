#!/bin/sh
# The engine and Hugging Face transformers on this CPU, on SmolLM2-135M, and the engine at other sizes: a record. Sets up a venv and
# the model under target/ (some 3 GB, once: torch brings CUDA along); KUDOS_BENCH_PYTHON names a python that has torch and
# transformers already, KUDOS_REAL_DIR the folder of the models of `make test-real`.
set -eu
cd "$(dirname "$0")/.."
real=${KUDOS_REAL_DIR:-$PWD/target/real}
python=${KUDOS_BENCH_PYTHON:-}
if [ -z "$python" ]; then
    python=target/baseline/bin/python
    if [ ! -f target/baseline/done ]; then
        python3 -m venv target/baseline
        "$python" -m pip install --quiet --disable-pip-version-check -r benches/baseline/requirements.txt
        touch target/baseline/done
    fi
fi
if [ ! -d "$real/smollm2-causal" ]; then
    "$python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0
    "$python" tests/real/smollm2.py "$real"
fi
commit=$(git describe --always --dirty --abbrev=9)
KUDOS_COMMIT=$commit cargo build --release --locked --no-default-features --bin bench
# Runs `bench` with these options on SmolLM2, and adds the report to the record.
measure() {
    "${CARGO_TARGET_DIR:-target}/release/bench" "$@" --model "$real/smollm2-causal" --device cpu --output json |
        python3 benches/record.py
}
# The default arithmetic against transformers in both of its own, and bfloat16 against bfloat16, side by side and in rounds, for
# the load of a shared machine changes. Lists of options are split into words on purpose.
conversations='--tokens 512 --seqs 16'
responses='--tokens 576 --seqs 8 --shared-prefix 512 --responses 8'
# shellcheck disable=SC2086
for round in $(seq "${KUDOS_BENCH_ROUNDS:-3}"); do
    echo "round $round" >&2
    for workload in "$conversations" "$responses"; do
        for side in '--compare-dtype float32,bfloat16' '--cpu-math bf16 --compare-dtype bfloat16'; do
            measure $workload $side --compare "$python" --repeats 3
        done
    done
done
# shellcheck disable=SC2086
for workload in "$conversations" "$responses"; do
    measure $workload --cpu-math f32-vector --repeats 3
done
# By length, by the number of responses to one prompt, and requests that arrive one by one.
measure --tokens 64,128,256,512,1024,2048,4096 --repeats 3
for count in 1 2 4 8 16; do
    measure --tokens 576 --seqs "$count" --shared-prefix 512 --responses "$count" --repeats 5
done
measure serve-like --load 0.5,0.8 --concurrency 1,8
