// page.js: the page of `kudos serve`. It builds requests from the forms, and shows rewards, rendered
// text and errors. State is in memory only. Whatever a user or the server sends is added as text
// nodes, so it cannot become markup.

import {
  BUSY, UNSEEN, alertOf, all, byId, count, element, errorOf, on, plural, post, say, send, visible,
} from "./common.js";
import { startFiles } from "./file.js";

// ---- The forms ----

// Adds a turn or a response to its list.
function addItem(id, text = "", role = "user") {
  const item = byId(`${id}-template`).content.firstElementChild.cloneNode(true);
  const onClick = (button, action) =>
    item.querySelector(button)?.addEventListener("click", () => action(item));
  item.querySelector("textarea").value = text;
  for (const select of all("select", item)) select.value = role;
  onClick(".remove", removeItem);
  onClick(".up", () => moveItem(item, ".up", ".down", () => item.after(item.previousElementSibling)));
  onClick(".down", () => moveItem(item, ".down", ".up", () => item.before(item.nextElementSibling)));
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
  const notes = [`bf16 ${row.reward_bf16}`, plural(row.tokens, "token")];
  if (row.truncated) notes.push("truncated");
  if (row.reward_normalized != null) notes.push(`normalized ${row.reward_normalized}`);
  if (row.logits) notes.push(`logits ${row.logits.join(", ")}`);
  item.append(barOf(row.reward, low, high), element("p", "note", notes.join(" · ")));
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

// Returns a parsed answer; a numeric `id` keeps the digits that a JavaScript number would lose.
const parse = (text) => JSON.parse(text, (key, value, context) =>
  key === "id" && typeof value === "number" ? (context?.source ?? value) : value);

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

// ---- Start ----

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

startForms();
startFiles();
showServer();
