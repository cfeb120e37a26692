"""The server, what a user does on its page, and what is seen there, for the checks.

Elements are found by their roles and names, as a screen reader has them.
"""

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
KUDOS = os.environ["KUDOS"]
MODEL = ["--model", ROOT / "demo" / "model", "--device", "cpu"]
START_SECONDS = 60
# The server is asked directly, and has no key unless a check gives it one.
ENVIRONMENT = {**{name: value for name, value in os.environ.items() if name != "KUDOS_API_KEY"}, "no_proxy": "127.0.0.1"}
REWARDS, RENDER = "**/v1/rewards", "**/v1/render"


@contextlib.contextmanager
def serving(**environment):
    """The address of a server, which ends with the block."""
    with tempfile.TemporaryFile() as log:
        command = [KUDOS, "serve", *MODEL, "--port", "0"]
        server = subprocess.Popen(command, stderr=log, env={**ENVIRONMENT, **environment})
        try:
            yield address(server, log)
        finally:
            server.kill()
            server.wait()


def address(server, log):
    """The address that a server prints when it listens."""
    end = time.monotonic() + START_SECONDS
    while True:
        text = os.pread(log.fileno(), 1 << 16, 0).decode()
        if found := re.search(r"listening on (http://\S+)\n", text):
            return found[1]
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"`kudos serve` did not start:\n{text}")
        time.sleep(0.05)


@contextlib.contextmanager
def checked_page(browser, url, **options):
    """A page of the server; that it reports an error or asks another one fails the check."""
    host = re.escape(url.removeprefix("http://"))
    own = f"request to (blob:)?http://([^/]*@)?{host}/|console: Failed to load resource"
    with watched_page(browser, own, base_url=url, accept_downloads=True, **options) as page:
        yield page


@contextlib.contextmanager
def watched_page(browser, own, **options):
    """A page in a new profile; errors and requests fail the check, unless `own` matches their text."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(10_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text}"))
    page.on("request", lambda request: problems.append(f"request to {request.url}"))
    try:
        yield page
        problems = [problem for problem in problems if not re.match(own, problem)]
        assert not problems, problems
    finally:
        context.close()


# ---- What a user does ----


def score(page):
    page.get_by_role("button", name="Score", exact=True).click()
    expect(result(page)).to_have_attribute("aria-busy", "false")
    return result(page)


def compare(page, prompt, responses, system=""):
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("System text").fill(system)
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    while page.get_by_role("textbox", name="Text of response").count() < len(responses):
        page.get_by_role("button", name="Add response").click()
    for number, text in enumerate(responses, 1):
        textbox(page, f"Text of response {number}").fill(text)


def write_json(page, text):
    page.get_by_label("JSON", exact=True).check()
    page.get_by_role("textbox", name="Request as JSON").fill(text if isinstance(text, str) else json.dumps(text))


def choose(page, content, name="input.jsonl"):
    file = {"name": name, "mimeType": "", "buffer": content}
    page.get_by_label("Choose a JSONL file").set_input_files(file)


def score_file(page, content, end="Done", name="input.jsonl"):
    choose(page, content, name)
    expect(file_state(page)).to_contain_text(re.compile(f"^{end}"), timeout=30_000)


def download(page):
    """Returns the name and the text of the results."""
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download results").click()
    return caught.value.suggested_filename, caught.value.path().read_text(encoding="utf-8")


def results(page):
    return [json.loads(line) for line in download(page)[1].splitlines()]


# ---- What a user sees ----


def result(page):
    return page.get_by_role("region", name="Result")


def file_section(page):
    return page.get_by_role("region", name="Score a file")


def file_state(page):
    return file_section(page).get_by_role("status")


def number(page, name):
    return file_section(page).locator("div", has=page.get_by_text(name, exact=True)).get_by_role("definition")


def textbox(page, name):
    return page.get_by_role("textbox", name=name, exact=True)


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def command(page):
    return page.get_by_role("region", name="curl command").inner_text()


def command_body(page):
    return json.loads(re.search(r"--data-raw '(.*)'$", command(page), re.S)[1])


def open_all(page):
    for summary in page.locator("summary").all():
        summary.click()


# ---- The server ----


def post(page, path, body):
    return page.request.post(path, data=body).json()


def answer(page, path=REWARDS, **response):
    """Answers the page's requests in place of the server."""
    page.unroute(path)
    page.route(path, lambda route: route.fulfill(**response))


def error_body(kind, message):
    return json.dumps({"error": {"kind": kind, "message": message}})


def busy(status, wait):
    return {"status": status, "headers": {"Retry-After": wait}, "body": error_body("queue_full", "full")}


def numbered(lines):
    return b"".join(b'{"id":%d,"prompt":"p","response":"%d"}\n' % (at, at) for at in range(lines))
