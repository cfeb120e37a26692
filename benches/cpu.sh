#!/bin/sh
# Both sides of the comparison on this CPU: the engine and Hugging Face transformers, on SmolLM2-135M. Sets up a venv and
# the model under target/ (some 3 GB, once: torch brings CUDA along); KUDOS_BENCH_PYTHON names a python that has torch and
# transformers already. KUDOS_REAL_DIR: where `make test-real` put its models.
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
bench=$(cargo bench --profile release --locked --no-default-features --bench cpu_engine --no-run \
    --message-format json | sed -n 's/.*"executable":"\([^"]*cpu_engine[^"]*\)".*/\1/p' | tail -n 1)
"$python" benches/baseline/compare.py "$real/smollm2-causal" --bench "$bench" --out benches/record "$@"
