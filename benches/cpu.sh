#!/bin/sh
# The engine beside other engines on this CPU, on SmolLM2-135M, and the engine at other sizes: a record.
#
#     benches/cpu.sh [--without NAME,..]
#
# Sets up a venv for each baseline and the model under target/ (some 20 GB, once: torch brings CUDA along). A baseline that cannot be
# installed is an error unless it is left out by its name. KUDOS_BENCH_BASELINES names a folder of venvs that are there already, by the
# baselines' names; KUDOS_REAL_DIR the folder of the models of `make test-real`; KUDOS_BENCH_ROUNDS the number of rounds.
set -eu
cd "$(dirname "$0")/.."

known='transformers vllm openvino onnxruntime'
without=
case $# in
0) ;;
2) without=$2 ;;
*) echo "usage: $0 [--without NAME,..]" >&2; exit 2 ;;
esac
if [ "${1:---without}" != --without ]; then
    echo "usage: $0 [--without NAME,..]" >&2
    exit 2
fi
for name in $(echo "$without" | tr ',' ' '); do
    case " $known " in
    *" $name "*) echo "leaving out the baseline \`$name\` (--without)" >&2 ;;
    *) echo "error: no baseline is named \`$name\`: the names are $known" >&2; exit 2 ;;
    esac
done
is_left_out() {
    case ",$without," in *",$1,"*) true ;; *) false ;; esac
}

venvs=${KUDOS_BENCH_BASELINES:-}
# A venv for a baseline, with the packages of its file.
install() {
    file=requirements-$1.txt
    [ "$1" != transformers ] || file=requirements.txt
    options=
    [ "$1" != vllm ] || options=--no-deps
    # A file of other versions is installed again.
    if ! cmp -s "benches/baseline/$file" "$venvs/$1/installed.txt"; then
        rm -rf "${venvs:?}/$1"
        # shellcheck disable=SC2086
        if ! { python3 -m venv "$venvs/$1" &&
            "$venvs/$1/bin/python" -m pip install --quiet --disable-pip-version-check $options -r "benches/baseline/$file"; }; then
            echo "error: the baseline \`$1\` cannot be installed (benches/baseline/$file)" >&2
            echo >&2
            echo "hint: leave it out: make bench-cpu WITHOUT=$1" >&2
            exit 1
        fi
        cp "benches/baseline/$file" "$venvs/$1/installed.txt"
    fi
}
if [ -z "$venvs" ]; then
    venvs=$PWD/target/baselines
    mkdir -p "$venvs"
    for name in $known; do
        is_left_out "$name" || install "$name"
    done
    # The allocator that vLLM asks for, where it comes from Debian or Ubuntu; without it the system's is measured.
    if [ ! -d "$venvs/tcmalloc" ] && ! is_left_out vllm && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
        folder=$(mktemp -d)
        if (cd "$folder" && apt-get download -qq libtcmalloc-minimal4); then
            dpkg -x "$folder"/libtcmalloc-minimal4*.deb "$venvs/tcmalloc"
        else
            echo "vLLM is measured without tcmalloc: apt-get cannot download libtcmalloc-minimal4" >&2
        fi
        rm -rf "$folder"
    fi
fi
float32=
bfloat16=
for name in $known; do
    if is_left_out "$name"; then continue; fi
    float32=$float32,$name=$venvs/$name/bin/python
    # ONNX Runtime has no bfloat16 on CPUs.
    [ "$name" = onnxruntime ] || bfloat16=$bfloat16,$name=$venvs/$name/bin/python
done

real=${KUDOS_REAL_DIR:-$PWD/target/real}
if [ ! -d "$real/smollm2-causal" ]; then
    if [ ! -x target/smollm2/bin/python ]; then python3 -m venv target/smollm2; fi
    target/smollm2/bin/python -m pip install --quiet --disable-pip-version-check gguf==0.19.0
    target/smollm2/bin/python tests/real/smollm2.py "$real"
fi
commit=$(git describe --always --dirty --abbrev=9)
KUDOS_COMMIT=$commit cargo build --release --locked --no-default-features --bin bench
# Runs `bench` with these options on SmolLM2, and adds the report to the record. A failed measurement adds none.
measure() {
    report=$(mktemp)
    if "${CARGO_TARGET_DIR:-target}/release/bench" "$@" --model "$real/smollm2-causal" --device cpu --output json >"$report"; then
        python3 benches/record.py <"$report"
        rm "$report"
    else
        rm "$report"
        exit 1
    fi
}
# Beside the baselines, f32 beside float32 and bf16 beside bfloat16. Lists of options are split into words on purpose.
rounds=${KUDOS_BENCH_ROUNDS:-5}
for workload in '--tokens 512 --seqs 16' '--tokens 576 --seqs 8 --shared-prefix 512 --responses 8' \
    '--tokens 2048 --seqs 8' '--tokens 64 --seqs 64' '--tokens 48 --seqs 1'; do
    for math in f32 bf16; do
        baselines=$float32
        [ "$math" = f32 ] || baselines=$bfloat16
        # shellcheck disable=SC2086
        measure $workload --cpu-math "$math" --repeats "$rounds" --compare-wait 60 ${baselines:+--compare "${baselines#,}"}
    done
done
# shellcheck disable=SC2086
for workload in '--tokens 512 --seqs 16' '--tokens 576 --seqs 8 --shared-prefix 512 --responses 8'; do
    measure $workload --cpu-math f32-vector --repeats 3
done
# By length, by the number of responses to one prompt, and requests that arrive one by one.
measure --tokens 64,128,256,512,1024,2048,4096 --repeats 3
for count in 1 2 4 8 16; do
    measure --tokens 576 --seqs "$count" --shared-prefix 512 --responses "$count" --repeats 5
done
measure serve-like --load 0.5,0.8 --concurrency 1,8
