// common.js: what the other modules of the page share: elements, text that cannot become markup or
// hide characters, errors, and requests to the server.

export const BUSY = [429, 503]; // The server asks to try again later.

export const byId = (id) => document.getElementById(id);
export const all = (selector, node = document) => [...node.querySelectorAll(selector)];
export const on = (id, type, action) => byId(id).addEventListener(type, action);
export const count = (number) => number.toLocaleString("en");
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// ---- Text ----

// Characters that are not seen or that reorder others: with them a text looks like another one.
export const UNSEEN =
  /(?![\n\t])[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Bidi_Control}\u00ad\u200b\u2060-\u206f\ufeff\u{e0000}-\u{e007f}]/gu;

// Returns text nodes in which unseen characters are marked escapes.
export function visible(text) {
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
export function element(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children.map((child) => (child instanceof Node ? child : visible(String(child)))));
  return node;
}

// Replaces the text of an element that stays in place; the same text would be announced again.
export const say = (id, text) => byId(id).textContent === text || byId(id).replaceChildren(visible(text));

// ---- Errors ----

// An error in the server's form {kind, message, place, hint}, so that one function shows them all.
export class Failure extends Error {
  constructor(error, status, waitSeconds) {
    super(error.message);
    Object.assign(this, { error, status, waitSeconds });
  }
}

export const errorOf = (thrown) => thrown.error ?? { kind: "page", message: thrown.message };

// Returns an alert that says what happened, where, and what to do.
export function alertOf({ kind, message, place, hint }, where) {
  const places = [where, place && `at ${place}`].filter(Boolean).join(", ");
  const box = element("div", "error", element("p", "", element("strong", "", kind), `: ${message}`));
  if (places) box.append(element("p", "note", places));
  if (hint) box.append(element("p", "note", `hint: ${hint}`));
  return Object.assign(box, { role: "alert" });
}

// ---- The server ----

export function noAnswer(path) {
  const hint = "check that `kudos serve` is running there, and that this machine can reach it";
  const place = location.origin + path;
  return new Failure({ kind: "network", message: "the server did not answer", place, hint });
}

// Returns the response to a request that the server accepted.
export async function send(path, options) {
  // `fetch` refuses a relative path where the page's address has a password.
  const response = await fetch(location.origin + path, { cache: "no-store", ...options }).catch((cause) => {
    throw options.signal?.aborted ? cause : noAnswer(path);
  });
  if (response.ok) return response;
  // A proxy answers with a page of its own: then the status is all that is known.
  const error = (await response.json().catch(() => null))?.error;
  const other = { kind: "http", message: `${response.status} ${response.statusText}`, place: path };
  const waitSeconds = Number(response.headers.get("Retry-After")) || 1;
  throw new Failure(error?.message ? error : other, response.status, waitSeconds);
}

export const post = (path, type, body, signal) =>
  send(path, { method: "POST", headers: { "Content-Type": type }, body, signal });
