"""Checks of the whole page: its policy, its layout, its accessibility, and the server's key."""

import time

from axe_playwright_python.sync_playwright import Axe
from forms import check_a_conversation_by_keyboard, check_the_model_is_named
from steps import REWARDS
from steps import answer, busy, checked_page, compare, error_body, numbered, open_all, results, score, score_file, serving


def check_files_have_a_policy(page):
    for path in ["/", "/page.css", "/page.js", "/file.js", "/common.js"]:
        headers = page.request.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'"), (path, headers)
        assert headers["x-content-type-options"] == "nosniff", (path, headers)


WATCH_SHIFTS = """() => {
    window.moved = [];
    const keep = ({ hadRecentInput, value, sources }) =>
        hadRecentInput || window.moved.push([value, ...sources.map(({ node }) => node?.id || node?.className)]);
    new PerformanceObserver((list) => list.getEntries().forEach(keep)).observe({ type: 'layout-shift', buffered: true });
}"""


def assert_still(page):
    page.wait_for_timeout(600)
    moved = page.evaluate("window.moved.splice(0)")
    assert sum(shift[0] for shift in moved) < 0.01, moved


def check_a_narrow_page_stays_still(page):
    page.set_viewport_size({"width": 320, "height": 700})
    page.reload()
    page.evaluate(WATCH_SHIFTS)
    assert_still(page)
    compare(page, "P" * 400, ["w" * 500, "b c " * 300])
    page.wait_for_timeout(600)
    page.evaluate("window.moved.splice(0)")  # Fields that grow while their text is entered.
    # Browsers do not count what moves within half a second of an input.
    page.route(REWARDS, lambda route: (time.sleep(0.7), route.continue_()))
    score(page)
    open_all(page)
    page.get_by_role("progressbar").scroll_into_view_if_needed()
    answers = [busy(503, "1")]
    page.route(REWARDS, lambda route: route.fulfill(**answers.pop()) if answers else route.fallback())
    score_file(page, numbered(200), name="n" * 150 + ".jsonl")
    assert_still(page)
    answer(page, status=400, body=error_body("w" * 100, "w" * 300))
    score(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def check_accessibility_and_motion(page):
    transition = "(node) => getComputedStyle(node).transitionDuration === '0s'"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        compare(page, "P", ["a\u202e", "b"])
        score(page)
        page.locator("summary").first.click()
        score_file(page, b"nothing\n")
        found = Axe().run(page)
        assert not found.violations_count, found.generate_report()
        assert page.evaluate(f"[...document.querySelectorAll('*')].every({transition})")


def check_the_password_is_the_key(page):
    browser = page.context.browser
    with serving(KUDOS_API_KEY="abc") as url:
        with checked_page(browser, url, http_credentials=login("other")) as refused:
            assert refused.goto("/").status == 401
        with checked_page(browser, url, http_credentials=login("abc")) as asked:
            asked.goto("/")
            check_the_model_is_named(asked)
            check_a_conversation_by_keyboard(asked)
            score_file(asked, numbered(300))
            assert len(results(asked)) == 300
        with checked_page(browser, url) as in_the_address:
            in_the_address.goto(url.replace("//", "//any:abc@"))
            score_file(in_the_address, numbered(300))


def login(password):
    return {"username": "any", "password": password, "send": "always"}  # `page.request` waits for no challenge.
