"""Checks of the forms, of the rewards and texts of one request, and of the command."""

import json
import os
import re
import subprocess
import tempfile

from playwright.sync_api import expect
from steps import ENVIRONMENT, RENDER, REWARDS
from steps import answer, busy, button, command, command_body, compare, file_section, file_state, open_all, post, result
from steps import score, score_file, textbox, write_json

MARKUP = '</script><img src=x onerror="window.hit=1"><svg onload=window.hit=1>'

# ---- The forms ----


def check_the_model_is_named(page):
    model = page.request.get("/v1/models").json()["data"][0]
    expect(page.get_by_role("banner")).to_contain_text(model["id"])


def check_tabs_by_keyboard(page):
    first, second = [page.get_by_role("tab", name=name) for name in ["Conversation", "Compare"]]
    first.focus()
    steps = [("ArrowRight", second), ("ArrowRight", first), ("ArrowLeft", second), ("Home", first), ("End", second)]
    for key, tab in steps:
        page.keyboard.press(key)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
    expect(first).to_have_attribute("tabindex", "-1")
    expect(page.get_by_role("tabpanel", name="Compare")).to_be_visible()
    expect(page.get_by_role("tabpanel", name="Conversation")).to_be_hidden()
    page.keyboard.press("Tab")
    expect(page.get_by_label("System text")).to_be_focused()


def check_a_conversation_by_keyboard(page):
    body = {"messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "1+1=2"}]}
    want, rendered = post(page, "/v1/rewards", body), post(page, "/v1/render", body)
    textbox(page, "Text of turn 2").focus()
    page.keyboard.press("Control+Enter")
    expect(result(page).get_by_role("listitem")).to_contain_text(str(want["reward"]))
    expect(result(page)).to_contain_text(f"bf16 {want['reward_bf16']} · {want['tokens']} tokens")
    open_all(page)
    box = page.get_by_role("region", name="Rendered text")
    assert box.text_content() == rendered["text"], box.text_content()
    start, end = rendered["scored"]["span"]
    assert box.locator("mark").text_content() == rendered["text"][start:end]
    expect(result(page)).to_contain_text(f"position {rendered['scored']['position']} from 0")


def check_turns_are_edited(page):
    button(page, "Add turn").click()
    expect(textbox(page, "Text of turn 3")).to_be_focused()
    page.keyboard.type("third")
    page.get_by_label("Role of turn 3").select_option("tool")
    button(page, "Move turn 3 up").focus()
    page.keyboard.press("Enter")
    expect(button(page, "Move turn 2 up")).to_be_focused()
    page.keyboard.press("Enter")
    expect(button(page, "Move turn 1 down")).to_be_focused()
    expect(textbox(page, "Text of turn 1")).to_have_value("third")
    assert [turn["role"] for turn in command_body(page)["messages"]] == ["tool", "user", "assistant"]
    button(page, "Remove turn 1").click()
    expect(textbox(page, "Text of turn 1")).to_be_focused()
    button(page, "Remove turn 1").click()
    expect(button(page, "Remove turn 1")).to_be_disabled()


def check_responses_are_compared(page):
    responses = ["1+1=3", "1+1=2", "1+1 is 2, I think.", "1+1=3"]
    body = {"prompt": "What is 1+1?", "responses": responses}
    want, ids = post(page, "/v1/rewards", body), post(page, "/v1/render", body)["input_ids"]
    compare(page, "What is 1+1?", responses)
    rows = score(page).get_by_role("listitem").all()
    assert len(rows) == 4
    zero = middle(rows[0].locator(".zero"))
    for row, text, reward, is_best in zip(rows, responses, want["rewards"], [at == want["best"] for at in range(4)]):
        shown, bar = row.inner_text(), row.locator(".bar").bounding_box()
        assert str(reward) in shown and text in shown and ("best" in shown) == is_best, shown
        assert abs(bar["x"] + (0 if reward > 0 else bar["width"]) - zero) < 1.5, (bar, zero)
    unique = {tuple(row[:end]) for row in ids for end in range(1, len(row) + 1)}
    shared, total = len(os.path.commonprefix(ids)), sum(map(len, ids))
    words = f"First {shared:,} tokens computed once for 4 responses; {len(unique):,} unique of {total:,} tokens."
    expect(result(page)).to_contain_text(words)


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2


def check_a_system_text_and_two_responses_at_least(page):
    compare(page, "P", ["a", "b"], "S")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}]
    assert command_body(page) == {"prompt": messages, "responses": ["a", "b"]}
    expect(button(page, "Remove response 1")).to_be_disabled()
    button(page, "Add response").click()
    button(page, "Remove response 1").click()
    expect(button(page, "Remove response 2")).to_be_disabled()


def check_json_goes_as_it_is(page):
    text = '{"id": 12345678901234567890, "prompt" : "What is 1+1?",\n "response":"1+1=2" }'
    write_json(page, text)
    with page.expect_request(REWARDS) as caught:
        score(page)
    assert caught.value.post_data == text
    expect(result(page)).to_contain_text("id 12345678901234567890")
    page.get_by_label("turns").check()
    expect(textbox(page, "Text of turn 1")).to_have_value("What is 1+1?")
    page.get_by_label("JSON", exact=True).check()
    expect(textbox(page, "Request as JSON")).to_have_value(text)


def check_a_list_of_requests(page):
    one = {"id": "one", "prompt": "What is 1+1?", "response": "1+1=2"}
    write_json(page, [one, {"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]}, {"id": [3]}])
    expect(score(page).get_by_role("listitem")).to_have_count(4)
    for name in ["id one", "Request 2"]:
        expect(result(page).get_by_role("heading", name=name)).to_be_visible()
    expect(result(page).get_by_role("alert")).to_have_count(1)


def check_errors(page):
    alert = result(page).get_by_role("alert")
    write_json(page, '{"messages": [')
    score(page)
    expect(alert).to_contain_text(re.compile(r"invalid_input: .*HTTP 4\d\d", re.S))
    page.route(REWARDS, lambda route: route.abort())
    score(page)
    expect(alert).to_contain_text("the server did not answer")
    expect(alert).to_contain_text("hint: check that")
    answer(page, status=502, body="<b>Bad Gateway</b>", content_type="text/html")
    score(page)
    expect(alert).to_contain_text("502")
    answer(page, **busy(503, "7"))
    expect(score(page)).to_contain_text("The server asks to wait 7 s.")


def check_an_error_of_one_response(page):
    error = {"response": 1, "kind": "too_long", "message": "it is too long", "hint": "cut it"}
    answer(page, json={"rewards": [1.5, None], "rewards_bf16": [1.5, None], "tokens": [3, None], "best": 0,
                       "truncated": [True, None], "errors": [error]})
    compare(page, "P", ["a", "b"])
    rows = score(page).get_by_role("listitem")
    expect(rows.nth(0)).to_contain_text("truncated")
    expect(rows.nth(1).get_by_role("alert")).to_contain_text("too_long: it is too long")
    expect(rows.nth(1)).to_contain_text("no reward")


def check_logits_and_normalized_rewards(page):
    answer(page, json={"reward": -1e-7, "reward_bf16": -0.5, "reward_normalized": 0.25, "tokens": 1, "logits": [1.5, -2]})
    expect(score(page)).to_contain_text("1 token · normalized 0.25 · logits 1.5, -2")


def check_a_request_of_token_ids(page):
    scored = {"position": 1, "token": 2, "reason": "last token"}
    answer(page, RENDER, json={"input_ids": [1, 2], "truncated": True, "scored": scored})
    score(page)
    page.get_by_text("Rendered text: 2 tokens, truncated").click()
    expect(result(page)).to_contain_text("The request has token ids")


# ---- The command ----


def check_the_command_runs(page):
    text = "it's `id` $HOME \\ \"q\" !! %s\n\ttab @x \u202ertl\u202c \u007f \U0001f600 \U000e0041 --"
    compare(page, text, [text + "1", "2"])
    assert not re.search("[\u202e\u007f\U000e0041]", command(page)), command(page)
    assert json.loads(run_command(page)) == post(page, "/v1/rewards", {"prompt": text, "responses": [text + "1", "2"]})
    page.get_by_role("tab", name="Conversation").click()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b'{"prompt":"p","response":"r"}')
        file.flush()
        write_json(page, f"@{file.name}")  # To curl that can be the name of a file.
        assert "error" in json.loads(run_command(page))
    with tempfile.TemporaryDirectory() as folder:
        write_json(page, f"'; touch {folder}/file; '")
        assert "error" in json.loads(run_command(page)) and not os.listdir(folder)


def run_command(page):
    return subprocess.run(["bash", "-c", command(page)], stdout=subprocess.PIPE, env=ENVIRONMENT, check=True).stdout


def check_the_command_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button(page, "Copy command").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    shown = page.get_by_role("region", name="curl command").text_content()
    assert page.evaluate("navigator.clipboard.readText()") == shown
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    textbox(page, "Text of turn 2").fill("other")
    button(page, "Copy command").click()
    expect(page.get_by_text(re.compile("Copied.|Selected"))).to_be_visible()


# ---- Hostile text ----


def check_markup_is_text(page):
    compare(page, MARKUP, [MARKUP + "1", MARKUP + "2"], MARKUP)
    expect(score(page)).to_contain_text(MARKUP + "1")
    open_all(page)
    expect(page.get_by_role("region", name="Rendered text of response 1")).to_contain_text(MARKUP)
    page.get_by_role("tab", name="Conversation").click()
    write_json(page, {"id": {"a": MARKUP}, "prompt": "a", "response": "b"})
    expect(score(page).get_by_role("heading").nth(1)).to_contain_text("onerror")
    write_json(page, {"prompt": {MARKUP: MARKUP}, "response": 1})
    score(page)
    score_file(page, json.dumps({MARKUP: 1}).encode(), name="<img src=x onerror=alert(1)>\u202e.jsonl")
    expect(file_section(page)).to_contain_text("<img src=x onerror=alert(1)>\\u{202E}.jsonl")
    expect(file_state(page)).to_contain_text("Done: 1 line, 1 failed.")
    assert page.evaluate("window.hit === undefined && !document.querySelector('img, svg, main script')")


def check_unseen_characters_are_shown(page):
    text = "a\x1b\x00\x85\u202eb\u2066\u200b\ufeff\u2028c\U000e0041 \u200d"
    shown = "a\\u{1B}\\u{0}\\u{85}\\u{202E}b\\u{2066}\\u{200B}\\u{FEFF}\\u{2028}c\\u{E0041} \u200d"
    token = {"position": 1, "token": 2, "reason": "last token"}
    scored = [token, {**token, "text": "<e>", "span": [2, 5]}]
    texts = [text, "\U0001f600\U0001f600<e>"]
    answer(page, RENDER, json={"text": texts, "input_ids": [[1, 2], [1, 3]], "truncated": [False, False], "scored": scored})
    compare(page, "P", ["1", "2"])
    textbox(page, "Text of response 1").evaluate("(area, text) => area.value = text", text)
    score(page)
    open_all(page)
    boxes = [page.get_by_role("region", name=f"Rendered text of response {at}") for at in (1, 2)]
    assert boxes[0].text_content() == shown, boxes[0].text_content()
    expect(boxes[0].locator("mark")).to_have_count(0)
    assert boxes[1].locator("mark").text_content() == "<e>"
