#!/usr/bin/env python3
"""Draws the records: python3 benches/plots.py [--check]      # the standard library alone

For each device, each from the newest record that has its values:

    plots/DEVICE-transformers.svg   tokens a second of each workload, by side, where Hugging Face transformers was measured
    plots/DEVICE-length.svg         tokens a second by the sequences' length, three lengths or more
    plots/DEVICE-sharing.svg        tokens a second by the number of responses to a prompt, three or more of them
    plots/DEVICE-roof.svg           each class of ops, as a share of what the device could do

Records are never mixed in one plot. Equal records give equal bytes; --check writes nothing and exits with 1 where a
committed plot differs from the records.
"""
import json
import pathlib
import statistics
import sys
from html import escape

HERE = pathlib.Path(__file__).resolve().parent
LABEL_WIDTH, BAR_WIDTH, ROW_HEIGHT, WIDTH = 190, 380, 20, 680

STYLE = """\
text{font:12px system-ui,sans-serif;fill:#1f2328}.small{font-size:11px;fill:#59636e}.head{font-weight:600}
.kudos{fill:#2f6fdb}.other{fill:#8c959f}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.kudos{fill:#5b9bff}.other{fill:#6e7681}}"""


def rates_of_first_kind(record):
    """{workload: {side: tokens a second}} of a record that has a summary: each side's fastest run."""
    rates = {}
    for row in record["summary"]:
        rates.setdefault(row["workload"], {})[row["side"]] = row["tokens_per_second"]
    return rates


def rates_of_reports(record):
    """Like `rates_of_first_kind`, from reports of `bench` of which one has transformers: each side's median over all its runs.
    Where one arithmetic was measured beside transformers, only those runs count."""
    runs, beside = {}, set()
    for compared in (True, False):
        for report in record["reports"]:
            side = f"kudos {report['cpu_math'] if report['device'].startswith('CPU') else 'GPU'}" if "rows" in report else ""
            for row in report.get("rows", []):
                shared = f", {row['shared_prefix']} shared by {row['responses']}" if row["shared_prefix"] else ""
                workload = f"{report['model']['name'].split('/')[-1]}: {row['sequences']} x {row['tokens']}{shared}"
                if bool(row["baselines"]) is not compared or (workload, side) in beside and not compared:
                    continue
                measured = {side: row["samples"]}
                for baseline in row["baselines"]:
                    beside.add((workload, side))
                    measured[f"transformers {baseline['way']} {baseline['dtype']}"] = baseline["samples"]
                for name, samples in measured.items():
                    rates = [row["sequences"] * row["tokens"] / sample["seconds"] for sample in samples]
                    runs.setdefault(workload, {}).setdefault(name, []).extend(rates)
    return {
        workload: {side: statistics.median(rates) for side, rates in sides.items()}
        for workload, sides in runs.items() if any(side.startswith("transformers") for side in sides)
    }


def rates_of(record):
    return rates_of_reports(record) if "record" in record else rates_of_first_kind(record)


def rows_of(record):
    """(model and arithmetic, row) of every test of the engine, first report to last."""
    for report in record.get("reports", []):
        on_cpu = (report.get("device") or "").startswith("CPU")
        for row in report.get("rows", []):
            if "tokens" in row:
                yield report["model"]["name"].split("/")[-1] + (f", {report['cpu_math']}" if on_cpu else ""), row


def rates_by(record, place_of, name):
    """{heading: {name of a place: tokens a second, the median over all its runs}}, where there are three places or more.
    `place_of` a row is (the heading after the model's name, place), or None. Runs beside transformers are left out."""
    runs = {}
    for model, row in rows_of(record):
        if (place := place_of(row)) and not row["baselines"]:
            rates = [row["sequences"] * row["tokens"] / sample["seconds"] for sample in row["samples"]]
            runs.setdefault(model + place[0], {}).setdefault(place[1], []).extend(rates)
    return {
        heading: {name(place): statistics.median(rates) for place, rates in sorted(places.items())}
        for heading, places in runs.items() if len(places) >= 3
    }


def rates_by_length(record):
    def length(row):
        return None if row["shared_prefix"] else ("", row["tokens"])

    return rates_by(record, length, lambda tokens: f"{tokens:,} tokens each")


def rates_by_sharing(record):
    def responses(row):
        prompt = row["shared_prefix"]
        return (f": prompt of {prompt}, responses of {row['tokens'] - prompt}", row["responses"]) if prompt else None

    return rates_by(record, responses, lambda count: "1 response" if count == 1 else f"{count} responses")


def shares_of_roof(record):
    """{workload: {class of ops: percent of its roof}} of each arithmetic's first profiled test, for classes that took at least
    a hundredth of its time."""
    shares = {}
    for model, row in rows_of(record):
        ops = [op for op in row.get("classes", []) if 100 * op["seconds"] >= row["profile_seconds"]]
        known = {op["class"]: 100 * op["roof_share"] for op in ops if op["roof_share"] is not None}
        if known:
            shares.setdefault(model, (f"{model}: {row['sequences']} x {row['tokens']}", known))
    return dict(shares.values())


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def bars(about, device, record, groups, most=None):
    """An SVG of `groups`, {heading: {label: value}}: values as bars; a bar of `most` has the full length."""
    title, head = about
    most = most or max(value for rows in groups.values() for value in rows.values())
    lines, y = [text(0, 14, head, "head")], 30
    for heading, rows in groups.items():
        y += 14
        lines.append(text(0, y, heading))
        y += 6
        for label, value in rows.items():
            length = round(BAR_WIDTH * value / most, 1)
            kind = "other" if label.startswith("transformers") else "kudos"
            lines += [
                text(LABEL_WIDTH - 8, y + 13, label, "small", "end"),
                f'<rect x="{LABEL_WIDTH}" y="{y + 2}" width="{length}" height="{ROW_HEIGHT - 5}" rx="2" class="{kind}"/>',
                text(LABEL_WIDTH + length + 6, y + 13, f"{value:,.0f}", "small"),
            ]
            y += ROW_HEIGHT
        y += 6
    y += 12
    lines.append(text(0, y, f"{device}, {record['date']}, commit {record['commit']}", "small"))
    size = f'width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}"'
    lines = [f"<title>{escape(title)} on {escape(device)}</title>", f"<style>{STYLE}</style>", *lines]
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', *lines, "</svg>", ""])


def when(record):
    """The sort key of a record: its date, then the latest time of its reports."""
    return record["date"], max((report["unix_seconds"] for report in record.get("reports", [])), default=0)


NOMINAL = "Tokens a second, of every sequence as if nothing were shared"

# {suffix of the file's name: (its values from a record, (title, heading), the value of the longest bar)}
KINDS = {
    "transformers": (rates_of, ("kudos and Hugging Face transformers", NOMINAL), None),
    "length": (rates_by_length, ("Speed by the length of sequences", "Tokens a second, nothing shared"), None),
    "sharing": (rates_by_sharing, ("Speed by the number of responses to one prompt", NOMINAL), None),
    "roof": (shares_of_roof, ("Classes of ops against their roofs", "Percent of what the device could do at most"), 100),
}


def plots():
    """{file name: SVG}"""
    drawn = {}
    for folder in sorted(path for path in (HERE / "record").iterdir() if path.is_dir()):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        for kind, (values_of, about, most) in KINDS.items():
            having = [record for record in records if values_of(record)]
            if having:
                newest = max(having, key=when)
                device = newest.get("device") or newest["cpu"]
                drawn[f"{folder.name}-{kind}.svg"] = bars(about, device, newest, values_of(newest), most)
    return drawn


def main():
    folder, drawn = HERE / "plots", plots()
    there = {path.name: path.read_text() for path in folder.glob("*.svg")}
    if "--check" in sys.argv[1:]:
        wrong = sorted(name for name in there.keys() | drawn.keys() if there.get(name) != drawn.get(name))
        if wrong:
            sys.exit(f"plots differ from the records; draw them with `make plots`: {', '.join(wrong)}")
        return
    folder.mkdir(exist_ok=True)
    for name in there.keys() - drawn.keys():
        (folder / name).unlink()
    for name, svg in drawn.items():
        (folder / name).write_text(svg)
        print(folder / name)


if __name__ == "__main__":
    main()
