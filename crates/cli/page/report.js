
// report.js: writes the data of the page into its sections. Data are set as text alone.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const TOTALS = new Set(["overall", "macro", "micro"]);

// ---- Numbers ----

const isNumber = (value) => value !== null && value !== undefined;
const count = (number) => number.toLocaleString("en");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const are = (number) => (number === 1 ? "is" : "are");
const plain = (value, digits = 4) => (isNumber(value) ? minus(value.toFixed(digits)) : "\u2013");
const percent = (value) => plain(isNumber(value) ? 100 * value : null, 2);
const shown = { percent, plain };
const atLeast = (p) => (p < 0.0001 ? "< 0.0001" : `= ${p.toFixed(4)}`);
const range = (interval, show) => (interval ? `[${show(interval[0])}, ${show(interval[1])}]` : "");

// ---- Text ----

// Characters that are not seen or that reorder others: with them a text looks like another one.
const UNSEEN =
  /(?![\n\t])[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Bidi_Control}\u00ad\u200b\u2060-\u206f\ufeff\u{e0000}-\u{e007f}]/gu;

// Returns text nodes in which unseen characters are marked escapes.
function visible(text) {
  const nodes = document.createDocumentFragment();
  let from = 0;
  for (const { 0: hit, index } of text.matchAll(UNSEEN)) {
    const code = hit.codePointAt(0).toString(16).toUpperCase();
    nodes.append(text.slice(from, index), element("span", "escape", `\\u{${code}}`));
    from = index + hit.length;
  }
  nodes.append(text.slice(from));
  return nodes;
}

// Returns an element with children; strings become text nodes.
function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.map((child) => (child instanceof Node ? child : visible(String(child)))));
  return node;
}

// Returns a message with what it has between backquotes as code.
const prose = (message) => message.split("`").map((part, at) => (at % 2 === 1 ? element("code", "", part) : part));

const fill = (id, ...children) => byId(id).replaceChildren(...element("div", "", ...children).childNodes);

// ---- Tables ----

// Cells of a table: numbers, and a number with its interval.
const numbers = (...values) => values.map((value) => ({ number: value, className: "number" }));
const estimate = ({ value, interval }, show) =>
  [...numbers(show(value)), { number: range(interval, show), className: "number interval" }];

// Returns a table: a caption, the heads of its columns, each with the number of columns that it is over,
// and rows of a name and cells. It scrolls by itself where the page is too narrow for it.
function table(caption, heads, rows, className = "") {
  const head = ([name, span, kind], index) => {
    const cell = element("th", index === 0 || kind === "text" ? "" : "number", name);
    cell.scope = "col";
    if (span > 1) cell.colSpan = span;
    return cell;
  };
  const cell = (value) =>
    isNumber(value?.number) ? element("td", value.className, value.number) : element("td", "", ...[value].flat());
  const row = ([name, ...cells]) => {
    const first = element("th", "", name);
    first.scope = "row";
    return element("tr", TOTALS.has(name) ? "total" : "", first, ...cells.map(cell));
  };
  const box = element("div", "scroll", element("table", className, element("caption", "", caption),
    element("thead", "", element("tr", "", ...heads.map(head))), element("tbody", "", ...rows.map(row))));
  return reachable(box, caption);
}

// Lets the keyboard scroll a box.
function reachable(box, name) {
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", name);
  return box;
}

const share = ({ comparisons, items, value, interval }) =>
  [...numbers(count(comparisons), count(items)), ...estimate({ value, interval }, percent)];
const SHARES = [["comparisons"], ["items"]];

// ---- Figures ----

const plots = []; // Boxes with what draws them, which are drawn again at another width.

// Returns a box that `draw` fills with a plot of the box's width.
function plot(draw) {
  const box = element("div", "plot");
  plots.push({ box, draw, width: 0 });
  return box;
}

function drawPlots() {
  for (const entry of plots) {
    const width = Math.floor(entry.box.clientWidth);
    if (width > 0 && width !== entry.width) {
      entry.width = width;
      entry.box.replaceChildren(entry.draw(width));
    }
  }
}

// Returns what is in a figure: a plot, a caption, and the same numbers as a table.
const figure = (draw, caption, numbers) => [
  plot(draw),
  element("figcaption", "", caption),
  element("details", "data", element("summary", "", "Numbers of this plot"), numbers),
];

const NONE = "There are no comparisons.";

// ---- Sections ----

// Returns a plot of each column in percent, all with one axis.
function accuracyPlots({ name, columns, rows }) {
  const values = (index) => rows.map((row) => ({ name: row.name, ...row.cells[index] }));
  const isPlotted = ({ unit, values }) => unit === "percent" && values.some(({ value }) => isNumber(value));
  const plotted = columns.map((column, index) => ({ ...column, values: values(index) })).filter(isPlotted);
  const range = plotted.length > 0 && tenths(plotted.flatMap(({ values }) => values));
  return plotted.map((column) => {
    const title = `${column.name[0].toUpperCase()}${column.name.slice(1)} by ${name}`;
    return element("div", "", element("h3", "", title), plot((width) => dotPlot(column.values, range, width, title)));
  });
}

function resultsTable({ name, columns, rows }) {
  const heads = [[name], ["items"], ["ties"], ...columns.map((column) => [column.name, 2])];
  const cells = ({ items, ties, cells }) => [
    ...numbers(count(items), isNumber(ties) ? count(ties) : ""),
    ...cells.flatMap((cell, index) => estimate(cell, shown[columns[index].unit])),
  ];
  return table(`By ${name}`, heads, rows.map((row) => [row.name, ...cells(row)]));
}

function showSummary() {
  const { benchmark, items, evaluated, failed, ties, run } = data;
  document.title = `${benchmark}, ${run.model ?? run.results}`;
  fill("title", `kudos eval ${benchmark}`);
  fill("subject", `${run.file}, ${run.model ? `scored with ${run.model}` : `with the scores of ${run.results}`}`);
  const failures = failed > 0 ? ` ${plural(failed, "item")} without scores ${are(failed)} in no number.` : "";
  fill("summary", element("strong", "", count(evaluated)), ` of ${plural(items, "item")}; `,
    element("strong", "", count(ties.count)), ` of ${plural(ties.of, "comparison")} tied.${failures}`);
}

function showResults() {
  const { intervals } = data;
  fill("tables", ...data.tables.map(resultsTable));
  const percents = data.tables.some(({ columns }) => columns.some(({ unit }) => unit === "percent"));
  fill("intervals", `[..]: ${Math.round(100 * intervals.level)}% interval, ${count(intervals.resamples)} bootstrap ` +
    `resamples of the items.${percents ? " Accuracies and scores are in percent." : ""}`);
  fill("notes", ...data.notes.map((note) => element("li", "", ...prose(note))));
  const accuracies = data.tables.flatMap(accuracyPlots);
  fill("categories", element("div", accuracies.length > 1 ? "plots" : "", ...accuracies));
}

function showBaseline() {
  const { baseline } = data;
  if (!baseline) return;
  byId("baseline").hidden = false;
  const show = shown[baseline.unit];
  fill("baseline-summary",
    "With ", ...prose(baseline.file), `, on ${plural(baseline.items, "item")}. ${baseline.number}: `,
    element("strong", "", show(baseline.ours)), ` here, ${show(baseline.theirs)} there; difference `,
    element("strong", "", show(baseline.difference.value)), ` ${range(baseline.difference.interval, show)}.`);
  const rows = [["right here", count(baseline.both_right), count(baseline.only_ours)],
    ["wrong here", count(baseline.only_theirs), count(baseline.both_wrong)]];
  fill("baseline-table", table("Comparisons by which model has them right", [[""], ["right there"], ["wrong there"]],
    rows.map(([name, ...cells]) => [name, ...numbers(...cells)])));
  const [{ only_here: alone }, p] = [baseline, atLeast(baseline.mcnemar.p)];
  const notes = [
    `Agreement ${percent(baseline.agreement)}%. McNemar's test, exact binomial: p ${p}.`,
    baseline.note,
    alone > 0 && `${plural(alone, "item")} without scores there ${are(alone)} not compared.`,
  ];
  fill("baseline-notes", ...notes.filter(Boolean).map((note) => element("li", "", note)));
}

function showMargins() {
  const { comparisons, bins, right, wrong, ties, outside } = data.figures.margins;
  const beyond = outside[0] + outside[1] > 0
    ? ` ${count(outside[0])} below and ${count(outside[1])} above are beyond the plot.` : "";
  const none = comparisons > 0 ? "All comparisons are ties." : NONE;
  if (bins.length === 0) return fill("margins-figure", element("p", "", none));
  const rows = bins.map(({ from, to, count: all }) => [`${tick(from)} to ${tick(to)}`, ...numbers(count(all))]);
  fill("margins-figure", ...figure((width) => marginPlot(data.figures.margins, width),
    `${plural(comparisons, "comparison")}, of which ${count(ties)} tied, which no bar counts.${beyond}`,
    table("Comparisons by margin", [["margin"], ["comparisons"]], rows)));
  const side = (name, { count: all, mean, median }) =>
    [name, ...numbers(count(all), percent(all / comparisons), plain(mean), plain(median))];
  fill("margins-table", table("Margins of right and of wrong comparisons",
    [["comparisons"], ["count"], ["%"], ["mean margin"], ["median"]],
    [side("right", right), side("wrong", wrong), side("tied", { count: ties })]));
}

function showReliability() {
  const { bins, ties } = data.figures.reliability;
  if (bins.length === 0) return fill("reliability-figure", element("p", "", NONE));
  const rows = bins.map(({ from, to, margin, expected, accuracy }) =>
    [`${plain(from)} to ${plain(to)}`, ...numbers(plain(margin), percent(expected)), ...share(accuracy)]);
  fill("reliability-figure", ...figure((width) => reliabilityPlot(data.figures.reliability, width),
    "Dots: accuracy, with its 95% interval; thin lines: the margins of a group. Dashed curve: sigmoid(|margin|).",
    table("Accuracy by the size of the margin, in percent",
      [["|margin|"], ["mean"], ["sigmoid"], ...SHARES, ["accuracy", 2]], rows)));
  if (ties > 0) fill("reliability-ties", `${plural(ties, "tie")} ${are(ties)} left out.`);
}

function showLength() {
  const { responses, unread, bins, pearson, spearman, comparisons } = data.figures.length;
  if (unread > 0) {
    fill("length-note", `${plural(unread, "item")} whose conversations cannot be read ${are(unread)} not counted here.`);
  }
  if (bins.length === 0) return fill("length-figure", element("p", "", "There are no responses with known lengths."));
  const heads = ["characters", "responses", "mean", "10%", "25%", "median", "75%", "90%"].map((head) => [head]);
  const rows = bins.map(({ from, to, count: all, mean, quantiles }) => [
    `${count(from)} to ${count(to)}`,
    ...numbers(count(all), ...[mean, ...quantiles].map((reward) => plain(reward))),
  ]);
  fill("length-figure", ...figure((width) => lengthPlot(data.figures.length, width),
    `${plural(responses, "response")}. Dots: mean reward; boxes: the middle half with its median; lines: from the ` +
      "10% to the 90% quantile.",
    table("Rewards by length", heads, rows)));
  const correlation = ({ value, interval }) => `${plain(value, 3)} ${range(interval, (end) => plain(end, 3))}`;
  fill("length-summary", `Correlation of length and reward: Spearman ${correlation(spearman)}, Pearson ` +
    `${correlation(pearson)}, with bootstrap intervals.`);
  const named = [
    ["accuracy where the better response is longer", comparisons.better_longer],
    ["accuracy where the better response is shorter", comparisons.better_shorter],
    ["accuracy where both are equally long", comparisons.equally_long],
    ["the longer response has the higher reward", comparisons.longer_wins],
    ["the longer response is the better one", comparisons.longer_is_better],
  ];
  fill("length-table", table("Comparisons by length, in percent, with intervals as in Reliability",
    [["part"], ...SHARES, ["%", 2]], named.map(([name, counted]) => [name, ...share(counted)])));
}

// Returns a text of an item with what is known of it.
function excerpt(className, title, known, content) {
  const parts = content ? [...known, plural(content.chars, "character")] : known;
  const cut = content?.cut > 0 ? [`the last ${count(content.cut)} ${are(content.cut)} left out`] : [];
  const heading = element("h3", "", title, element("span", "", [...parts, ...cut].join(", ")));
  if (!content) return element("div", `text ${className}`, heading, element("p", "note", "Its text cannot be read."));
  const body = reachable(element("pre", "", content.text), title);
  body.dir = "auto";
  return element("div", `text ${className}`, heading, body);
}

function miss({ index, id, category, margin, turns_left_out: leftOut, prompt, better, worse }, at) {
  const names = [id, category, `item ${index}`].filter(isNumber);
  const place = element("span", "place", names[0], element("span", "", names.slice(1).join(", ")));
  const figures = element("span", "figures", element("strong", "", plain(margin)),
    ` = ${plain(better.reward)} \u2212 ${worse.reward < 0 ? `(${plain(worse.reward)})` : plain(worse.reward)}`);
  const details = element("details", "miss", element("summary", "", place, figures));
  // Made when it is opened, as most are not.
  const open = () => {
    if (details.childElementCount > 1) return;
    const note = leftOut > 0 ? [element("p", "note", `${plural(leftOut, "earlier turn")} left out.`)] : [];
    const turns = prompt.map((turn) => excerpt("turn", turn.role, [], turn));
    const side = (className, name, { reward, response, text }) =>
      excerpt(className, `${name} response`, [`reward ${plain(reward)}`, `response ${response}`], text);
    details.append(element("div", "", ...note, ...turns,
      element("div", "sides", side("better", "Better", better), side("worse", "Worse", worse))));
  };
  details.addEventListener("toggle", open);
  if (at === 0) details.open = true;
  return element("li", "", details);
}

function showMisses() {
  const { items, rows } = data.figures.misses;
  const kept = rows.length < items ? `These are the worst ${rows.length} of them` : "These are all of them";
  fill("misses-summary", items === 0 ? "No item has a comparison that is wrong or tied."
    : `Items with a comparison that is wrong or tied: ${count(items)}. ${kept}, by the margin of the worst comparison ` +
      "of each.");
  byId("misses-list").append(...rows.map(miss));
  const button = byId("misses-open");
  button.hidden = rows.length < 2;
  button.addEventListener("click", () => {
    const all = [...document.querySelectorAll(".miss")];
    const open = button.textContent === "Open all";
    for (const details of all) details.open = open;
    button.textContent = open ? "Close all" : "Open all";
  });
}

function showFailures() {
  const { failed, errors } = data;
  if (failed === 0) return;
  byId("failures").hidden = false;
  const kept = errors.length < failed ? ` The first ${errors.length} are shown.` : "";
  fill("failures-summary", `Items with an error instead of scores: ${count(failed)}.${kept}`);
  const row = ({ index, kind, message, place, hint }) =>
    [index, kind, prose([message, place && `at ${place}`, hint && `hint: ${hint}`].filter(Boolean).join("; "))];
  const heads = [["item"], ["kind", 1, "text"], ["error", 1, "text"]];
  fill("failures-table", table("Errors by item", heads, errors.map(row), "wide"));
}

function showRun() {
  const { run, baseline } = data;
  const rows = [["benchmark", data.benchmark], ["file", run.file], ["model", run.model], ["results", run.results],
    ["baseline", baseline && prose(baseline.file)], ["options", run.options.join(" ")], ["kudos", run.version]];
  fill("run-table", table("Files and options", [["name"], ["value", 1, "text"]], rows.filter(([, value]) => value)));
}

function showContents() {
  const sections = [...document.querySelectorAll("main > section:not([hidden])")];
  const link = (section) => {
    const anchor = element("a", "", section.querySelector("h2").textContent);
    anchor.href = `#${section.id}`;
    return element("li", "", anchor);
  };
  byId("contents").append(...sections.map(link));
}

for (const show of [showSummary, showResults, showBaseline, showMargins, showReliability, showLength, showMisses,
  showFailures, showRun, showContents]) show();
drawPlots();
new ResizeObserver(drawPlots).observe(document.body);

