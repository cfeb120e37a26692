#!/bin/sh
# Runs the tests on real weights and the real Llama 3 tokenizer. Builds their models (about 200 MB
# of downloads, once) in KUDOS_REAL_DIR, by default target/real. KUDOS_REAL_PYTHON is a python3 that
# already has gguf, transformers and jinja2.
set -eu
cd "$(dirname "$0")/../.."
KUDOS_REAL_DIR=${KUDOS_REAL_DIR:-$PWD/target/real}
export KUDOS_REAL_DIR
mkdir -p "$KUDOS_REAL_DIR"

python=${KUDOS_REAL_PYTHON:-}
if [ -z "$python" ]; then
    python=$KUDOS_REAL_DIR/venv/bin/python
    if [ ! -f "$KUDOS_REAL_DIR/venv.done" ]; then
        python3 -m venv "$KUDOS_REAL_DIR/venv"
        "$python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0 transformers==5.23.0 jinja2==3.1.6
        touch "$KUDOS_REAL_DIR/venv.done"
    fi
fi

if [ ! -f "$KUDOS_REAL_DIR/smollm2.done" ]; then
    "$python" tests/real/smollm2.py "$KUDOS_REAL_DIR"
    touch "$KUDOS_REAL_DIR/smollm2.done"
fi

if [ -n "${KUDOS_TEST_DATA:-}" ]; then
    if [ ! -f "$KUDOS_REAL_DIR/prompts.done" ]; then
        "$python" tests/real/prompts.py "$KUDOS_REAL_DIR"
        touch "$KUDOS_REAL_DIR/prompts.done"
    fi
    set --
else
    echo "not run: the longer list of conversations, and Llama 3's tokenizer and templates (KUDOS_TEST_DATA is not set)" >&2
    set -- --skip longer_list --skip prompts::
fi
cargo test --release --locked --workspace --test real -- --ignored --nocapture "$@"
