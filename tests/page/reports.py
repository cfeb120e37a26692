"""Checks of the pages of `kudos eval --report`. Each opens files in a browser that may ask for nothing else."""

import contextlib
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from steps import KUDOS, watched_page

MARKUP = '</script><script>window.hit=1</script><img src=x onerror="window.hit=2"><!-- &amp; \u2028 \u202e'
# Of a page of 20,000 items, from its opening until its plots are there. Measured: 0.27 to 0.33 s on two busy cores.
RENDER_SECONDS_MAX = 5
NARROW = {"viewport": {"width": 360, "height": 800}}


def item(at, words=8):
    """An item of preferences with rewards: every fifth is wrong, every fiftieth a tie."""
    chance = random.Random(at)
    margin = 0 if at % 50 == 0 else chance.expovariate(0.6) * (-1 if at % 5 == 1 else 1)
    text = " ".join(chance.choice(["a", "sum", "of", "numbers"]) for _ in range(chance.randrange(1, 2 * words)))
    rewards = {"reward_chosen": margin + len(text) / 100, "reward_rejected": len(text) / 100}
    source = ["first", "second", "one with a long name of several words"][at % 3]
    return {"id": f"item-{at}", "source": source, "prompt": f"Question {at}?", "chosen": text, "rejected": f"{text}.", **rewards}


@contextlib.contextmanager
def report(items, *options):
    """The address of the page of some items with rewards, and the report as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file, page = Path(folder) / "items.jsonl", Path(folder) / "page.html"
        file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        command = [KUDOS, "eval", "preferences", file, "--scores", file, "--report", page, "--json", *options]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        yield page.as_uri(), json.loads(run.stdout)


@contextlib.contextmanager
def opened(browser, uri, **options):
    """The page at a file's address; that it reports an error or asks for anything fails the check."""
    with watched_page(browser, f"request to {uri}$", **options) as page:
        page.goto(uri)
        yield page


def section(page, name):
    return page.get_by_role("region", name=name, exact=True)


def fits(page, width):
    return page.evaluate("document.documentElement.scrollWidth") <= width


def check_report_shows_the_numbers_of_json(browser):
    with report(map(item, range(200)), "--ties", "half") as (uri, numbers), opened(browser, uri) as page:
        overall = numbers["tables"]["group"]["overall"]["accuracy"]
        row = section(page, "Results").get_by_role("row", name="overall")
        expect(row.get_by_role("cell").nth(2)).to_have_text(f"{100 * overall['value']:.2f}")
        low, high = (f"{100 * end:.2f}" for end in overall["interval"])
        expect(row.get_by_role("cell").nth(3)).to_have_text(f"[{low}, {high}]")
        expect(section(page, "Run")).to_contain_text("--ties half")
        for name in ["Histogram of margins", "Accuracy by the size of the margin", "Reward by length", "Accuracy by group"]:
            expect(page.get_by_role("img", name=name)).to_be_visible()
        bars = page.get_by_role("img", name="Histogram of margins").locator(".bar-right, .bar-wrong")
        assert bars.count() > 8
        section(page, "Reliability").get_by_text("Numbers of this plot").click()
        expect(section(page, "Reliability").get_by_role("row")).to_have_count(11)
        assert page.locator("table").evaluate_all("all => all.every((one) => one.caption && one.tHead && one.rows[0].cells.length)")


def check_report_texts_are_no_markup(browser):
    items = [item(at) for at in range(20)]
    hostile = {"id": MARKUP, "source": MARKUP, "prompt": MARKUP, "chosen": MARKUP, "rejected": "x" * 9000, "reward_chosen": -9}
    items[3].update(hostile)
    with report(items) as (uri, _), opened(browser, uri) as page:
        misses = section(page, "Worst misses")
        better = misses.get_by_label("Better response").first
        expect(better).to_contain_text('</script><script>window.hit=1</script><img src=x onerror="window.hit=2"><!-- &amp;')
        expect(better.locator(".escape")).to_have_text(["\\u{2028}", "\\u{202E}"])
        expect(misses).to_contain_text("9,000 characters, the last 1,000 are left out")
        expect(section(page, "Results")).to_contain_text("<img src=x")
        assert page.locator("img").count() == 0 and page.locator("script").count() == 3
        assert page.evaluate("window.hit") is None


def check_report_policy_allows_no_other_script(browser):
    with report(map(item, range(5))) as (uri, _), contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(uri)
        hit = """() => new Promise((resolve) => {
            const script = document.createElement("script");
            script.textContent = "window.hit = 1";
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            document.body.append(script);
        })"""
        assert page.evaluate(hit) == "script-src-elem"
        assert page.evaluate("window.hit") is None
        assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"


def check_report_is_accessible_in_light_and_dark(browser):
    with report(map(item, range(300))) as (uri, _):
        for scheme in ("light", "dark"):
            with opened(browser, uri, color_scheme=scheme) as page:
                for summary in page.locator("summary").all():
                    if summary.evaluate("node => !node.parentElement.open"):
                        summary.click()
                found = Axe().run(page)
                assert not found.violations_count, found.generate_report()


def check_report_is_read_by_keyboard(browser):
    with report(map(item, range(100))) as (uri, _), opened(browser, uri) as page:
        second = section(page, "Worst misses").locator("details").nth(1)
        second.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(second.locator("pre").first).to_be_visible()
        page.keyboard.press("Tab")
        expect(second.locator("pre").first).to_be_focused()
        page.get_by_role("button", name="Open all").press("Enter")
        assert page.locator(".miss:not([open])").count() == 0
        expect(page.get_by_role("button", name="Close all")).to_be_visible()


def check_report_of_20_000_items(browser):
    with report(map(item, range(20_000))) as (uri, _), opened(browser, uri, **NARROW) as page:
        start = time.monotonic()
        page.reload()
        expect(page.get_by_role("img", name="Reward by length")).to_be_visible()
        seconds = time.monotonic() - start
        assert seconds < RENDER_SECONDS_MAX, seconds
        assert page.locator(".miss").count() == 50
        assert page.content().count("<") < 20_000


def check_report_fits_narrow_pages_and_paper(browser):
    long = {**item(1), "source": "w" * 80, "id": "i" * 90, "prompt": "p" * 500, "chosen": "c" * 500, "reward_chosen": -3}
    with report([*map(item, range(100)), long]) as (uri, _), opened(browser, uri, **NARROW) as page:
        page.get_by_role("button", name="Open all").click()
        assert fits(page, 360)
        wide = page.get_by_role("img", name="Histogram of margins").bounding_box()["width"]
        page.set_viewport_size({"width": 900, "height": 800})
        page.wait_for_function(f"document.querySelector('#margins svg').clientWidth > {wide}")
        page.set_viewport_size({"width": 360, "height": 800})
        page.wait_for_function(f"document.querySelector('#margins svg').clientWidth === {wide}")
        page.set_viewport_size({"width": 794, "height": 1123})  # A4
        page.emulate_media(media="print", color_scheme="dark")
        assert fits(page, 794)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("pre").evaluate_all("all => all.every((one) => one.scrollHeight <= one.clientHeight + 1)")


def check_report_of_one_item(browser):
    for rewards in [(1, 0), (0, 0), (-2, 1)]:
        one = {**item(1), "reward_chosen": rewards[0], "reward_rejected": rewards[1], "chosen": "", "rejected": ""}
        with report([one]) as (uri, _), opened(browser, uri, **NARROW) as page:
            expect(section(page, "Margins")).to_contain_text("1 comparison" if any(rewards) else "All comparisons are ties.")
            expect(page.get_by_role("img", name="Reward by length")).to_be_visible()
            assert "NaN" not in page.content() and fits(page, 360)
