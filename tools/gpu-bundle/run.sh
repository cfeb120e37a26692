#!/bin/sh
# Runs all checks and measurements that need a GPU, and writes a report: run.sh [--fresh] [SECTION...]
#
# The sections are kernels, engine, sanitizer, parity and bench: all of them, in that order, when none is named. README.md
# beside this file describes them, the report, and the variables. Steps that an earlier run finished are not run again
# without --fresh. Exit status: 0 if no step failed, 1 if one did, 2 if none could be run.
set -u

sections='kernels engine sanitizer parity bench'

# Time limit of a section in seconds: under 8 minutes, with the end of its last step.
section_seconds=${KUDOS_SECTION_SECONDS:-465}

# Racecheck follows every access to shared memory and is slow: it runs only these tests, of the kernels with shared memory,
# one at a time, by patterns of their names.
racecheck_tests='attention_sm80_.*_on_shared attention_sm75_.*_on_shared attention_plain_.*_d128_.*_on_shared
    attention_sm90a_.*_on_shared
    add_rms_norm_matches add_rms_norm_adds score_matches'

# The engine under memcheck: one test, one model.
memcheck_engine_test=a_reward_depends_on_its_own_tokens_alone
memcheck_engine_fixture=gqa8_hd128_llama3_bf16

here=$(cd "$(dirname "$0")" && pwd)
invoked_in=$PWD

# die WHAT WHERE HINT
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "$2" ] || printf '  at %s\n' "$2" >&2
    [ -z "$3" ] || printf '\nhint: %s\n' "$3" >&2
    exit 2
}

print() {
    printf '%s\n' "$*"
}

now() {
    date +%s
}

# --- the command line and the folders -------------------------------------------------------------------------------

fresh=
chosen=
for argument; do
    case " $sections " in
    *" $argument "*) chosen="$chosen $argument" ;;
    *)
        case $argument in
        --fresh) fresh=yes ;;
        -h | --help)
            sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) die "unknown section \`$argument\`" "" "the sections are: $sections" ;;
        esac
        ;;
    esac
done
[ -n "$chosen" ] || chosen=$sections

[ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m), the bundle is for x86_64" "" ""
command -v timeout >/dev/null || die "there is no \`timeout\` on this machine" "" "it is part of GNU coreutils"

report=${KUDOS_REPORT_DIR:-report}
case $report in
/*) ;;
*) report=$invoked_in/$report ;;
esac
mkdir -p "$report" || die "the folder of the report cannot be made" "$report" "set KUDOS_REPORT_DIR"
# Files of a run that was killed, such as a model of parity's.
rm -rf "$report/tmp"
temporary=${TMPDIR:-$report/tmp}
mkdir -p "$temporary"
temporary=$(mktemp -d "$temporary/kudos.XXXXXX") || die "no temporary folder" "$temporary" "set TMPDIR"
trap 'rm -rf "$temporary"; rmdir "$report/tmp" 2>/dev/null' EXIT
trap 'exit 130' INT TERM

# Caches of programs go there as well.
TMPDIR=$temporary
CUDA_CACHE_PATH=$temporary/cuda-cache
XDG_CACHE_HOME=$temporary/cache
HF_HOME=$temporary/huggingface
HF_HUB_OFFLINE=1
PYTHONDONTWRITEBYTECODE=1
export TMPDIR CUDA_CACHE_PATH XDG_CACHE_HOME HF_HOME HF_HUB_OFFLINE PYTHONDONTWRITEBYTECODE

cd "$here" || exit 2

# --- the executables ------------------------------------------------------------------------------------------------

# They travel packed: each holds the machine code of every kernel for every architecture.
bin=bin
if [ ! -w bin ]; then
    bin=$temporary/bin
    mkdir "$bin"
fi
unpacked() {
    [ -x "$bin/$1" ] && [ "$(sha256sum <"$bin/$1" | cut -d ' ' -f 1)  $1" = "$(grep -x "[0-9a-f]*  $1" SHA256SUMS)" ]
}
for packed in bin/*.gz; do
    name=$(basename "$packed" .gz)
    unpacked "$name" && continue
    gzip -dc "$packed" >"$bin/$name.part" && chmod +x "$bin/$name.part" && mv "$bin/$name.part" "$bin/$name"
    unpacked "$name" || die "an executable differs from the packed one" "$packed" "copy the bundle again"
done

glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/glibc //')
glibc_needed=$(sed -n 's/^needs glibc=//p' commit.txt)
if [ -n "$glibc" ] && [ "$(printf '%s\n%s\n' "$glibc" "$glibc_needed" | sort -V | head -n 1)" != "$glibc_needed" ]; then
    die "this machine has glibc $glibc, and the bundle needs $glibc_needed" "" "build the bundle on an older system"
fi

# --- the libraries --------------------------------------------------------------------------------------------------

pythons=
for candidate in "${PYTHON:-}" python3; do
    [ -n "$candidate" ] && found=$(command -v "$candidate") && pythons="$pythons
$found"
done

# Every folder where a library may be, the loader's first. One a line: names may hold spaces.
library_folders() {
    printf '%s\n' "${LD_LIBRARY_PATH:-}" | tr ':' '\n' | sed '/^$/d'
    { ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null |
        sed -n 's,.*=> \(/.*\)/lib\(cuda\|cublasLt\|nccl\)\.so[^/]*$,\1,p' | awk '!seen[$0]++'
    printf '%s\n' /lib/x86_64-linux-gnu /usr/lib/x86_64-linux-gnu /lib64 /usr/lib64 /usr/lib /usr/local/lib
    # Where containers and some distributions keep the driver's.
    printf '%s\n' /usr/local/nvidia/lib64 /usr/lib64-nvidia /usr/lib/wsl/lib /run/opengl-driver/lib
    printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib
    packages=$(printf '%s\n' "$pythons" | while IFS= read -r one; do
        [ -z "$one" ] || "$one" metadata.py packages 2>/dev/null
    done)
    printf '%s\n' "$packages" | while IFS= read -r package; do
        [ -z "$package" ] || printf '%s\n' "$package"/*/lib
    done
}
folders=$(library_folders)

# find_library STEM VERSION: the first file of that name, in any folder. A name without a version counts unless it is a link
# to another version.
find_library() {
    printf '%s\n' "$folders" | while IFS= read -r folder; do
        for file in "$folder/lib$1.so.$2" "$folder/lib$1.so"; do
            [ -f "$file" ] || continue
            case $(basename "$(readlink -f "$file")") in
            "lib$1.so.$2"*) ;;
            "lib$1.so".[0-9]*) continue ;;
            esac
            printf '%s\n' "$file"
            return
        done
    done | head -n 1
}

original_library_path=${LD_LIBRARY_PATH:-}
links=$temporary/libraries
mkdir "$links"
cuda=$(find_library cuda 1)
cublaslt=$(find_library cublasLt 13)
nccl=$(find_library nccl 2)
# The names that kudos loads, before any other version's.
if [ -n "$cublaslt" ]; then
    ln -s "$(readlink -f "$cublaslt")" "$links/libcublasLt.so"
    ln -s "$(readlink -f "$cublaslt")" "$links/libcublasLt.so.13"
fi
if [ -n "$nccl" ]; then
    ln -s "$(readlink -f "$nccl")" "$links/libnccl.so"
    ln -s "$(readlink -f "$nccl")" "$links/libnccl.so.2"
fi
# Their own folders as well, for the libraries that they need; Python keeps its path, as torch brings its own libraries.
KUDOS_LD_LIBRARY_PATH=$({
    printf '%s\n' "$links"
    for file in "$cublaslt" "$nccl" "$cuda"; do [ -z "$file" ] || dirname "$file"; done
    printf '%s\n' "$original_library_path" | tr ':' '\n'
} | awk '$0 != "" && !seen[$0]++' | paste -sd: -)
LD_LIBRARY_PATH=$KUDOS_LD_LIBRARY_PATH
export LD_LIBRARY_PATH KUDOS_LD_LIBRARY_PATH

# The first Python that can run the parity section; otherwise the first.
python=
while IFS= read -r one; do
    [ -n "$one" ] || continue
    [ -n "$python" ] || python=$one
    if "$one" -c 'import sys, importlib.util as u
sys.exit(not all(map(u.find_spec, ("torch", "transformers", "safetensors"))))' 2>/dev/null; then
        python=$one
        break
    fi
done <<EOF
$pythons
EOF

# --- the machine -----------------------------------------------------------------------------------------------------

queried=$temporary/queried
: >"$queried"
[ -z "$python" ] || timeout 60 "$python" metadata.py >"$queried" 2>"$temporary/metadata.err"
metadata_of() {
    sed -n "s/^$1=//p" "$queried" | head -n 1
}

smi() {
    command -v nvidia-smi >/dev/null &&
        timeout 30 nvidia-smi --id=0 --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1
}

# The device that kudos itself reports on its first line.
kudos_line=$(printf '{"input_ids": [1]}\n' | timeout 120 "$bin/kudos" score \
    --model "tests/fixtures/models/$memcheck_engine_fixture" - 2>&1 >/dev/null | head -n 1)
in_words=$(printf '%s\n' "$kudos_line" | sed -n 's/^running on CUDA, GPU [0-9]* (\(.*\), compute capability \([0-9.]*\)).*/\2 \1/p')

device=$(metadata_of device)
capability=$(metadata_of 'compute capability')
[ -n "$device" ] || device=${in_words#* }
[ -n "$capability" ] || capability=${in_words%% *}
software=
driver=
memory=$(metadata_of memory)
case $device in
softgpu*)
    software=yes
    driver='none: software'
    ;;
*)
    [ -n "$device" ] || device=$(smi name)
    [ -n "$capability" ] || capability=$(smi compute_cap)
    driver=$(smi driver_version)
    [ -n "$driver" ] || driver=$(sed -n 's/.*Kernel Module[^0-9]*\(x86_64\)\{0,1\} *\([0-9][0-9.]*\).*/\2/p' \
        /proc/driver/nvidia/version 2>/dev/null)
    smi_memory=$(smi memory.total)
    [ -z "$smi_memory" ] || memory=$smi_memory
    ;;
esac

# The tiers that the device runs, its own first.
case $capability in
7.*) tiers=sm75 ;;
*) tiers='sm80 sm75' ;;
esac

sanitizer=
for file in "$(command -v compute-sanitizer)" /usr/local/cuda/bin/compute-sanitizer \
    /usr/local/cuda*/bin/compute-sanitizer /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
    if [ -n "$file" ] && [ -x "$file" ]; then
        sanitizer=$file
        break
    fi
done
if [ -z "$sanitizer" ]; then
    for one in $pythons; do
        for package in $("$one" metadata.py packages 2>/dev/null); do
            [ -n "$sanitizer" ] || sanitizer=$(find "$package" -name compute-sanitizer -type f -perm -u+x | head -n 1)
        done
    done
fi

# --- the report -----------------------------------------------------------------------------------------------------

steps=$report/steps
# A run without a GPU keeps the old report.
[ -n "$capability" ] || fresh=
identity="$(sed -n 's/^bundle=//p' commit.txt) on $device"
if [ -n "$fresh" ]; then
    rm -rf "$steps" "$report/logs" "$report/parity" "$report"/report.* "$report/logs.tar.gz"
elif [ -n "$capability" ] && [ -d "$steps" ] && [ "$(cat "$steps/identity" 2>/dev/null)" != "$identity" ]; then
    number=1
    while [ -e "$report/earlier-$number" ]; do number=$((number + 1)); done
    print "the report at $report is of $(cat "$steps/identity" 2>/dev/null): it is kept in earlier-$number"
    mkdir "$report/earlier-$number"
    for file in steps logs parity report.txt report.json logs.tar.gz; do
        [ ! -e "$report/$file" ] || mv "$report/$file" "$report/earlier-$number/"
    done
fi
mkdir -p "$steps" "$report/logs"
[ -z "$capability" ] || printf '%s\n' "$identity" >"$steps/identity"

# version_of NAME FILE: the version that the library reports, else the one in its file's name.
version_of() {
    version=$(metadata_of "$1")
    [ -n "$version" ] || [ -z "$2" ] || version=$(readlink -f "$2" | sed -n 's/.*\.so\.\([0-9.]*\)$/\1, by its name/p')
    printf '%s' "$version"
}

metadata=$temporary/metadata
add_metadata() {
    printf '%s=%s\n' "$1" "${2:-unknown}" >>"$metadata"
}
if [ -n "$software" ]; then
    add_metadata device "$device (software GPU, not hardware)"
else
    add_metadata device "$device"
fi
add_metadata 'devices' "$(metadata_of devices)"
add_metadata 'compute capability' "$capability"
add_metadata 'memory' "$memory"
add_metadata 'driver' "$driver"
add_metadata 'cuda driver interface' "$(metadata_of 'cuda driver interface')"
add_metadata 'kudos line' "$kudos_line"
add_metadata 'libcuda' "${cuda:-not found}"
add_metadata 'cublasLt' "${cublaslt:-not found: libcublasLt.so.13}"
add_metadata 'cublasLt version' "$(version_of 'cublasLt version' "$cublaslt")"
add_metadata 'NCCL' "${nccl:-not found: libnccl.so.2}"
add_metadata 'NCCL version' "$(version_of 'NCCL version' "$nccl")"
add_metadata 'compute-sanitizer' "${sanitizer:-not found}"
add_metadata 'python' "$(metadata_of python)"
add_metadata 'torch' "$(metadata_of torch)"
add_metadata 'transformers' "$(metadata_of transformers)"
add_metadata 'kernel' "$(uname -sr)"
add_metadata 'glibc' "$glibc"
add_metadata 'processors' "$(getconf _NPROCESSORS_ONLN 2>/dev/null)"
cat commit.txt >>"$metadata"
add_metadata 'date' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"

json_string() {
    printf '"%s"' "$(printf '%s' "$1" | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

while IFS='=' read -r name value; do
    printf '  %s: %s,\n' "$(json_string "$name")" "$(json_string "$value")"
done <"$metadata" | sed '$s/,$//' >"$metadata.json"

# Every file of the steps with this ending, in the order of the sections and then of the first run.
each_step() {
    for listed in $sections; do
        [ -f "$steps/$listed.order" ] || continue
        while IFS= read -r stepped; do cat "$steps/$listed.$stepped.$1"; done <"$steps/$listed.order"
    done
}

# Written after every step, so that the report is complete whenever the run is stopped.
write_report() {
    {
        [ -z "$software" ] || print "software GPU, not hardware"
        print "kudos on $device"
        print
        sed 's/=/: /' "$metadata"
        for listed in $sections; do
            [ -f "$steps/$listed.order" ] || continue
            printf '\n%s\n' "$listed"
            while IFS= read -r stepped; do cat "$steps/$listed.$stepped.txt"; done <"$steps/$listed.order"
        done
    } >"$report/report.txt.part"
    mv "$report/report.txt.part" "$report/report.txt"
    {
        printf '{"metadata": {\n'
        cat "$metadata.json"
        printf '},\n"steps": [\n'
        each_step json | sed '$!s/$/,/'
        printf '],\n"parity": [\n'
        for file in "$report"/parity/*.json; do
            [ ! -f "$file" ] || { tr -d '\n' <"$file" && echo; }
        done | sed '$!s/$/,/'
        printf ']}\n'
    } >"$report/report.json.part"
    mv "$report/report.json.part" "$report/report.json"
}

# --- steps ----------------------------------------------------------------------------------------------------------

# record NAME STATUS REASON SECONDS DETAIL PASSED FAILED IGNORED COMMAND LOG
record() {
    at=$steps/$section.$1
    grep -qxF "$1" "$steps/$section.order" 2>/dev/null || printf '%s\n' "$1" >>"$steps/$section.order"
    counts=
    [ -z "$6" ] || counts="$6 passed; $7 failed; $8 ignored"
    {
        printf '  %-8s %5s s  %s' "$2" "$4" "$1"
        for part in "$3" "$counts" "$5"; do
            [ -z "$part" ] || printf ': %s' "$part"
        done
        printf '\n'
        [ -z "$9" ] || printf '                     %s\n                     log: %s\n' "$9" "${10}"
    } >"$at.txt"
    printf '{"section": %s, "step": %s, "status": %s, "reason": %s, "seconds": %s, "detail": %s, "passed": %s, "failed": %s, "ignored": %s, "command": %s, "log": %s}\n' \
        "$(json_string "$section")" "$(json_string "$1")" "$(json_string "$2")" "$(json_string "$3")" "$4" \
        "$(json_string "$5")" "${6:-null}" "${7:-null}" "${8:-null}" "$(json_string "$9")" "$(json_string "${10}")" \
        >"$at.json"
    printf '%s\n' "$2" >"$at.status"
    head -n 1 "$at.txt"
    write_report
}

# skip NAME REASON: records a step as not run.
skip() {
    record "$1" 'not run' "$2" 0 '' '' '' '' '' ''
}

begin() {
    section=$1
    section_end=$(($(now) + section_seconds))
    print
    print "$section"
}

# step NAME SECONDS COMMAND...: runs a command with this time limit, unless an earlier run did. A step that does not end in
# the section's time is left to the next run. The last line of a command that exits with 77 is the reason for not running.
step() {
    name=$1
    seconds=$2
    shift 2
    case $(cat "$steps/$section.$name.status" 2>/dev/null) in
    passed | failed)
        print "$(head -n 1 "$steps/$section.$name.txt")  [done before]"
        return
        ;;
    esac
    left=$((section_end - $(now)))
    if [ "$left" -lt 5 ]; then
        skip "$name" 'the section reached its time limit: run it again'
        return
    fi
    limit=$seconds
    [ "$left" -ge "$limit" ] || limit=$left
    log=logs/$section.$name.log
    started=$(now)
    timeout -k 5 "$limit" "$@" >"$report/$log" 2>&1 </dev/null
    code=$?
    took=$(($(now) - started))

    # Counts of all tests that it ran, in one or several harnesses.
    counts=$(awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i - 1)
        if ($i ~ /^failed/) f += $(i - 1); if ($i ~ /^ignored/) g += $(i - 1) } found = 1 }
        END { if (found) print p + 0, f + 0, g + 0 }' "$report/$log")
    detail=$(sed -n 's/^detail: //p; s/^=* *\([A-Z]* SUMMARY: .*\)/\1/p' "$report/$log" | tail -n 1)
    reason=
    case $code in
    0)
        status=passed
        case $section:$counts:$detail in
        *:'0 '*)
            status='not run'
            reason='no test of that name runs on this device'
            ;;
        kernels:: | engine:: | sanitizer::* | sanitizer:*:)
            # Such as a sanitizer that could not follow its program and still exits with 0.
            status=failed
            reason='exit status 0 without results'
            ;;
        esac
        ;;
    77)
        status='not run'
        reason=$(tail -n 1 "$report/$log" | sed 's/^not run: //')
        ;;
    124 | 137)
        status=failed
        reason="stopped after $took s"
        if [ "$limit" -lt "$seconds" ]; then
            status='not run'
            reason='the section reached its time limit: run it again'
        fi
        ;;
    *)
        status=failed
        reason="exit status $code"
        [ -n "$counts" ] || reason="$reason, $(tail -n 1 "$report/$log" | cut -c 1-200)"
        if [ "$section" = sanitizer ] && grep -q 'Device not supported' "$report/$log"; then
            status='not run'
            reason='compute-sanitizer does not support this device here'
        fi
        ;;
    esac
    command_line=$*
    # Split into words: passed, failed, ignored.
    # shellcheck disable=SC2086
    set -- $counts
    record "$name" "$status" "$reason" "$took" "$detail" "${1:-}" "${2:-}" "${3:-}" "$command_line" "$log"
}

# --- sections -------------------------------------------------------------------------------------------------------

KUDOS_TEST_GPU=real
KUDOS_TEST_ROOT=$here
KUDOS_TEST_BIN=$bin/kudos
case $KUDOS_TEST_BIN in
/*) ;;
*) KUDOS_TEST_BIN=$here/$KUDOS_TEST_BIN ;;
esac
export KUDOS_TEST_GPU KUDOS_TEST_ROOT KUDOS_TEST_BIN
case $bin in
/*) ;;
*) bin=./$bin ;;
esac

run_kernels() {
    # What cublasLt offers, and how long sorting it takes when an engine opens.
    step algorithms 120 "$bin/kernels" --test-threads=1 algorithms_and_classes_are_counted
    step kernels "$section_seconds" "$bin/kernels"
}

run_engine() {
    for tier in $tiers; do
        step "$tier" "$section_seconds" env KUDOS_TEST_TIER="$tier" \
            "$bin/cuda" --ignored --nocapture --test-threads=1
    done
    # Hopper's attention, with a model of each width that it is for.
    if [ "$capability" = 9.0 ]; then
        step sm90a "$section_seconds" env KUDOS_TEST_ATTENTION=sm90a \
            KUDOS_TEST_FIXTURES=gqa8_hd128_llama3_bf16,qwen3_seqcls_hd64_bf16 \
            "$bin/cuda" --ignored --nocapture --test-threads=1
    fi
}

# check NAME SECONDS TOOL COMMAND...
check() {
    check_name=$1
    check_seconds=$2
    tool=$3
    shift 3
    step "$check_name" "$check_seconds" "$sanitizer" --tool "$tool" --error-exitcode 99 \
        --target-processes application-only "$@"
}

run_sanitizer() {
    if [ -n "$software" ]; then
        skip memcheck 'compute-sanitizer needs hardware; the software GPU checks accesses itself'
        return
    elif [ -z "$sanitizer" ]; then
        skip memcheck 'no compute-sanitizer'
        return
    fi
    # Without attention over thousands of keys, which repeats the same instructions for minutes.
    check memcheck 240 memcheck "$bin/kernels" --test-threads=1 --skip at_lengths
    KUDOS_TEST_FIXTURES=$memcheck_engine_fixture KUDOS_TEST_TIER=${tiers%% *} check memcheck-engine 150 memcheck \
        "$bin/cuda" --ignored --nocapture --test-threads=1 $memcheck_engine_test
    names=$("$bin/kernels" --list 2>/dev/null | sed -n 's/\( (.*)\)\{0,1\}: test$//p' | awk '!seen[$0]++')
    for part in $racecheck_tests; do
        # A pattern without a test shows in the report.
        found=$(printf '%s\n' "$names" | grep -- "$part") || true
        [ -n "$found" ] || skip "racecheck-$part" 'no test of that name runs on this device'
        for test in $found; do
            check "racecheck-$test" 90 racecheck "$bin/kernels" --test-threads=1 "$test"
        done
    done
    # The kernels of cublasLt are not checked.
    for tool in initcheck synccheck; do
        check $tool 150 $tool "$bin/kernels" --test-threads=1 --skip matmul --skip at_lengths
    done
}

run_parity() {
    if [ -z "$python" ]; then
        skip parity 'no python3'
        return
    fi
    small=
    [ -z "$software" ] || small='--tiny --torch-device cpu'
    for model in hd128 hd64_tied seqcls; do
        # shellcheck disable=SC2086
        step $model 240 env LD_LIBRARY_PATH="$original_library_path" \
            "$python" -u parity.py run $model --kudos "$KUDOS_TEST_BIN" --out "$report/parity" $small
    done
    # Judged again, as there may be more models than before.
    rm -f "$steps/parity.pooled.status"
    step pooled 30 "$python" -u parity.py judge --out "$report/parity"
}

run_bench() {
    if [ ! -x "$bin/bench" ]; then
        skip bench 'not in this bundle'
        return
    elif [ -n "$software" ]; then
        step kernels_dry 120 "$bin/bench" kernels --shape smollm2-135m --tokens 64 --dry-run --output json
        skip bench 'speed needs hardware'
        return
    fi
    # Random weights. The most important steps come first, for the section's time may end.
    # Every attention kernel that fits; torch's backends are measured at the same lengths, last.
    step attention_70b 120 "$bin/bench" kernels --shape llama-3.3-70b --attention \
        --tokens 512,1024,2048,4096,8192,16384,32768,65536 --output json
    step kernels_70b 90 "$bin/bench" kernels --shape llama-3.3-70b --tokens 512,4096 --output json
    step 8b 130 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 512,1024,2048,4096,8192 --seconds 5 --output json
    step 8b_short 45 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 100,200 --seqs 1 --seconds 3 --output json
    # Eight passes a run: what each takes beyond its ops is the time between passes.
    step 8b_passes 45 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 512 --seqs 64 --seconds 5 --output json
    # All 80 layers take 128 GiB; fewer have the same widths.
    layers=40
    gib=$(printf '%s\n' "$memory" | awk '/MiB/ { print int($1 / 1024) } /GiB/ { print int($1) }')
    [ "${gib:-0}" -lt 136 ] || layers=80
    step 70b 200 "$bin/bench" --device cuda --shape llama-3.3-70b --layers $layers --residency resident \
        --tokens 512,1024,2048,4096,8192 --seconds 10 --output json
    for responses in 2 8 16; do
        step shared_$responses 45 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 1152 --shared-prefix 1024 \
            --responses $responses --seconds 3 --output json
    done
    step serve_like 60 "$bin/bench" serve-like --device cuda --shape llama-3.1-8b --load 0.5,0.9 --output json
    if [ "$(metadata_of devices)" -ge 2 ] 2>/dev/null; then
        for overlap in never auto; do
            step overlap_$overlap 60 "$bin/bench" --device cuda --shape llama-3.3-70b --layers 20 --ranks 2 \
                --overlap $overlap --tokens 4096 --seqs 1 --seconds 5 --output json
        done
    else
        skip overlap 'there is one GPU'
    fi
    if [ -n "$python" ]; then
        # shellcheck disable=SC2016
        step load 120 sh -c '"$1" checkpoint.py "$3" && "$2" load --model "$3" --output json' sh \
            "$python" "$bin/bench" "$temporary/checkpoint"
        rm -rf "$temporary/checkpoint"
    else
        skip load 'no python3'
    fi
    step kernels_8b_sm75 60 "$bin/bench" kernels --shape llama-3.1-8b --tokens 4096 --cuda-tier sm75 --output json
    if [ -z "$python" ]; then
        skip transformers 'no python3'
        return
    fi
    step sdpa 120 env LD_LIBRARY_PATH="$original_library_path" "$python" -u sdpa.py \
        --backends flash,cudnn,efficient
    # The engine needs its libraries, and torch finds its own first.
    step transformers 150 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 2048 --seqs 8 --compare "$python" \
        --output json
}

sed 's/=/: /' "$metadata"
if [ -n "$capability" ] || [ ! -e "$report/report.txt" ]; then write_report; fi
if [ -z "$capability" ]; then
    [ -n "$cuda" ] || die "there is no CUDA driver on this machine (no libcuda was found)" "$report/report.txt" \
        "put its folder on LD_LIBRARY_PATH"
    die "the CUDA driver reports no GPU: $kudos_line" "$report/report.txt" ""
fi
for section in $chosen; do
    begin "$section"
    "run_$section"
done

if command -v tar >/dev/null; then
    (cd "$report" && tar -czf logs.tar.gz logs)
fi
passed=0 failed=0 not_run=0
for section in $chosen; do
    while IFS= read -r name; do
        case $(cat "$steps/$section.$name.status") in
        passed) passed=$((passed + 1)) ;;
        failed) failed=$((failed + 1)) ;;
        *) not_run=$((not_run + 1)) ;;
        esac
    done <"$steps/$section.order"
done
print
print "steps: $passed passed, $failed failed, $not_run not run; report: $report/report.txt"
[ "$failed" = 0 ]
