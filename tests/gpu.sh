#!/bin/sh
# The tests that need a GPU, and a tally of the runs. On the software GPU, which interprets the same PTX at every compute
# capability, kernels run in the oldest that has them: those in f16 at 7.5, those in bf16 at 8.0. At 8.6 (where shared memory
# is small) and 9.0 run the tests of what a multiprocessor holds, and three models; at 9.0, where every kernel runs, also those of
# Hopper alone, the counts of kernels/README.md and golden bits. With
# KUDOS_TEST_GPU=real they run on the first real GPU, the engine's once for each tier.
set -u
cd "$(dirname "$0")/.."
tally=target/gpu-tally.txt
log=target/gpu-tests.log
: >"$tally"
status=0

# run LABEL CARGO-TEST-ARGUMENTS...
run() {
    label=$1
    shift
    echo "== $label"
    if ! cargo test --release --locked --workspace "$@" >"$log" 2>&1; then status=1; fi
    cat "$log"
    sed -n "s/^test result: \([A-Za-z]*\)\. \([0-9]* passed; [0-9]* failed; [0-9]* ignored\).*/\1: \2 | $label/p" "$log" >>"$tally"
}

export KUDOS_TEST_GPU KUDOS_TEST_TIER
if [ "${KUDOS_TEST_GPU:-}" = real ]; then
    run "kernels, real GPU" --test kernels
    for KUDOS_TEST_TIER in '' sm75; do
        run "engine, real GPU, tier ${KUDOS_TEST_TIER:-of its own}" --test cuda -- --ignored --nocapture
    done
    # Ignored, and counted in the tally: the file has the software GPU's bits.
    run "golden bits, real GPU" --test golden -- softgpu
else
    KUDOS_TEST_GPU=softgpu
    KUDOS_TEST_TIER=
    LD_LIBRARY_PATH=$PWD/target/softgpu
    SOFTGPU_MEMORY_GIB=8
    KUDOS_TEST_ATTENTION=
    export SOFTGPU_DEVICES LD_LIBRARY_PATH SOFTGPU_MEMORY_GIB SOFTGPU_CC KUDOS_TEST_FIXTURES KUDOS_TEST_ATTENTION
    for SOFTGPU_CC in 80 75 86 90; do
        case $SOFTGPU_CC in
        # As many devices as the ranks that models are divided among: all counts once, two elsewhere.
        80) kernels='--skip (F16) --skip _f16_' SOFTGPU_DEVICES=8 KUDOS_TEST_FIXTURES='' ;;
        75) kernels='' SOFTGPU_DEVICES=2 KUDOS_TEST_FIXTURES='' ;;
        *)
            kernels=blocks_together SOFTGPU_DEVICES=2
            KUDOS_TEST_FIXTURES=gqa8_hd128_llama3_bf16,gemma2_seqcls_hd128_bf16,qwen3_seqcls_hd64_bf16
            ;;
        esac
        at="software GPU at compute capability $SOFTGPU_CC"
        # Split into words.
        # shellcheck disable=SC2086
        run "kernels, $at" --test kernels -- $kernels
        [ "$SOFTGPU_CC" != 90 ] || {
            # Of attention_sm90a_simple, whose bits the other one is compared with, the widest and fastest tests.
            run "kernels of Hopper alone, $at" --test kernels -- sm90a --skip sm90a_simple_bf16_d64 \
                --skip sm90a_simple_bf16_d128_is_not_biased --skip sm90a_simple_bf16_d128_matches_naive_at
            run "counts of kernels/README.md, $at" --test kernels -- figures_of_the_page
        }
        # At 9.0 with Hopper's attention, which is not the default, and the models that it is for.
        [ "$SOFTGPU_CC" != 90 ] || {
            KUDOS_TEST_ATTENTION=sm90a KUDOS_TEST_FIXTURES=gqa8_hd128_llama3_bf16,qwen3_seqcls_hd64_bf16
        }
        run "engine, $at${KUDOS_TEST_ATTENTION:+, attention $KUDOS_TEST_ATTENTION}" --test cuda -- --ignored --nocapture
    done
    KUDOS_TEST_ATTENTION=
    SOFTGPU_CC=90 SOFTGPU_DEVICES=2
    run "golden bits, software GPU at compute capability 90" --test golden -- softgpu
    SOFTGPU_CC=80 SOFTGPU_DEVICES=8
    run "faults, software GPU at compute capability 80" --test cuda_faults -- --ignored
    run "bench, software GPU at compute capability 80" --test bench -- --ignored
fi

echo
echo "What ran where:"
cat "$tally"
exit "$status"
