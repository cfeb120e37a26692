#!/bin/sh
# Runs the bundle on the software GPU, as its user would: from a copy, from another folder. check.sh BUNDLE SOFTGPU
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
bundle=$(cd "${1:?usage: check.sh BUNDLE SOFTGPU}" && pwd)
softgpu=$(cd "${2:?usage: check.sh BUNDLE SOFTGPU}" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
    printf 'error: %s\n  at %s/run.sh\n' "$1" "$tools" >&2
    exit 1
}

# The copy's name has a space; a run writes nothing into it but the unpacked executables.
cp -r "$bundle" "$folder/a copy"
cd "$folder"
unset KUDOS_TEST_GPU KUDOS_TEST_TIER CUDA_VISIBLE_DEVICES
export LD_LIBRARY_PATH="$softgpu" SOFTGPU_CC=80 SOFTGPU_DEVICES=1 SOFTGPU_MEMORY_GIB=8
export KUDOS_TEST_FIXTURES=gqa8_hd128_llama3_bf16 KUDOS_REPORT_DIR="$folder/report"
"a copy/run.sh" || { cat report/logs/*; fail 'a step failed'; }

[ "$(head -n 1 report/report.txt)" = 'software GPU, not hardware' ] || fail 'the report does not name the software GPU'
for step in kernels.kernels engine.sm80 engine.sm75 bench.kernels_dry; do
    [ "$(cat "report/steps/$step.status")" = passed ] || fail "$step did not run"
done
grep -q '^commit: ' report/report.txt || fail 'the report does not name the commit'
if command -v python3 >/dev/null; then
    python3 -c 'import json, sys; assert len(json.load(sys.stdin)["steps"]) >= 6' <report/report.json ||
        fail 'report.json differs from README.md'
fi
[ "$(find . -mindepth 1 -maxdepth 1 | wc -l)" = 2 ] || fail 'files were written beside the bundle and the report'
[ ! -e report/tmp ] || fail 'temporary files were left'

# The README promises it. An executable needs what its builder has: one with a newer glibc cannot make such a bundle.
needed=$(sed -n 's/^needs glibc=//p' "a copy/commit.txt")
[ "$(printf '%s\n2.34\n' "$needed" | sort -V | tail -n 1)" = 2.34 ] || fail "the executables need glibc $needed, and the README says 2.34"

# A second run finds all steps done.
[ "$("a copy/run.sh" kernels engine | grep -c 'done before')" = 4 ] || fail 'finished steps were run again'
# Unknown sections are refused.
if "a copy/run.sh" kernel 2>/dev/null; then fail 'an unknown section was accepted'; fi
echo 'the bundle works on the software GPU'
