#!/usr/bin/env python3
"""Writes the tables of the engine beside its baselines: python3 benches/tables.py [--check] [ROOT]     # the standard library alone

The lines between `<!-- baselines -->` and `<!-- end of baselines -->` follow from records in benches/record that have rounds
(`bench --compare NAME=PYTHON`): in benches/README.md those of each device, in README.md those of the device that was measured last. Each
test is that of the last report in its arithmetic, and only sides of one arithmetic are beside each other. --check writes nothing and
exits with 1 where a page differs from the records. ROOT is the repository.
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


def devices(root):
    """[{(test, arithmetic): (path, record, sides, tokens)}]: the newest rounds of each device, the device that was measured last at the end"""
    found = {}
    paths = (root / "benches" / "record").glob("*/*.json")
    every = sorted(((path, json.loads(path.read_text())) for path in paths), key=lambda one: (when(one[1]), one[0]))
    for path, record in every:
        for key, (sides, tokens) in rounds_of(record).items():
            # The device that was measured last goes to the end.
            tests = found[path.parent] = found.pop(path.parent, {})
            tests[key] = path, record, sides, tokens
    return list(found.values())


def rate(side, tokens):
    return statistics.median(tokens / sample["seconds"] for sample in side["samples"])


def ratios(engine, side):
    """How many times as fast the engine is, in each round: the ratio of the medians of a round's runs."""
    rounds = [{}, {}]
    for seconds, of in zip(rounds, [engine, side]):
        for sample in of["samples"]:
            seconds.setdefault(sample["round"], []).append(sample["seconds"])
    return [statistics.median(rounds[1][index]) / statistics.median(rounds[0][index]) for index in sorted(rounds[0])]


def ratio(engine, side, tokens):
    low, high = min(ratios(engine, side)), max(ratios(engine, side))
    return f"{rate(engine, tokens) / rate(side, tokens):.2f} x ({low:.2f} to {high:.2f})"


def table(heading, rows):
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def whole(root, tests):
    """Every side of every test, the fastest first."""
    rows, slots, disturbed = [], 0, 0
    for (test, arithmetic), (_, _, sides, tokens) in tests.items():
        for index, side in enumerate(sorted(sides, key=lambda side: -rate(side, tokens))):
            slots += side["repeated_slots"]
            disturbed += side["disturbed_slots"]
            memory = side["peak_memory_bytes"]
            rows.append([
                f"{test}, {arithmetic}" if index == 0 else "",
                side["side"],
                f"{rate(side, tokens):,.0f}",
                "" if side is sides[0] else ratio(sides[0], side, tokens),
                f"{side['rewards_apart_mean']:.1e} ({side['rewards_apart_max']:.1e})",
                f"{memory / 2**20:,.0f} MiB" if memory else "-",
                side["settings"],
            ])
    engines = {side["engine"]: None for _, _, sides, _ in tests.values() for side in sides}
    names = {f"`{path.relative_to(root / 'benches')}`": None for path, _, _, _ in tests.values()}
    device = next(iter(tests.values()))[1]["device"]
    return (
        f"{', '.join(names)}: {device}; {'; '.join(engines)}. Medians of all rounds; slots were repeated {slots} times, and {disturbed} stayed\n"
        "disturbed. Ratios are of all rounds (of single rounds, from the lowest to the highest). Rewards apart are distances from the\n"
        "engine's in f32, mean (largest).\n\n"
        + table(["test", "side", "tokens/s", "kudos is", "rewards apart", "peak memory", "settings"], rows)
    )


def front(tests):
    """Tokens a second alone, a column for each side."""
    of_peer = {side["side"] for _, _, sides, _ in tests.values() for side in sides}
    names = ["kudos", *(name for name in PEERS if name in of_peer)]
    rows = []
    for (test, arithmetic), (_, _, sides, tokens) in tests.items():
        rates = {side["side"]: f"{rate(side, tokens):,.0f}" for side in sides}
        rows.append([f"{test}, {arithmetic}", *(rates.get(name, "-") for name in names)])
    commits = {record["commit"]: None for _, record, _, _ in tests.values()}
    device = next(iter(tests.values()))[1]["device"]
    return f"On {device}, at {' and '.join(commits)}:\n\n" + table(["tokens/s", *names], rows)


def pages(root):
    """{path of a page: (its text, the text that follows from the records)}"""
    found = devices(root)
    everything = "\n".join(whole(root, tests) for tests in found)
    wanted = {
        "benches/README.md": everything or "No record has rounds yet.\n",
        "README.md": front(found[-1]) if found else "",
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
