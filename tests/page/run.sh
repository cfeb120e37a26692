#!/bin/sh
# Checks the page of `kudos serve` in Chromium, which is KUDOS_TEST_CHROMIUM or in the PATH. Installs Playwright and axe
# (190 MB on disk), without their browsers, into target/page-venv. Names of checks, or parts of them, select checks.
set -eu
cd "$(dirname "$0")/../.."
venv=${CARGO_TARGET_DIR:-$PWD/target}/page-venv
here=tests/page

not_run() {
    echo "not run: the page in a browser ($1)"
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
KUDOS_TEST_CHROMIUM=$chromium exec "$venv/bin/python" "$here/check.py" "$@"
