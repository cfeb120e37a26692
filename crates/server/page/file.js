// file.js: scores a file of JSON lines. It is read, sent and answered in parts, so that its size is
// bounded by the disk and not by the memory, and the results keep its order.

import { BUSY, Failure, alertOf, byId, count, errorOf, noAnswer, on, plural, post, say } from "./common.js";

const CHUNK_LINES_MAX = 128; // Lines in one request of a file.
const CHUNK_BYTES_MAX = 1 << 20; // A longer line goes alone.
const LINE_BYTES_MAX = 64 << 20; // A file without line ends must not fill the memory.
const REQUESTS_MAX = 2; // One is scored while the next one waits at the server.
const TRIES_MAX = 8; // Of a request that a busy server refuses.
const WAIT_SECONDS_MAX = 60; // Between two tries, whatever the server asks for.
const HELD_BYTES_MAX = 1 << 20; // Results that are held as strings before they become a Blob.
const FAILURES_SHOWN_MAX = 5;
const BLANK = [...new TextEncoder().encode(" \t\r\f")];

// Copies bytes, and texts in UTF-8, into one array.
const join = async (parts) => new Uint8Array(await new Blob(parts).arrayBuffer());

// Yields the bytes of each line; they are not decoded, so that the server judges them as they are.
async function* linesOf(stream) {
  const reader = stream.getReader();
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

const isBlank = (bytes) => bytes.every((byte) => BLANK.includes(byte));

// Yields lists of lines {index, bytes}; the index counts blank lines, as `kudos score` does.
async function* chunksOf(file) {
  let [lines, chunkBytes, index] = [[], 0, 0];
  for await (const bytes of linesOf(file.stream())) {
    const line = { index: index++, bytes };
    if (isBlank(bytes)) continue;
    if (lines.length === CHUNK_LINES_MAX || (lines.length && chunkBytes + bytes.length > CHUNK_BYTES_MAX)) {
      yield lines;
      [lines, chunkBytes] = [[], 0];
    }
    lines.push(line);
    chunkBytes += bytes.length + 1;
  }
  if (lines.length) yield lines;
}

// Returns a line of the server's answer with an `index` that counts in the file, not in the request.
// The text is edited, because a number that is parsed and printed again can lose digits.
function resultOf(text, requestIndex, index) {
  if (text.startsWith(`{"index":${requestIndex},`)) return text.replace(/\d+/, index);
  if (text.startsWith('{"id":')) return text;
  // After results, a failure of the whole request can come only as a line.
  if (text.startsWith('{"error":')) throw new Failure(JSON.parse(text).error);
  throw new Error(`the server's answer has a line without \`id\` and \`index\` ${requestIndex}`);
}

// Returns the results {index, text} of lines, and counts them as they arrive.
async function ask(lines, run) {
  const { signal } = run.abort;
  const body = await join(lines.flatMap(({ bytes }) => [bytes, "\n"]));
  const response = await post("/v1/rewards", "application/x-ndjson", body, signal);
  const results = [];
  try {
    for await (const bytes of linesOf(response.body)) {
      const line = lines[results.length];
      if (!line) throw new Error("the server answered more lines than it was sent");
      const text = resultOf(new TextDecoder().decode(bytes), results.length, line.index);
      results.push({ index: line.index, text });
      arrived(line, run);
    }
  } catch (cause) {
    throw signal.aborted || !(cause instanceof TypeError) ? cause : noAnswer("/v1/rewards");
  }
  if (results.length === lines.length) return results;
  throw new Error(`the server answered ${results.length} of ${plural(lines.length, "line")}`);
}

function arrived({ bytes }, run) {
  run.lines++;
  run.bytes += bytes.length + 1;
}

// Returns the result of a line that is too large for what is between the page and the server.
function refused(line, error, run) {
  arrived(line, run);
  return { index: line.index, text: JSON.stringify({ index: line.index, error }) };
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
      if (failure.status === 413 && lines.length === 1) return [refused(lines[0], failure.error, run)];
      if (!BUSY.includes(failure.status) || tries === TRIES_MAX) throw failure;
      await pause(failure, tries, run);
    }
  }
}

// Keeps results in the file's order; a Blob can be moved to disk by the browser, strings cannot.
function keep(results, run) {
  for (const { index, text } of results) {
    const { error, errors } = JSON.parse(text);
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
    underWay.push(askPatiently(lines, run));
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

export function startFiles() {
  on("choose", "change", ({ target }) => {
    [...target.files].forEach(scoreFile);
    target.value = ""; // The same file can then be chosen again.
  });
  on("cancel", "click", () => fileRun.abort.abort());
  on("download", "click", download);
  for (const type of ["dragover", "dragleave", "drop"]) addEventListener(type, onDrag);
  addEventListener("beforeunload", (event) => fileRun && !fileRun.end && event.preventDefault());
}
