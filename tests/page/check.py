"""Drives the page of `kudos serve` in Chromium, and checks what it shows: `tests/page/run.sh`.

    python tests/page/check.py [WORD..]      # the checks with one of the words in their names

Each check has a page in a new profile. Rewards are compared with what the server answers to a plain request. The answers of
a server that is busy, slow or failing are made in the browser, by Playwright's routes.
"""

import os
import sys
import time
import traceback

import files
import forms
import whole
from playwright.sync_api import sync_playwright
from steps import checked_page, serving


def run(check, browser, url):
    """Returns whether a check passes, and prints why it does not."""
    start = time.monotonic()
    try:
        with checked_page(browser, url) as page:
            page.goto("/")
            check(page)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"FAILED  {check.__name__}")
        return False
    print(f"ok      {check.__name__} ({time.monotonic() - start:.1f} s)")
    return True


def has_one(words, name):
    return not words or any(word in name for word in words)


def main(words):
    named = vars(forms) | vars(files) | vars(whole)
    checks = [check for name, check in named.items() if name.startswith("check_") and has_one(words, name)]
    with sync_playwright() as playwright, serving() as url:
        with playwright.chromium.launch(executable_path=os.environ["KUDOS_TEST_CHROMIUM"]) as browser:
            passed = sum(run(check, browser, url) for check in checks)
    failed = len(checks) - passed
    print(f"page: {passed} passed" + (f", {failed} failed" if failed else ""))
    sys.exit(1 if failed or not checks else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
