// page.js: the page of `kudos serve`. It builds requests from the forms, shows rewards, rendered text
// and errors, and scores files of JSON lines. State is in memory only. Whatever a user or the server
// sends is added as text nodes, so it cannot become markup.

const CHUNK_LINES_MAX = 128; // Lines in one request of a file.
const CHUNK_BYTES_MAX = 1 << 20; // A longer line goes alone.
const LINE_BYTES_MAX = 64 << 20; // A file without line ends must not fill the memory.
const REQUESTS_MAX = 2; // One is scored while the next one waits at the server.
const TRIES_MAX = 8; // Of a request that a busy server refuses.
const WAIT_SECONDS_MAX = 60; // Between two tries, whatever the server asks for.
const HELD_BYTES_MAX = 1 << 20; // Results that are held as strings before they become a Blob.
const FAILURES_SHOWN_MAX = 5;
const BUSY = [429, 503];

const byId = (id) => document.getElementById(id);
const all = (selector, node = document) => [...node.querySelectorAll(selector)];
const count = (number) => number.toLocaleString("en");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// ---- Text ----

// Characters that are not seen or that reorder others: with them a text looks like another one.
const UNSEEN =
  /(?![\n\t])[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Bidi_Control}\u00ad\u200b\u2060-\u206f\ufeff\u{e0000}-\u{e007f}]/gu;

// Returns text nodes in which unseen characters are marked escapes.
function visible(text) {
  const nodes = document.createDocumentFragment();
  let from = 0;
  for (const { 0: hit, index } of text.matchAll(UNSEEN)) {
    const escape = document.createElement("span");
    escape.className = "escape";
    escape.textContent = `\\u{${hit.codePointAt(0).toString(16).toUpperCase()}}`;
    nodes.append(text.slice(from, index), escape);
    from = index + hit.length;
  }
  nodes.append(text.slice(from));
  return nodes;
}

// Returns an element with children; strings become text nodes.
function element(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children.map((child) => (child instanceof Node ? child : visible(String(child)))));
  return node;
}

// Replaces the text of an element that stays in place; the same text would be announced again.
const say = (id, text) => byId(id).textContent === text || byId(id).replaceChildren(visible(text));

// ---- Errors ----

// An error in the server's form {kind, message, place, hint}, so that one function shows them all.
class Failure extends Error {
  constructor(error, status, waitSeconds) {
    super(error.message);
    Object.assign(this, { error, status, waitSeconds });
  }
}

const errorOf = (thrown) => thrown.error ?? { kind: "page", message: thrown.message };

// Returns an alert that says what happened, where, and what to do.
function alertOf({ kind, message, place, hint }, where) {
  const places = [where, place].filter(Boolean).join(", ");
  const box = element("div", "error", element("p", "", element("strong", "", kind), `: ${message}`));
  if (places) box.append(element("p", "note", `at ${places}`));
  if (hint) box.append(element("p", "note", `hint: ${hint}`));
  return Object.assign(box, { role: "alert" });
}

// ---- The server ----

function noAnswer(path) {
  const hint = "check that `kudos serve` is running there, and that this machine can reach it";
  const place = location.origin + path;
  return new Failure({ kind: "network", message: "the server did not answer", place, hint });
}

// Returns the response to a request that the server accepted.
async function send(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options }).catch((cause) => {
    throw options.signal?.aborted ? cause : noAnswer(path);
  });
  if (response.ok) return response;
  // A proxy answers with a page of its own: then the status is all that is known.
  const error = (await response.json().catch(() => null))?.error;
  const other = { kind: "http", message: `${response.status} ${response.statusText}`, place: path };
  const waitSeconds = Number(response.headers.get("Retry-After")) || 1;
  throw new Failure(error?.message ? error : other, response.status, waitSeconds);
}

const post = (path, type, body, signal) =>
  send(path, { method: "POST", headers: { "Content-Type": type }, body, signal });

// Returns a parsed answer; a numeric `id` keeps the digits that a JavaScript number would lose.
const parse = (text) => JSON.parse(text, (key, value, context) =>
  key === "id" && typeof value === "number" ? (context?.source ?? value) : value);

// Shows which model answers.
async function showServer() {
  try {
    const [version, models] = await Promise.all(
      ["/version", "/v1/models"].map(async (path) => (await send(path, {})).json()));
    say("model", models.data.map((model) => model.id).join(", "));
    const limits = models.data.map((model) => `at most ${plural(model.max_model_len, "token")}`);
    say("limits", `version ${version.version}, ${limits.join(", ")}`);
  } catch (thrown) {
    say("model", thrown.message);
  }
}

// ---- The forms ----

// Adds a turn or a response to its list.
function addItem(id, text = "", role = "user") {
  const item = byId(`${id}-template`).content.firstElementChild.cloneNode(true);
  const on = (button, action) => item.querySelector(button)?.addEventListener("click", () => action(item));
  item.querySelector("textarea").value = text;
  for (const select of all("select", item)) select.value = role;
  on(".remove", removeItem);
  on(".up", () => moveItem(item, ".up", ".down", () => item.after(item.previousElementSibling)));
  on(".down", () => moveItem(item, ".down", ".up", () => item.before(item.nextElementSibling)));
  byId(id).append(item);
  renumber(id);
  return item;
}

// The neighbour is moved, not the item, because an element that is moved loses the focus.
function moveItem(item, button, otherButton, move) {
  move();
  renumber(item.parentElement.id);
  if (item.querySelector(button).disabled) item.querySelector(otherButton).focus();
}

// The focus goes to the neighbour, so that the keyboard does not start at the top again.
function removeItem(item) {
  const neighbour = item.nextElementSibling ?? item.previousElementSibling;
  item.remove();
  renumber(neighbour.parentElement.id);
  neighbour.querySelector("textarea").focus();
}

// Names the items by their positions, for the eye and for screen readers.
function renumber(id) {
  const [{ noun, min }, items] = [byId(id).dataset, [...byId(id).children]];
  items.forEach((item, index) => {
    const name = `${noun} ${index + 1}`;
    const title = name[0].toUpperCase() + name.slice(1);
    const set = (selector, label, disabled = false) => {
      for (const node of all(selector, item)) Object.assign(node, { ariaLabel: label, disabled });
    };
    item.ariaLabel = title;
    item.querySelector(".name").textContent = title;
    set("select", `Role of ${name}`);
    set("textarea", `Text of ${name}`);
    set(".up", `Move ${name} up`, index === 0);
    set(".down", `Move ${name} down`, index === items.length - 1);
    set(".remove", `Remove ${name}`, items.length <= min);
  });
  showCurl();
}

const texts = (id) => all(`#${id} textarea`).map((area) => area.value);

function conversation() {
  const roles = all("#turns select").map((select) => select.value);
  return { messages: texts("turns").map((content, index) => ({ role: roles[index], content })) };
}

function comparison() {
  const [system, prompt] = [byId("system").value, byId("prompt").value];
  const messages = [{ role: "system", content: system }, { role: "user", content: prompt }];
  return { prompt: system ? messages : prompt, responses: texts("responses") };
}

// Returns the request's body; JSON that the user wrote goes as it is, also where it is malformed.
function requestBody() {
  if (byId("tab-compare").ariaSelected === "true") return JSON.stringify(comparison());
  return byId("as-json").checked ? byId("json").value : JSON.stringify(conversation());
}

// The JSON starts as the turns, and is the user's own once it is edited.
function changeEditor() {
  const json = byId("as-json").checked;
  if (json && !byId("json").dataset.edited) byId("json").value = JSON.stringify(conversation(), null, 2);
  byId("json-editor").hidden = !json;
  byId("turns-editor").hidden = json;
  showCurl();
}

// Shows one panel; only the selected tab is in the tab order, as ARIA describes.
function selectTab(tab) {
  for (const other of all("[role=tab]")) {
    other.ariaSelected = String(other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  showCurl();
}

function onTabKey(event) {
  const tabs = all("[role=tab]");
  const at = tabs.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const tab = tabs.at(to % tabs.length);
  tab.focus();
  selectTab(tab);
}

// ---- The command ----

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// Unseen characters become JSON escapes: the same value, and the terminal shows what it is given.
const jsonEscaped = (text) => text.replace(UNSEEN, (hit) =>
  hit.split("").map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`).join(""));

// `--data-raw`, because `--data` reads a file where a body starts with `@`.
function showCurl() {
  byId("curl").textContent = [
    `curl -sS ${shellQuoted(`${location.origin}/v1/rewards`)}`,
    "-H 'Content-Type: application/json'",
    `--data-raw ${shellQuoted(jsonEscaped(requestBody()))}`,
  ].join(" \\\n  ");
  say("copied", "");
}

// Browsers offer the clipboard only over HTTPS and on localhost; elsewhere the selection is copied.
async function copyCurl() {
  let copied = true;
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
  } catch {
    getSelection().selectAllChildren(byId("curl"));
    copied = document.execCommand("copy");
  }
  say("copied", copied ? "Copied." : "Selected: copy it with the keyboard.");
}

// ---- Rewards ----

// Returns one row per reward of an answer, and one per failure, whatever the answer's form.
function rowsOf(answer, request, name) {
  if (!answer.rewards) return [{ ...answer, name }];
  return answer.rewards.map((reward, index) => ({
    name: `Response ${index + 1}`,
    text: request?.responses?.[index],
    reward,
    reward_bf16: answer.rewards_bf16?.[index],
    reward_normalized: answer.rewards_normalized?.[index],
    tokens: answer.tokens?.[index],
    truncated: answer.truncated?.[index],
    logits: answer.logits?.[index],
    best: answer.best === index,
    error: answer.errors?.find((error) => error.response === index),
  }));
}

// Returns the bar of a reward, from zero to it, on the scale of all rewards that are shown.
function barOf(reward, low, high) {
  const percent = (length) => `${(100 * length) / (high - low || 1)}%`;
  const [bar, zero] = [element("span", "bar"), element("span", "zero")];
  bar.style.left = percent(Math.min(0, reward) - low);
  bar.style.width = percent(Math.abs(reward));
  zero.style.left = percent(-low);
  const track = element("span", "track", bar, zero);
  track.ariaHidden = "true";
  return track;
}

function rowElement(row, low, high) {
  const name = element("span", "name", row.name);
  if (row.best) name.append(" ", element("span", "badge", "best"));
  const snippet = element("bdi", "snippet", row.text ?? "");
  const value = element("span", "value", row.reward ?? "no reward");
  const item = element("li", row.best ? "row best" : "row", element("p", "head", name, snippet, value));
  if (row.error) item.append(alertOf(row.error));
  if (typeof row.reward !== "number") return item;
  const facts = [`bf16 ${row.reward_bf16}`, plural(row.tokens, "token")];
  if (row.truncated) facts.push("truncated");
  if (row.reward_normalized != null) facts.push(`normalized ${row.reward_normalized}`);
  if (row.logits) facts.push(`logits ${row.logits.join(", ")}`);
  item.append(barOf(row.reward, low, high), element("p", "note", facts.join(" · ")));
  return item;
}

// Returns the rewards of all answers, on one scale.
function rewardsElement(answers, requests, listed) {
  const names = answers.map((_, index) => (listed ? `Request ${index + 1}` : "Reward"));
  const groups = answers.map((answer, index) => rowsOf(answer, requests[index], names[index]));
  const rewards = groups.flat().map((row) => row.reward ?? 0);
  const [low, high] = [Math.min(0, ...rewards), Math.max(0, ...rewards)];
  const box = element("div", "");
  groups.forEach((rows, index) => {
    const { id, rewards: several } = answers[index];
    const title = listed && several ? [names[index]] : [];
    if (id !== undefined) title.push(`id ${typeof id === "string" ? id : JSON.stringify(id)}`);
    if (title.length) box.append(element("h3", "", element("bdi", "", title.join(", "))));
    box.append(element("ul", "rows", ...rows.map((row) => rowElement(row, low, high))));
  });
  return box;
}

// ---- Rendered text ----

function commonLength(left, right) {
  const end = Math.min(left.length, right.length);
  let length = 0;
  while (length < end && left[length] === right[length]) length++;
  return length;
}

function compareIds(left, right) {
  const at = commonLength(left, right);
  return (left[at] ?? -1) - (right[at] ?? -1);
}

// Says what responses share. In sorted order each adds to the trie what its prefix in common with
// the one before it does not cover.
function sharedText(sequences) {
  const sorted = sequences.toSorted(compareIds);
  const total = sorted.reduce((sum, ids) => sum + ids.length, 0);
  const shared = sorted.slice(1).reduce((sum, ids, at) => sum + commonLength(sorted[at], ids), 0);
  const prefix = commonLength(sorted[0], sorted.at(-1));
  return `First ${plural(prefix, "token")} computed once for ${plural(sorted.length, "response")}; ` +
    `${count(total - shared)} unique of ${plural(total, "token")}.`;
}

// Returns the rendered text with the scored token marked; spans count code points, strings do not.
function markedText(name, text, span) {
  const points = Array.from(text);
  const [start, end] = span ?? [points.length, points.length];
  const part = (from, to) => visible(points.slice(from, to).join(""));
  const box = element("pre", "code", part(0, start));
  if (span) box.append(element("mark", "", part(start, end)), part(end));
  return Object.assign(box, { tabIndex: 0, role: "region", ariaLabel: name });
}

function renderedElement(name, { text, input_ids: ids, truncated, scored }) {
  const title = `${name}: ${plural(ids.length, "token")}${truncated ? ", truncated" : ""}`;
  const details = element("details", "", element("summary", "", title));
  if (scored) {
    const what = `Scored: position ${scored.position} from 0 (${scored.reason}), token ${scored.token} `;
    details.append(element("p", "note", what, element("code", "", scored.text ?? "")));
  }
  const ofIds = () => element("p", "note", "The request has token ids, and so no text.");
  details.append(typeof text === "string" ? markedText(name, text, scored?.span) : ofIds());
  return details;
}

// Shows the rendered text of each response; in an answer for several, every field is a list.
function showRendered(box, { text, input_ids, truncated, scored }) {
  const several = Array.isArray(input_ids[0]) || Array.isArray(scored);
  const sequences = several ? input_ids : [input_ids];
  const known = sequences.filter(Boolean);
  if (known.length > 1) box.append(element("p", "shared", sharedText(known)));
  sequences.forEach((ids, at) => {
    const name = several ? `Rendered text of response ${at + 1}` : "Rendered text";
    const [one, cut, token] = [text, truncated, scored].map((field) => (several ? field?.[at] : field));
    if (ids) box.append(renderedElement(name, { text: one, input_ids: ids, truncated: cut, scored: token }));
  });
}

// ---- Scoring a request ----

let scoring = null; // The AbortController of the request under way.

// Scores what the forms hold; a second click replaces a request that is under way.
async function score() {
  scoring?.abort();
  const run = (scoring = new AbortController());
  const body = requestBody();
  let request = null;
  try {
    request = JSON.parse(body);
  } catch {} // The server says what is wrong with it.
  const listed = Array.isArray(request);
  const ask = async (path) => parse(await (await post(path, "application/json", body, run.signal)).text());
  byId("result").ariaBusy = "true";
  say("state", "Scoring …");
  const start = performance.now();
  const outcomes = await Promise.allSettled([ask("/v1/rewards"), listed ? null : ask("/v1/render")]);
  if (run !== scoring) return;
  byId("result").ariaBusy = "false";
  say("state", `Answered in ${((performance.now() - start) / 1000).toFixed(2)} s.`);
  const box = element("div", "");
  showOutcomes(box, ...outcomes, listed ? request : [request], listed);
  byId("answer").replaceChildren(box);
}

function showOutcomes(box, rewards, rendered, requests, listed) {
  if (rewards.value) box.append(rewardsElement(listed ? rewards.value : [rewards.value], requests, listed));
  else {
    const { status, waitSeconds } = rewards.reason;
    box.append(alertOf(errorOf(rewards.reason), status && `HTTP ${status}`));
    if (BUSY.includes(status)) box.append(element("p", "note", `The server asks to wait ${waitSeconds} s.`));
  }
  if (rendered.value) showRendered(box, rendered.value);
  else if (listed) box.append(element("p", "note", "The rendered text is shown for one object, not a list."));
  else if (rewards.value) box.append(alertOf(errorOf(rendered.reason), "/v1/render"));
}

// ---- Scoring a file ----

const utf8 = new TextDecoder("utf-8", { fatal: true });

// Yields the bytes of each line; cut before decoding, so that a bad byte costs its own line alone.
async function* linesOf(stream) {
  const reader = stream.getReader();
  const join = async (parts) => new Uint8Array(await new Blob(parts).arrayBuffer());
  let [parts, held] = [[], 0];
  try {
    for (let read; !(read = await reader.read()).done; ) {
      let from = 0;
      for (let end; (end = read.value.indexOf(10, from)) >= 0; from = end + 1) {
        const last = read.value.subarray(from, end);
        yield held ? await join([...parts, last]) : last;
        [parts, held] = [[], 0];
      }
      parts.push(read.value.subarray(from));
      held += read.value.length - from;
      if (held > LINE_BYTES_MAX) throw new Error(`a line is longer than ${count(LINE_BYTES_MAX)} bytes`);
    }
    if (held) yield await join(parts);
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Returns the text of a line, null where it is not UTF-8.
function decoded(bytes) {
  try {
    return utf8.decode(bytes);
  } catch {
    return null;
  }
}

// Yields lists of lines {index, text, bytes}; the index counts blank lines, as `kudos score` does.
async function* chunksOf(file) {
  let [lines, chunkBytes, index] = [[], 0, 0];
  for await (const bytes of linesOf(file.stream())) {
    const line = { index: index++, text: decoded(bytes), bytes: bytes.length + 1 };
    if (line.text !== null && /^\ufeff*[ \t\r\f]*$/.test(line.text)) continue;
    if (lines.length === CHUNK_LINES_MAX || (lines.length && chunkBytes + line.bytes > CHUNK_BYTES_MAX)) {
      yield lines;
      [lines, chunkBytes] = [[], 0];
    }
    lines.push(line);
    chunkBytes += line.bytes;
  }
  if (lines.length) yield lines;
}

// Returns a result line with the file's index in place of the chunk's. The text is edited, because a
// number that is parsed and printed again can lose digits; a key within the `id` is not meant.
function withIndex(text, chunkIndex, index) {
  let depth = 0;
  for (const { 0: token, index: at } of text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\]]/g)) {
    depth += "{[".includes(token) - "}]".includes(token);
    const value = depth === 1 && token === '"index"' && /^(\s*:\s*)(\d+)/.exec(text.slice(at + 7, at + 40));
    if (value && Number(value[2]) === chunkIndex) {
      return text.slice(0, at + 7) + value[1] + index + text.slice(at + 7 + value[0].length);
    }
  }
  throw new Error(`a line of the server's answer does not have \`index\` ${chunkIndex}`);
}

// Returns the server's answers to lines, one per line, and counts them as they arrive.
async function ask(lines, run) {
  const { signal } = run.abort;
  const body = lines.map((line) => `${line.text}\n`).join("");
  const response = await post("/v1/rewards", "application/x-ndjson", body, signal);
  const answers = [];
  try {
    for await (const bytes of linesOf(response.body)) {
      const line = lines[answers.length];
      if (!line) throw new Error("the server answered more lines than it was sent");
      answers.push(withIndex(utf8.decode(bytes), answers.length, line.index));
      arrived(line, run);
    }
  } catch (cause) {
    throw signal.aborted || !(cause instanceof TypeError) ? cause : noAnswer("/v1/rewards");
  }
  if (answers.length === lines.length) return answers;
  throw new Error(`the server answered ${answers.length} of ${plural(lines.length, "line")}`);
}

function arrived(line, run) {
  run.lines++;
  run.bytes += line.bytes;
}

// Returns the result of a line that the server did not see or take, in the server's form.
function failedLine(line, error, run) {
  arrived(line, run);
  return JSON.stringify({ index: line.index, error });
}

// Waits before the next try, and says so.
function pause({ status, waitSeconds }, tries, run) {
  const seconds = Math.min(waitSeconds, WAIT_SECONDS_MAX);
  say("file-state", `The server is busy (HTTP ${status}): try ${tries + 1} of ${TRIES_MAX} in ${seconds} s.`);
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    run.abort.signal.addEventListener("abort", () => (clearTimeout(timer), reject(new Error("cancelled"))));
  });
}

// Like `ask`, but tries again where the server is busy, and takes the refusal of a line that is too
// large as that line's result.
async function askPatiently(lines, run) {
  for (let tries = 1; ; tries++) {
    try {
      return await ask(lines, run);
    } catch (failure) {
      if (failure.status === 413 && lines.length === 1) return [failedLine(lines[0], failure.error, run)];
      if (!BUSY.includes(failure.status) || tries === TRIES_MAX) throw failure;
      await pause(failure, tries, run);
    }
  }
}

// Returns the result lines of a chunk; a line that is not UTF-8 gets its error here.
async function scoreChunk(lines, run) {
  const sent = lines.filter((line) => line.text !== null);
  const answers = sent.length ? await askPatiently(sent, run) : [];
  const hint = "JSON is written in UTF-8: convert it, as with `iconv -t UTF-8`";
  const error = { kind: "invalid_input", message: "the text is not UTF-8", hint };
  return lines.map((line) => (line.text === null ? failedLine(line, error, run) : answers.shift()));
}

// Keeps results in the file's order; a Blob can be moved to disk by the browser, strings cannot.
function keep(results, run) {
  for (const text of results) {
    const { index, error, errors } = JSON.parse(text);
    const failed = error ?? errors?.[0];
    if (failed && run.failed++ < FAILURES_SHOWN_MAX) showFileError(failed, `line ${index + 1}`);
    run.held.push(`${text}\n`);
    run.heldBytes += text.length;
    run.kept++;
  }
  if (run.heldBytes > HELD_BYTES_MAX) {
    run.blobs.push(new Blob(run.held));
    [run.held, run.heldBytes] = [[], 0];
  }
}

const showFileError = (error, where) => byId("file-errors").append(alertOf(error, where));

// Sends chunks with a bounded number under way, and keeps the results of the oldest first.
async function scoreLines(file, run) {
  const underWay = [];
  const keepOldest = async () => {
    keep(await underWay.shift(), run);
    say("file-state", "Scoring …");
  };
  for await (const lines of chunksOf(file)) {
    underWay.push(scoreChunk(lines, run));
    underWay.at(-1).catch(() => {}); // Its error is thrown when its turn comes.
    if (underWay.length === REQUESTS_MAX) await keepOldest();
  }
  while (underWay.length) await keepOldest();
}

// Shows progress; the time left follows the bytes, because the number of lines is not known.
function showProgress({ start, end, size, bytes, lines, failed }) {
  const seconds = ((end ?? performance.now()) - start) / 1000;
  const left = (seconds * (size - bytes)) / bytes;
  byId("progress").value = end && !size ? 1 : bytes / (size || 1);
  say("lines", count(lines));
  say("failed", count(failed));
  say("rate", lines ? (lines / seconds).toLocaleString("en", { maximumSignificantDigits: 3 }) : "–");
  const time = left < 60 ? `${Math.ceil(left)} s` : `${count(Math.ceil(left / 60))} min`;
  say("left", end || !bytes ? "–" : time);
}

let fileRun = null; // The last file, also after it ended, for its download.

// Scores a file; what was scored before a failure or a cancel can be downloaded.
async function scoreFile(file) {
  if (fileRun && !fileRun.end) {
    const hint = "wait for it, or cancel it first";
    return showFileError({ kind: "page", message: "another file is being scored", hint }, file.name);
  }
  const run = { name: file.name, size: file.size, abort: new AbortController(), start: performance.now(),
    lines: 0, bytes: 0, failed: 0, kept: 0, held: [], heldBytes: 0, blobs: [] };
  fileRun = run;
  byId("file-errors").replaceChildren();
  byId("cancel").disabled = false;
  byId("download").disabled = true;
  say("file-name", file.name);
  say("file-state", "Scoring …");
  const timer = setInterval(() => showProgress(run), 250);
  let outcome = "Done";
  try {
    await scoreLines(file, run);
    run.bytes = run.size; // Blank lines are not counted one by one.
  } catch (thrown) {
    outcome = run.abort.signal.aborted ? "Cancelled" : "Stopped";
    if (outcome === "Stopped") showFileError(errorOf(thrown), file.name);
    run.abort.abort();
  }
  clearInterval(timer);
  run.end = performance.now();
  run.lines = run.kept; // What arrived after the last result in order is not kept.
  showProgress(run);
  say("file-state", `${outcome}: ${plural(run.kept, "line")}, ${count(run.failed)} failed.`);
  byId("cancel").disabled = true;
  byId("download").disabled = run.kept === 0;
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([...fileRun.blobs, ...fileRun.held]));
  link.download = `${fileRun.name.replace(/\.(jsonl|ndjson|json|txt)$/i, "")}.rewards.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // The browser may not have read it yet.
}

// A file can be dropped anywhere: left alone, a browser would show it in place of the page.
function onDrag(event) {
  const files = event.dataTransfer.types.includes("Files");
  document.body.classList.toggle("dropping", files && event.type === "dragover");
  if (files) event.preventDefault();
  if (files && event.type === "drop") [...event.dataTransfer.files].slice(0, 1).forEach(scoreFile);
}

// ---- Start ----

const on = (id, type, action) => byId(id).addEventListener(type, action);

function startForms() {
  addItem("turns", "What is 1+1?", "user");
  addItem("turns", "1+1=2", "assistant");
  byId("prompt").value = "What is 1+1?";
  for (const text of ["1+1=2", "1+1=3"]) addItem("responses", text);
  on("request", "input", showCurl);
  on("request", "submit", (event) => (event.preventDefault(), score()));
  on("request", "keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), score();
  });
  for (const tab of all("[role=tab]")) tab.addEventListener("click", () => selectTab(tab));
  for (const tab of all("[role=tab]")) tab.addEventListener("keydown", onTabKey);
  for (const id of ["as-turns", "as-json"]) on(id, "change", changeEditor);
  on("json", "input", () => (byId("json").dataset.edited = "yes"));
  on("add-turn", "click", () => {
    const role = all("#turns select").at(-1).value === "user" ? "assistant" : "user";
    addItem("turns", "", role).querySelector("textarea").focus();
  });
  on("add-response", "click", () => addItem("responses").querySelector("textarea").focus());
  on("copy", "click", copyCurl);
}

function startFiles() {
  on("choose", "change", ({ target }) => {
    [...target.files].forEach(scoreFile);
    target.value = ""; // The same file can then be chosen again.
  });
  on("cancel", "click", () => fileRun.abort.abort());
  on("download", "click", download);
  for (const type of ["dragover", "dragleave", "drop"]) addEventListener(type, onDrag);
  addEventListener("beforeunload", (event) => fileRun && !fileRun.end && event.preventDefault());
}

startForms();
startFiles();
showServer();
