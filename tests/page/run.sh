#!/bin/sh
# Checks the pages of `kudos serve` and of `kudos eval --report` in Chromium, which is KUDOS_TEST_CHROMIUM or in the PATH,
# with the release build of kudos, or the one that KUDOS names. Installs Playwright and axe (190 MB on disk), without their
# browsers, into target/page-venv. Names of checks, or parts of them, select checks.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
venv=$target/page-venv
here=tests/page

not_run() {
    echo "not run: the pages in a browser ($1)"
    case ",${KUDOS_TEST_REQUIRE:-}," in *,page,*) exit 1 ;; esac
    exit 0
}

chromium=${KUDOS_TEST_CHROMIUM:-$(command -v chromium || command -v chromium-browser || true)}
[ -n "$chromium" ] || not_run "no chromium is installed; Debian's package is \`chromium\`"

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    rm -rf "$venv"
    "${KUDOS_PYTHON:-python3}" -m venv "$venv" || not_run "python3 makes no venv; Debian's package is \`python3-venv\`"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi
KUDOS=${KUDOS:-$target/release/kudos} KUDOS_TEST_CHROMIUM=$chromium exec "$venv/bin/python" "$here/check.py" "$@"
