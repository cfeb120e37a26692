
// plots.js: the plots of the page as SVG, from numbers that kudos has computed. Each function returns
// an image of a given width, with a name and a description for readers who do not see it.

const SVG = "http://www.w3.org/2000/svg";
const LINE_HEIGHT = 16;
const BOTTOM = 36; // Below the axis: its numbers and its name.

// Returns an SVG element; strings become text.
function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

let images = 0;

// Returns an image with its name and description.
function image(width, height, title, description, ...children) {
  const id = `image-${(images += 1)}`;
  const attributes = { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" };
  return svg("svg", { ...attributes, "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-desc` },
    svg("title", { id: `${id}-title` }, title), svg("desc", { id: `${id}-desc` }, description), ...children);
}

const line = (className, x1, y1, x2, y2) => svg("line", { class: className, x1, y1, x2, y2 });
const text = (className, x, y, anchor, ...children) =>
  svg("text", { class: className, x, y, "text-anchor": anchor }, ...children);

// ---- Scales ----

// Returns the round numbers within a range, about so many.
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw * (1 - 1e-9)) * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

// Returns the numbers 1, 2 and 5 times a power of ten within a range, or powers alone where these are many.
function logTicks(low, high) {
  const powers = Array.from({ length: 20 }, (_, power) => 10 ** power);
  const within = (values) => values.filter((value) => value >= low && value <= high);
  const fine = within(powers.flatMap((power) => [power, 2 * power, 5 * power]));
  return fine.length > 8 ? within(powers) : fine;
}

// Returns a range with space at its ends.
function padded(low, high) {
  const space = (high - low) / 20 || Math.abs(low) || 1;
  return [low - space, high + space];
}

function linear([low, high], [from, to]) {
  const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
  return Object.assign(scale, { from, to, ticks: (count) => ticks(low, high, count) });
}

function logarithmic([low, high], [from, to]) {
  const inner = linear([Math.log(low), Math.log(high)], [from, to]);
  return Object.assign((value) => inner(Math.log(value)), { from, to, ticks: () => logTicks(low, high) });
}

// The fewest digits that tell round numbers apart.
const tick = (value) => minus(Number(value.toPrecision(6)).toString());
const percentTick = (value) => tick(100 * value);
const minus = (shown) => shown.replace(/^-/, "\u2212");

// ---- Axes ----

// Returns a horizontal axis at height y with vertical grid lines up to `top`.
function xAxis(scale, y, top, name, show = tick, count = Math.max(2, (scale.to - scale.from) / 80)) {
  const marks = scale.ticks(count).flatMap((value) => [
    line("grid", scale(value), top, scale(value), y),
    text("muted", scale(value), y + LINE_HEIGHT, "middle", show(value)),
  ]);
  const label = text("muted", scale.to, y + BOTTOM - 4, "end", name);
  return [...marks, line("axis", scale.from, y, scale.to, y), label];
}

// Returns a vertical axis at x with horizontal grid lines up to `right`, and its name above it.
function yAxis(scale, x, right, name, show = tick, isShown = () => true) {
  const marks = scale.ticks(5).filter(isShown).flatMap((value) => [
    line("grid", x, scale(value), right, scale(value)),
    text("muted", x - 6, scale(value) + 4, "end", show(value)),
  ]);
  return [...marks, text("muted", 0, scale.to - 10, "start", name)];
}

// ---- Plots ----

const CHAR_WIDTH = 6.6;

// Returns a text that fits into a width; the whole of it is in the tables.
function fitted(name, width) {
  const chars = Math.floor(width / CHAR_WIDTH);
  return name.length > chars ? `${name.slice(0, chars - 1)}\u2026` : name;
}

// Returns the whole tenths that all values and intervals of some rows are within.
function tenths(rows) {
  const ends = rows.flatMap(({ value, interval }) => [value, ...(interval ?? [])]).filter((end) => end !== null);
  const low = Math.floor(Math.min(...ends, 0.9) * 10 + 1e-9) / 10;
  return [low, Math.max(Math.ceil(Math.max(...ends) * 10 - 1e-9) / 10, low + 0.1)];
}

// Returns dots with whiskers: rows of a name, a value and an interval, in fractions of a range.
function dotPlot(rows, range, width, title) {
  const longest = Math.max(...rows.map(({ name }) => name.length)) * CHAR_WIDTH + 12;
  const left = Math.min(longest, width * 0.38);
  const scale = linear(range, [left, width - 52]);
  const rowHeight = 22;
  const bottom = 8 + rows.length * rowHeight;
  const marks = rows.flatMap(({ name, value, interval }, index) => {
    const y = 8 + (index + 0.5) * rowHeight;
    const weight = TOTALS.has(name) ? "strong" : "";
    const label = text(weight, 0, y + 4, "start", fitted(name, left - 8));
    if (value === null) return [label, text("muted", width, y + 4, "end", "\u2013")];
    const shown = text(weight, width, y + 4, "end", (100 * value).toFixed(1));
    const whisker = interval ? [line("whisker", scale(interval[0]), y, scale(interval[1]), y)] : [];
    return [label, ...whisker, svg("circle", { class: "dot", cx: scale(value), cy: y, r: 4.5 }), shown];
  });
  const described = rows.map(({ name, value }) => `${name} ${percent(value)}`);
  return image(width, bottom + BOTTOM, title, `In percent, with intervals: ${described.join(", ")}.`,
    ...xAxis(scale, bottom, 4, "%", percentTick, Math.max(2, (width - 52 - left) / 56)), ...marks);
}

// Returns a hatching for what is wrong, which does not depend on colours.
function hatching(id) {
  return svg("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { class: "hatch-ground", width: 6, height: 6 }), line("hatch-line", 0, 0, 0, 6));
}

// Returns the histogram of margins.
function marginPlot({ bins, right, wrong, ties }, width) {
  const [left, top, height] = [44, 28, 220];
  const x = linear([bins[0].from, bins.at(-1).to], [left, width - 8]);
  const most = Math.max(...bins.map(({ count }) => count));
  const y = linear([0, most], [top + height, top]);
  const pattern = `hatch-${images}`;
  const bars = bins.filter(({ count }) => count > 0).map(({ from, to, count }) => {
    const wide = Math.max(x(to) - x(from) - 1, 0.5);
    const place = { x: x(from) + 0.5, y: y(count), width: wide, height: y(0) - y(count) };
    return to <= 0 ? svg("rect", { class: "bar-wrong", fill: `url(#${pattern})`, ...place })
      : svg("rect", { class: "bar-right", ...place });
  });
  // Both names fit beside the line at 0, wherever that is.
  const zero = x(0);
  const at = Math.min(Math.max(zero, 100), width - 100);
  return image(width, top + height + BOTTOM, "Histogram of margins",
    `${count(right.count)} comparisons are right, with a mean margin of ${plain(right.mean)}, and ` +
      `${count(wrong.count)} are wrong, with ${plain(wrong.mean)}; ${count(ties)} are ties.`,
    hatching(pattern), ...xAxis(x, y(0), top, "margin"),
    ...yAxis(y, left, width - 8, "", tick, Number.isInteger), ...bars,
    line("zero", zero, top - 8, zero, y(0)),
    text("wrong-text", at - 8, 14, "end", `wrong ${count(wrong.count)}`),
    text("right-text", at + 8, 14, "start", `right ${count(right.count)}`));
}

// Returns the accuracy of comparisons by the size of their margin, beside the model's probability.
function reliabilityPlot({ bins }, width) {
  const [left, top, height] = [44, 28, 260];
  const lows = bins.map(({ accuracy }) => accuracy.interval[0]);
  const x = linear([0, bins.at(-1).margin * 1.08], [left, width - 12]);
  const y = linear([Math.floor(Math.min(0.5, ...lows) * 10) / 10, 1], [top + height, top]);
  const within = (margin) => Math.min(x(margin), x.to);
  const points = Array.from({ length: 101 }, (_, index) => x.from + ((x.to - x.from) * index) / 100);
  const margin = (at) => ((at - x.from) / (x.to - x.from)) * bins.at(-1).margin * 1.08;
  const curve = points.map((at) => `${at.toFixed(1)},${y(1 / (1 + Math.exp(-margin(at)))).toFixed(1)}`);
  const marks = bins.flatMap(({ from, to, margin, accuracy: { value, interval } }) => [
    line("extent", within(from), y(value), within(to), y(value)),
    line("whisker", x(margin), y(interval[0]), x(margin), y(interval[1])),
    svg("circle", { class: "dot", cx: x(margin), cy: y(value), r: 4.5 }),
  ]);
  const described = bins.map(({ margin, expected, accuracy }) =>
    `margin ${plain(margin)}: ${percent(accuracy.value)}, the model ${percent(expected)}`);
  return image(width, top + height + BOTTOM, "Accuracy by the size of the margin", `${described.join("; ")}.`,
    ...xAxis(x, top + height, top, "|margin|"), ...yAxis(y, left, width - 12, "accuracy, %", percentTick),
    line("axis", left, y(0.5), width - 12, y(0.5)),
    svg("polyline", { class: "curve", points: curve.join(" ") }), ...marks,
    text("muted", x.to, y(1) - 10, "end", "dashed: sigmoid(|margin|)"));
}

// Returns rewards by length: their mean, and their middle halves and four fifths.
function lengthPlot({ bins }, width) {
  const [left, top, height] = [48, 28, 240];
  const chars = bins.map((bin) => Math.max(bin.chars, 1));
  const space = Math.max(1.3, Math.sqrt((6 * chars[0]) / chars.at(-1)));
  const x = logarithmic([chars[0] / space, chars.at(-1) * space], [left, width - 8]);
  const ends = bins.flatMap(({ quantiles, mean }) => [quantiles[0], quantiles[4], mean]);
  const y = linear(padded(Math.min(...ends), Math.max(...ends)), [top + height, top]);
  const marks = bins.flatMap(({ mean, quantiles }, index) => {
    const at = x(chars[index]);
    const [low, lower, median, upper, high] = quantiles.map(y);
    return [
      line("range", at, low, at, high),
      svg("rect", { class: "box", x: at - 4, y: upper, width: 8, height: Math.max(lower - upper, 1) }),
      line("median", at - 4, median, at + 4, median),
      svg("circle", { class: "dot", cx: at, cy: y(mean), r: 4.5 }),
    ];
  });
  const described = bins.map(({ from, to, mean }) => `${count(from)} to ${count(to)} characters: ${plain(mean)}`);
  return image(width, top + height + BOTTOM, "Reward by length", `Mean rewards. ${described.join("; ")}.`,
    ...xAxis(x, top + height, top, "characters (logarithmic)", count), ...yAxis(y, left, width - 8, "reward"),
    ...marks);
}

