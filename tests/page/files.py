"""Checks of scoring a file. Its results are compared with those of `kudos score`."""

import re
import subprocess
import tempfile

from playwright.sync_api import expect
from steps import ENVIRONMENT, KUDOS, MODEL, REWARDS
from steps import answer, busy, button, choose, download, error_body, file_section, file_state, number, numbered, results
from steps import score_file

LINES = [
    b'\xef\xbb\xbf{"id":"first","prompt":"What is 1+1?","responses":["1+1=2","1+1=3"]}\r', b"", b"  \r",
    b'{"id":{"index":5,"a":["}"]},"prompt":"p","response":"r"}', b'{"prompt":"p","response":"no id"}', b" \t\f",
    b'{"id":1234567890123456789012,"prompt":"p","response":"caf\xc3\xa9 \xf0\x9f\x98\x80"}', b'{"prompt":"bad \xff"}',
    b"not json", b"17", b'{"id":"unfinished"}', b'{"prompt":"p","response":"no line end"}',
]


def check_a_file_has_the_results_of_the_command(page):
    score_file(page, b"\n".join(LINES), name="small.jsonl")
    name, text = download(page)
    assert name == "small.rewards.jsonl", name
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(b"\n".join(LINES))
        file.flush()
        scored = subprocess.run([KUDOS, "score", *MODEL, file.name], capture_output=True, env=ENVIRONMENT).stdout.decode()
    assert text == re.sub(',"place":"input line [0-9]*"', "", scored), (text, scored)
    expect(number(page, "Lines")).to_have_text("9")
    expect(number(page, "Failed")).to_have_text("4")
    alerts = file_section(page).get_by_role("alert")
    expect(alerts).to_have_count(4)
    expect(alerts.first).to_contain_text("line 8")


def check_a_long_file_stays_in_order(page):
    held, holding = [], [True]
    page.route(REWARDS, lambda route: held.append(route) if holding[0] else route.continue_())
    choose(page, numbered(1000).replace(b'"id":', b'"n":'))
    page.wait_for_timeout(500)
    assert len(held) == 2, "a third request was sent while two had no answer"
    holding[0] = False
    held[1].continue_()
    expect(number(page, "Lines")).to_have_text("128")  # The answer to the second one comes first.
    held[0].continue_()
    expect(file_state(page)).to_contain_text("Done: 1,000 lines, 0 failed.")
    assert [line["index"] for line in results(page)] == list(range(1000))
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 1)


def check_a_busy_server_is_asked_again(page):
    answers = [busy(503, "1"), busy(429, "1"), busy(503, "1")]
    page.route(REWARDS, lambda route: route.fulfill(**answers.pop()) if answers else route.continue_())
    choose(page, numbered(300))
    expect(file_state(page)).to_contain_text(re.compile("The server is busy .*: try [23] of 8 in 1 s"))
    expect(file_state(page)).to_contain_text("Done: 300 lines", timeout=20_000)
    assert [line["id"] for line in results(page)] == list(range(300))


def check_tries_are_bounded(page):
    tries = []
    page.route(REWARDS, lambda route: (tries.append(1), route.fulfill(**busy(429, "0.1"))))
    score_file(page, numbered(1), "Stopped: 0 lines")
    assert len(tries) == 8, tries
    expect(file_section(page).get_by_role("alert")).to_contain_text("queue_full: full")
    expect(button(page, "Download results")).to_be_disabled()


def check_a_cancelled_file_can_be_downloaded(page):
    seen = []
    page.route(REWARDS, lambda route: (seen.append(route), len(seen) <= 2 and route.continue_()))
    choose(page, numbered(900))
    expect(number(page, "Lines")).to_have_text("256")
    choose(page, numbered(1))
    expect(page.get_by_role("alert")).to_contain_text("another file is being scored")
    button(page, "Cancel").click()
    expect(file_state(page)).to_contain_text("Cancelled: 256 lines")
    assert len(results(page)) == 256
    expect(button(page, "Cancel")).to_be_disabled()
    for route in seen[2:]:
        route.abort()


def check_a_wait_is_cancelled(page):
    answer(page, **busy(429, "50"))
    choose(page, numbered(1))
    expect(file_state(page)).to_contain_text("in 50 s")
    button(page, "Cancel").click()
    expect(file_state(page)).to_contain_text("Cancelled")


def check_failures_of_a_file(page):
    zero, one = '{"index":0,"reward":1}\n', '{"index":1,"reward":1}\n'
    for body, words in [
        (zero, "answered 1 of 2 lines"),
        (one + zero, "a line without `id` and `index` 0"),
        (zero + one + one, "more lines than"),
        (zero + error_body("draining", "the server is ending"), "draining: the server is ending"),
    ]:
        answer(page, body=body)
        score_file(page, numbered(2), "Stopped")
        expect(page.get_by_role("alert")).to_contain_text(words)
    answer(page, status=413, body=error_body("too_large", "too large"))
    score_file(page, numbered(1))
    assert results(page) == [{"index": 0, "error": {"kind": "too_large", "message": "too large"}}]


def check_a_failure_ends_all_requests(page):
    held = []
    page.route(REWARDS, lambda route: held.append(route))
    choose(page, numbered(300))
    page.wait_for_timeout(300)
    with page.expect_event("requestfailed"):
        held[0].fulfill(status=500, body=error_body("device", "the device is lost"))
    expect(file_state(page)).to_contain_text("Stopped: 0 lines")
    assert len(held) == 2, "a request was sent after a failure"


def check_a_long_line_goes_alone(page):
    sizes = []
    page.on("request", lambda request: request.method == "POST" and sizes.append(len(request.post_data_buffer)))
    score_file(page, b'{"prompt":"p"}\n{"prompt":"%s"}\n{"prompt":"q"}\n' % (b"x" * 3_000_000))
    assert sorted(sizes) == [15, 15, 3_000_014], sizes
    assert [line["index"] for line in results(page)] == [0, 1, 2]


def check_an_empty_file(page):
    score_file(page, b"")
    expect(file_state(page)).to_contain_text("Done: 0 lines")


DROP = """() => {
    const data = new DataTransfer();
    data.items.add(new File(['{"prompt":"p","response":"r"}'], 'dropped.jsonl'));
    const options = { dataTransfer: data, bubbles: true, cancelable: true };
    for (const type of ['dragover', 'drop']) document.body.dispatchEvent(new DragEvent(type, options));
}"""


def check_a_dropped_file(page):
    page.evaluate(DROP)
    expect(file_state(page)).to_contain_text("Done: 1 line,")
    expect(file_section(page)).to_contain_text("dropped.jsonl")
