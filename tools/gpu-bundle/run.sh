#!/bin/sh
# Runs on this machine's GPU what needs one, and writes a report: run.sh [--fresh] [SECTION...]
#
# The sections are kernels, engine, sanitizer, parity and bench: all of them, in that order, when none is named. README.md
# beside this file says what each does, how to read the report, and which variables change something. Steps that an
# earlier run finished are not run again, unless --fresh says so. Ends with 0 when nothing failed, 1 when something did,
# and 2 when nothing could be run.
set -u

sections='kernels engine sanitizer parity bench'

# What one section may take, in seconds: under 8 minutes, the last step's end included.
section_seconds=${KUDOS_SECTION_SECONDS:-465}

# Racecheck follows every access to shared memory and is slow: these tests only, one at a time, by patterns of their
# names. They are of the kernels that have shared memory.
racecheck_tests='attention_sm80_.*_on_shared attention_sm75_.*_on_shared attention_plain_.*_d128_.*_on_shared
    add_rms_norm_matches add_rms_norm_takes score_matches'

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

say() {
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
        *) die "there is no section \`$argument\`" "" "the sections are: $sections" ;;
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
# What a run left that was killed, such as a model of parity's.
rm -rf "$report/tmp"
temporary=${TMPDIR:-$report/tmp}
mkdir -p "$temporary"
temporary=$(mktemp -d "$temporary/kudos.XXXXXX") || die "no temporary folder" "$temporary" "set TMPDIR"
trap 'rm -rf "$temporary"; rmdir "$report/tmp" 2>/dev/null' EXIT
trap 'exit 130' INT TERM

# Whatever a program keeps for later goes the same way.
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
    unpacked "$name" || die "an executable is not the one that was packed" "$packed" "copy the bundle again"
done

glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/glibc //')
glibc_needed=$(sed -n 's/^needs glibc=//p' commit.txt)
if [ -n "$glibc" ] && [ "$(printf '%s\n%s\n' "$glibc" "$glibc_needed" | sort -V | head -n 1)" != "$glibc_needed" ]; then
    die "this machine has glibc $glibc, but $glibc_needed is needed" "" "build the bundle on an older system"
fi

# --- the libraries --------------------------------------------------------------------------------------------------

pythons=
for candidate in "${PYTHON:-}" python3; do
    [ -n "$candidate" ] && found=$(command -v "$candidate") && pythons="$pythons
$found"
done

# Every folder where a library may be, the ones that the loader looks into first. One a line: names may hold spaces.
library_folders() {
    printf '%s\n' "${LD_LIBRARY_PATH:-}" | tr ':' '\n' | sed '/^$/d'
    { ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null |
        sed -n 's,.*=> \(/.*\)/lib\(cuda\|cublasLt\|nccl\)\.so[^/]*$,\1,p' | awk '!seen[$0]++'
    printf '%s\n' /lib/x86_64-linux-gnu /usr/lib/x86_64-linux-gnu /lib64 /usr/lib64 /usr/lib /usr/local/lib
    # Where containers and some distributions keep the driver's.
    printf '%s\n' /usr/local/nvidia/lib64 /usr/lib64-nvidia /usr/lib/wsl/lib /run/opengl-driver/lib
    printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib
    packages=$(printf '%s\n' "$pythons" | while IFS= read -r one; do
        [ -z "$one" ] || "$one" facts.py packages 2>/dev/null
    done)
    printf '%s\n' "$packages" | while IFS= read -r package; do
        [ -z "$package" ] || printf '%s\n' "$package"/*/lib
    done
}
folders=$(library_folders)

# find_library STEM VERSION: the first file of that name, in any folder. One without a version in its name counts where
# it is no link to another version.
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
# The names that are looked for, before any other version's.
if [ -n "$cublaslt" ]; then
    ln -s "$(readlink -f "$cublaslt")" "$links/libcublasLt.so"
    ln -s "$(readlink -f "$cublaslt")" "$links/libcublasLt.so.13"
fi
if [ -n "$nccl" ]; then
    ln -s "$(readlink -f "$nccl")" "$links/libnccl.so"
    ln -s "$(readlink -f "$nccl")" "$links/libnccl.so.2"
fi
# Their own folders as well, where their companions are; Python keeps the path that it had, as torch brings its own.
KUDOS_LD_LIBRARY_PATH=$({
    printf '%s\n' "$links"
    for file in "$cublaslt" "$nccl" "$cuda"; do [ -z "$file" ] || dirname "$file"; done
    printf '%s\n' "$original_library_path" | tr ':' '\n'
} | awk '$0 != "" && !seen[$0]++' | paste -sd: -)
LD_LIBRARY_PATH=$KUDOS_LD_LIBRARY_PATH
export LD_LIBRARY_PATH KUDOS_LD_LIBRARY_PATH

# The first Python that could do the parity section; otherwise the first.
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

# --- what there is --------------------------------------------------------------------------------------------------

asked=$temporary/asked
: >"$asked"
[ -z "$python" ] || timeout 60 "$python" facts.py >"$asked" 2>"$temporary/facts.err"
asked() {
    sed -n "s/^$1=//p" "$asked" | head -n 1
}

smi() {
    command -v nvidia-smi >/dev/null &&
        timeout 30 nvidia-smi --id=0 --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1
}

# What kudos itself runs on: the line that it prints.
says=$(printf '{"input_ids": [1]}\n' | timeout 120 "$bin/kudos" score \
    --model "tests/fixtures/models/$memcheck_engine_fixture" - 2>&1 >/dev/null | head -n 1)
in_words=$(printf '%s\n' "$says" | sed -n 's/^running on CUDA, GPU [0-9]* (\(.*\), compute capability \([0-9.]*\)).*/\2 \1/p')

device=$(asked device)
capability=$(asked 'compute capability')
[ -n "$device" ] || device=${in_words#* }
[ -n "$capability" ] || capability=${in_words%% *}
software=
driver=
memory=$(asked memory)
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

# The storage tiers that the device runs, the one that it is for first.
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
        for package in $("$one" facts.py packages 2>/dev/null); do
            [ -n "$sanitizer" ] || sanitizer=$(find "$package" -name compute-sanitizer -type f -perm -u+x | head -n 1)
        done
    done
fi

# --- the report -----------------------------------------------------------------------------------------------------

steps=$report/steps
# Nothing is lost to a run that has no GPU.
[ -n "$capability" ] || fresh=
identity="$(sed -n 's/^bundle=//p' commit.txt) on $device"
if [ -n "$fresh" ]; then
    rm -rf "$steps" "$report/logs" "$report/parity" "$report"/report.* "$report/logs.tar.gz"
elif [ -n "$capability" ] && [ -d "$steps" ] && [ "$(cat "$steps/identity" 2>/dev/null)" != "$identity" ]; then
    number=1
    while [ -e "$report/earlier-$number" ]; do number=$((number + 1)); done
    say "the report at $report is of $(cat "$steps/identity" 2>/dev/null): it is kept in earlier-$number"
    mkdir "$report/earlier-$number"
    for file in steps logs parity report.txt report.json logs.tar.gz; do
        [ ! -e "$report/$file" ] || mv "$report/$file" "$report/earlier-$number/"
    done
fi
mkdir -p "$steps" "$report/logs"
[ -z "$capability" ] || printf '%s\n' "$identity" >"$steps/identity"

# version_of FACT FILE: what the library says, or else its file's name.
version_of() {
    version=$(asked "$1")
    [ -n "$version" ] || [ -z "$2" ] || version=$(readlink -f "$2" | sed -n 's/.*\.so\.\([0-9.]*\)$/\1, by its name/p')
    printf '%s' "$version"
}

facts=$temporary/facts
fact() {
    printf '%s=%s\n' "$1" "${2:-unknown}" >>"$facts"
}
if [ -n "$software" ]; then
    fact device "$device (software GPU, not hardware)"
else
    fact device "$device"
fi
fact 'devices' "$(asked devices)"
fact 'compute capability' "$capability"
fact 'memory' "$memory"
fact 'driver' "$driver"
fact 'cuda driver interface' "$(asked 'cuda driver interface')"
fact 'kudos says' "$says"
fact 'libcuda' "${cuda:-not found}"
fact 'cublasLt' "${cublaslt:-not found: libcublasLt.so.13}"
fact 'cublasLt version' "$(version_of 'cublasLt version' "$cublaslt")"
fact 'NCCL' "${nccl:-not found: libnccl.so.2}"
fact 'NCCL version' "$(version_of 'NCCL version' "$nccl")"
fact 'compute-sanitizer' "${sanitizer:-not found}"
fact 'python' "$(asked python)"
fact 'torch' "$(asked torch)"
fact 'transformers' "$(asked transformers)"
fact 'kernel' "$(uname -sr)"
fact 'glibc' "$glibc"
fact 'processors' "$(getconf _NPROCESSORS_ONLN 2>/dev/null)"
cat commit.txt >>"$facts"
fact 'date' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"

json_string() {
    printf '"%s"' "$(printf '%s' "$1" | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

while IFS='=' read -r name value; do
    printf '  %s: %s,\n' "$(json_string "$name")" "$(json_string "$value")"
done <"$facts" | sed '$s/,$//' >"$facts.json"

# Every file of the steps with this ending, in the order of the sections and then of the first run.
each_step() {
    for listed in $sections; do
        [ -f "$steps/$listed.order" ] || continue
        while IFS= read -r stepped; do cat "$steps/$listed.$stepped.$1"; done <"$steps/$listed.order"
    done
}

# Written anew after every step, so that an end at any moment leaves a report of what was done.
write_report() {
    {
        [ -z "$software" ] || say "software GPU, not hardware"
        say "kudos on $device"
        say
        sed 's/=/: /' "$facts"
        for listed in $sections; do
            [ -f "$steps/$listed.order" ] || continue
            printf '\n%s\n' "$listed"
            while IFS= read -r stepped; do cat "$steps/$listed.$stepped.txt"; done <"$steps/$listed.order"
        done
    } >"$report/report.txt.part"
    mv "$report/report.txt.part" "$report/report.txt"
    {
        printf '{"facts": {\n'
        cat "$facts.json"
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

# skip NAME REASON: a step that cannot be done here, or not in this run.
skip() {
    record "$1" 'not run' "$2" 0 '' '' '' '' '' ''
}

begin() {
    section=$1
    section_end=$(($(now) + section_seconds))
    say
    say "$section"
}

# step NAME SECONDS COMMAND...: runs it for so long at most, unless an earlier run did. What cannot end in the section's
# time is left to the next run. A command that ends with 77 says in its last line why it did not run.
step() {
    name=$1
    seconds=$2
    shift 2
    case $(cat "$steps/$section.$name.status" 2>/dev/null) in
    passed | failed)
        say "$(head -n 1 "$steps/$section.$name.txt")  [done before]"
        return
        ;;
    esac
    left=$((section_end - $(now)))
    if [ "$left" -lt 5 ]; then
        skip "$name" 'no time was left in this section: run it again'
        return
    fi
    limit=$seconds
    [ "$left" -ge "$limit" ] || limit=$left
    log=logs/$section.$name.log
    started=$(now)
    timeout -k 5 "$limit" "$@" >"$report/$log" 2>&1 </dev/null
    code=$?
    took=$(($(now) - started))

    # Of all tests that it ran, in one or several harnesses.
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
            reason='no such test, or none that this device runs'
            ;;
        kernels:: | engine:: | sanitizer::* | sanitizer:*:)
            # Such as a sanitizer that could not follow its program, and ends with 0 all the same.
            status=failed
            reason='it ended well, but without results'
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
            reason="not done when this section's time was over: run it again"
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
    # Words of their own: passed, failed, ignored.
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
    step kernels "$section_seconds" "$bin/kernels"
}

run_engine() {
    for tier in $tiers; do
        step "$tier" "$section_seconds" env KUDOS_TEST_TIER="$tier" \
            "$bin/cuda" --ignored --nocapture --test-threads=1
    done
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
    # Without the attention of thousands of keys: it goes over the same instructions for minutes.
    check memcheck 240 memcheck "$bin/kernels" --test-threads=1 --skip at_lengths
    KUDOS_TEST_FIXTURES=$memcheck_engine_fixture KUDOS_TEST_TIER=${tiers%% *} check memcheck-engine 150 memcheck \
        "$bin/cuda" --ignored --nocapture --test-threads=1 $memcheck_engine_test
    names=$("$bin/kernels" --list 2>/dev/null | sed -n 's/\( (.*)\)\{0,1\}: test$//p' | awk '!seen[$0]++')
    for part in $racecheck_tests; do
        for test in $(printf '%s\n' "$names" | grep -- "$part"); do
            check "racecheck-$test" 90 racecheck "$bin/kernels" --test-threads=1 "$test"
        done
    done
    # The kernels of cublasLt are not ours to judge.
    for tool in initcheck synccheck; do
        check $tool 150 $tool "$bin/kernels" --test-threads=1 --skip product --skip at_lengths
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
    # Judged again, when there are more models to judge than there were.
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
    # Random weights: what is measured first matters most, for the section's time may end.
    step kernels_70b 90 "$bin/bench" kernels --shape llama-3.3-70b --tokens 512,4096 --output json
    step 8b 130 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 512,1024,2048,4096,8192 --seconds 5 --output json
    step 8b_short 45 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 100,200 --seqs 1 --seconds 3 --output json
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
    step kernels_8b_sm75 60 "$bin/bench" kernels --shape llama-3.1-8b --tokens 4096 --cuda-tier sm75 --output json
    if [ -z "$python" ]; then
        skip transformers 'no python3'
        return
    fi
    step sdpa 90 env LD_LIBRARY_PATH="$original_library_path" "$python" -u sdpa.py
    # The engine needs its libraries, and torch finds its own ahead of them.
    step transformers 150 "$bin/bench" --device cuda --shape llama-3.1-8b --tokens 2048 --seqs 8 --compare "$python" \
        --output json
}

sed 's/=/: /' "$facts"
if [ -n "$capability" ] || [ ! -e "$report/report.txt" ]; then write_report; fi
if [ -z "$capability" ]; then
    [ -n "$cuda" ] || die "there is no CUDA driver on this machine (no libcuda was found)" "$report/report.txt" \
        "put its folder on LD_LIBRARY_PATH"
    die "the CUDA driver shows no GPU: $says" "$report/report.txt" ""
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
say
say "steps: $passed passed, $failed failed, $not_run not run; report: $report/report.txt"
[ "$failed" = 0 ]
