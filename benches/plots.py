#!/usr/bin/env python3
"""Draws what records hold: python3 benches/plots.py [--check]      # the standard library alone

For each device the newest record in which Hugging Face transformers was measured becomes plots/DEVICE-transformers.svg:
tokens a second of each workload, by side. A record of one report is never mixed with another's. The same records give the
same bytes; --check writes nothing and ends with 1 where a committed plot is another one, or of no record.
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
    """The same of reports of `bench`, where transformers is in one of them: each side's median over all its runs."""
    runs = {}
    for report in record["reports"]:
        for row in report.get("rows", []):
            shared = f", {row['shared_prefix']} shared by {row['responses']}" if row["shared_prefix"] else ""
            workload = f"{report['model']['name'].split('/')[-1]}: {row['sequences']} x {row['tokens']}{shared}"
            sides = runs.setdefault(workload, {})
            tokens = row["sequences"] * row["tokens"]
            measured = {f"kudos {report['cpu_math'] if report['device'].startswith('CPU') else 'GPU'}": row["samples"]}
            for baseline in row.get("baselines", []):
                measured[f"transformers {baseline['way']} {baseline['dtype']}"] = baseline["samples"]
            for side, samples in measured.items():
                sides.setdefault(side, []).extend(tokens / sample["seconds"] for sample in samples)
    return {
        workload: {side: statistics.median(rates) for side, rates in sides.items()}
        for workload, sides in runs.items() if any(side.startswith("transformers") for side in sides)
    }


def rates_of(record):
    return rates_of_reports(record) if "record" in record else rates_of_first_kind(record)


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def bars(device, record, rates):
    most = max(rate for sides in rates.values() for rate in sides.values())
    lines, y = [text(0, 14, "Tokens a second, of every sequence as if nothing were shared", "head")], 30
    for workload, sides in rates.items():
        y += 14
        lines.append(text(0, y, workload))
        y += 6
        for side, rate in sides.items():
            length = round(BAR_WIDTH * rate / most, 1)
            kind = "kudos" if side.startswith("kudos") else "other"
            lines += [
                text(LABEL_WIDTH - 8, y + 13, side, "small", "end"),
                f'<rect x="{LABEL_WIDTH}" y="{y + 2}" width="{length}" height="{ROW_HEIGHT - 5}" rx="2" class="{kind}"/>',
                text(LABEL_WIDTH + length + 6, y + 13, f"{rate:,.0f}", "small"),
            ]
            y += ROW_HEIGHT
        y += 6
    y += 12
    lines.append(text(0, y, f"{device}, {record['date']}, commit {record['commit']}", "small"))
    size = f'width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}"'
    title = f"<title>kudos and Hugging Face transformers on {escape(device)}</title>"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', title, f"<style>{STYLE}</style>", *lines, "</svg>", ""])


def when(record):
    """Records of one day go by what they say of the time, where they do."""
    return record["date"], max((report["unix_seconds"] for report in record.get("reports", [])), default=0)


def plots():
    """{file name: SVG}"""
    drawn = {}
    for folder in sorted(path for path in (HERE / "record").iterdir() if path.is_dir()):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        records = [record for record in records if rates_of(record)]
        if records:
            newest = max(records, key=when)
            device = newest.get("device") or newest["cpu"]
            drawn[f"{folder.name}-transformers.svg"] = bars(device, newest, rates_of(newest))
    return drawn


def main():
    folder, drawn = HERE / "plots", plots()
    there = {path.name: path.read_text() for path in folder.glob("*.svg")}
    if "--check" in sys.argv[1:]:
        wrong = sorted(name for name in there.keys() | drawn.keys() if there.get(name) != drawn.get(name))
        if wrong:
            sys.exit(f"not what the records give, `make plots` draws them: {', '.join(wrong)}")
        return
    folder.mkdir(exist_ok=True)
    for name in there.keys() - drawn.keys():
        (folder / name).unlink()
    for name, svg in drawn.items():
        (folder / name).write_text(svg)
        print(folder / name)


if __name__ == "__main__":
    main()
