"""Drives the pages of `kudos serve` and of `kudos eval --report` in Chromium, and checks what they show: `tests/page/run.sh`.

    python tests/page/check.py [WORD..]      # the checks with one of the words in their names

Each check has a page in a new profile; those of reports open their own. Rewards are compared with what the server answers to a plain request. The answers of
a server that is busy, slow or failing are made in the browser, by Playwright's routes.
"""

import contextlib
import os
import sys
import time
import traceback

import files
import forms
import reports
import whole
from playwright.sync_api import sync_playwright
from steps import checked_page, serving


def check_served(check, browser, url):
    """Runs a check with the page of a server."""
    with checked_page(browser, url) as page:
        page.goto("/")
        check(page)


def passes(check, run, *arguments):
    """Returns whether a check passes, and prints why it does not."""
    start = time.monotonic()
    try:
        run(*arguments)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"FAILED  {check.__name__}")
        return False
    print(f"ok      {check.__name__} ({time.monotonic() - start:.1f} s)")
    return True


def chosen(words, *modules):
    """Returns the checks of modules with one of the words in their names."""
    named = {name: check for module in modules for name, check in vars(module).items() if name.startswith("check_")}
    return [check for name, check in named.items() if not words or any(word in name for word in words)]


def main(words):
    served, opening = chosen(words, forms, files, whole), chosen(words, reports)
    passed = 0
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=os.environ["KUDOS_TEST_CHROMIUM"]) as browser:
            passed += sum(passes(check, check, browser) for check in opening)
            with serving() if served else contextlib.nullcontext() as url:
                passed += sum(passes(check, check_served, check, browser, url) for check in served)
    checks = len(served) + len(opening)
    failed = checks - passed
    print(f"page: {passed} passed" + (f", {failed} failed" if failed else ""))
    sys.exit(1 if failed or not checks else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
