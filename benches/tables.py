#!/usr/bin/env python3
"""Writes the tables of the engine beside its baselines: python3 benches/tables.py [--check] [ROOT]     # the standard library alone

The lines between `<!-- baselines -->` and `<!-- end of baselines -->` follow from records in benches/record that have rounds
(`bench --compare NAME=PYTHON`): in benches/README.md each device's newest record, in README.md the newest of all. Each test is that of the
last report in its arithmetic, and only sides of one arithmetic are beside each other. --check writes nothing and exits with 1 where a
page differs from the records. ROOT is the repository.
"""
import json
import pathlib
import statistics
import sys

BEGIN, END = "<!-- baselines -->\n", "<!-- end of baselines -->\n"
ARITHMETIC = {"float32": "f32", "bfloat16": "bf16"}
PEERS = ["vllm", "openvino", "onnxruntime", "transformers"]


def rounds_of(record):
    """{(test, arithmetic): (sides of that arithmetic, the engine first, tokens of a run)}"""
    measured = {}
    for report in record.get("reports", []):
        for row in report.get("rows", []):
            sides = (row.get("rounds") or {}).get("sides", [])
            alike = [side for side in sides if side["dtype"] == sides[0]["dtype"]]
            if len(alike) > 1:
                measured[row["test"], ARITHMETIC[alike[0]["dtype"]]] = alike, row["sequences"] * row["tokens"]
    return measured


def when(record):
    """The sort key of a record: its date, then the latest time of its reports."""
    return record["date"], max((report["unix_seconds"] for report in record.get("reports", [])), default=0)


def records(root):
    """[(path, record)]: each device's newest record that has rounds, oldest first."""
    newest = {}
    for path in sorted((root / "benches" / "record").glob("*/*.json")):
        record = json.loads(path.read_text())
        device = path.parent
        if rounds_of(record) and (device not in newest or when(newest[device][1]) <= when(record)):
            newest[device] = path, record
    return sorted(newest.values(), key=lambda found: when(found[1]))


def rate(side, tokens):
    return statistics.median(tokens / sample["seconds"] for sample in side["samples"])


def table(heading, rows):
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def whole(root, path, record):
    """Every side of every test, the fastest first."""
    rows, slots, disturbed = [], 0, 0
    for (test, arithmetic), (sides, tokens) in rounds_of(record).items():
        engine = rate(sides[0], tokens)
        for index, side in enumerate(sorted(sides, key=lambda side: -rate(side, tokens))):
            slots += side["repeated_slots"]
            disturbed += side["disturbed_slots"]
            memory = side["peak_memory_bytes"]
            rows.append([
                f"{test}, {arithmetic}" if index == 0 else "",
                side["side"],
                f"{rate(side, tokens):,.0f}",
                "" if side is sides[0] else f"{engine / rate(side, tokens):.2f} x",
                f"{side['rewards_apart_mean']:.1e} ({side['rewards_apart_max']:.1e})",
                f"{memory / 2**20:,.0f} MiB" if memory else "-",
                side["settings"],
            ])
    engines = {side["engine"]: None for sides, _ in rounds_of(record).values() for side in sides}
    name = path.relative_to(root / "benches")
    return (
        f"`{name}`: {record['device']}; {'; '.join(engines)}. Medians of all rounds; slots were repeated {slots} times, and {disturbed} stayed\n"
        "disturbed. Rewards apart are distances from the engine's in f32, mean (largest).\n\n"
        + table(["test", "side", "tokens/s", "kudos is", "rewards apart", "peak memory", "settings"], rows)
    )


def front(root, path, record):
    """Tokens a second alone, a column for each side."""
    measured = rounds_of(record)
    names = ["kudos", *(name for name in PEERS if any(side["side"] == name for sides, _ in measured.values() for side in sides))]
    rows = []
    for (test, arithmetic), (sides, tokens) in measured.items():
        rates = {side["side"]: f"{rate(side, tokens):,.0f}" for side in sides}
        rows.append([f"{test}, {arithmetic}", *(rates.get(name, "-") for name in names)])
    return f"On {record['device']}, at {record['commit']}:\n\n" + table(["tokens/s", *names], rows)


def pages(root):
    """{path of a page: (its text, the text that follows from the records)}"""
    found = records(root)
    everything = "\n".join(whole(root, path, record) for path, record in found)
    wanted = {
        "benches/README.md": everything or "No record has rounds yet.\n",
        "README.md": front(root, *found[-1]) if found else "",
    }
    texts = {}
    for name, content in wanted.items():
        text = (root / name).read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        texts[root / name] = text, before + BEGIN + content + END + after
    return texts


def main():
    arguments = sys.argv[1:]
    check = "--check" in arguments
    roots = [argument for argument in arguments if argument != "--check"]
    root = pathlib.Path(roots[0]) if roots else pathlib.Path(__file__).resolve().parent.parent
    wrong = [(path, text) for path, (before, text) in pages(root).items() if before != text]
    if check and wrong:
        names = ", ".join(str(path.relative_to(root)) for path, _ in wrong)
        sys.exit(f"tables differ from the records; write them with `make plots`: {names}")
    for path, text in wrong:
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
