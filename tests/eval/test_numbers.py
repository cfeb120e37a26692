"""`kudos eval` against the second implementation in benchmarks.py, on random scores with ties."""

import json
import os
import subprocess

import numpy as np
import pytest

import benchmarks

# Both compute in f64, in different orders of addition.
TOLERANCE = 1e-12

ITEMS = 160


def evaluate(folder, benchmark, items, results, *options):
    """Returns the report of results."""
    for name, lines in [("items", items), ("results", results)]:
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [os.environ["KUDOS"], "eval", benchmark, folder / "items", "--scores", folder / "results", "--json"]
    run = subprocess.run([*command, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def compare(report, expected):
    """Requires each expected number, and no other row."""
    for table, rows in expected.items():
        assert report["tables"][table].keys() == rows.keys()
        for row, columns in rows.items():
            for column, value in columns.items():
                found = report["tables"][table][row][column]["value"]
                assert abs(found - value) <= TOLERANCE, (table, row, column, found, value)


def judgments(values):
    return [{"judgment": {"scores": values[:2]}}, {"judgment": {"scores": values[2:]}}]


# Of each benchmark: how many scores an item has, the fields that hold them, and the options with the arguments that
# mean the same.
HALF = [([], {}), (["--ties", "half"], {"half": True})]
KINDS = {
    "rm-bench": (
        lambda item: 6,
        lambda values: {"score_chosen": values[:3], "score_rejected": values[3:]},
        HALF,
    ),
    "judgebench": (
        lambda item: 4,
        lambda values: {"judgments": judgments(values)},
        [([], {}), (["--single-game"], {"single": True})],
    ),
    "rewardbench": (
        lambda item: 2,
        lambda values: {"scores_chosen": values[0], "scores_rejected": values[1]},
        HALF,
    ),
    "rewardbench2": (
        lambda item: item["total_completions"],
        lambda values: {"scores": values},
        [([], {}), (["--skip-zero-spread"], {"skip_zero_spread": True})],
    ),
    "helpsteer3": (lambda item: 2, lambda values: {"reward1": values[0], "reward2": values[1]}, HALF),
    "preferences": (
        lambda item: 2,
        lambda values: {"reward_chosen": values[0], "reward_rejected": values[1]},
        HALF,
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("benchmark", KINDS)
def test_numbers_equal_the_second_implementation(tmp_path, benchmark, seed):
    random = np.random.default_rng(seed)
    count, fields, options = KINDS[benchmark]
    name = benchmark.replace("-", "_")
    items = getattr(benchmarks, f"{name}_items")(random, ITEMS)
    scored = [benchmarks.scores(random, count(item)) for item in items]
    results = [item | fields(values) for item, values in zip(items, scored)]
    tables = []
    for arguments, meaning in options:
        report = evaluate(tmp_path, benchmark, items, results, *arguments)
        assert report["ties"]["count"] > 0
        compare(report, getattr(benchmarks, name)(items, scored, **meaning))
        tables.append(report["tables"])
    assert tables[0] != tables[1], "the option changes no number of these items"


def test_a_baseline_equals_the_second_implementation(tmp_path):
    random = np.random.default_rng(7)
    items = benchmarks.rewardbench_items(random, ITEMS)
    ours, theirs = ([benchmarks.scores(random, 2) for _ in items] for _ in range(2))
    _, fields, _ = KINDS["rewardbench"]
    other = tmp_path / "other"
    other.write_text("".join(json.dumps(item | fields(values)) + "\n" for item, values in zip(items, theirs)))
    results = [item | fields(values) for item, values in zip(items, ours)]
    baseline = evaluate(tmp_path, "rewardbench", items, results, "--baseline", other)["baseline"]
    right = np.array([[a > b for a, b in scored] for scored in (ours, theirs)])
    only = [int((right[i] & ~right[1 - i]).sum()) for i in range(2)]
    assert [baseline["only_ours"], baseline["only_theirs"]] == only
    assert abs(baseline["agreement"] - (right[0] == right[1]).mean()) <= TOLERANCE
    assert abs(baseline["mcnemar"]["p"] - benchmarks.mcnemar(*only)) <= TOLERANCE
    overall = [benchmarks.rewardbench(items, scored)["section"]["overall"]["accuracy"] for scored in (ours, theirs)]
    assert abs(baseline["difference"]["value"] - (overall[0] - overall[1])) <= TOLERANCE


def test_an_interval_agrees_with_a_bootstrap_of_numpy(tmp_path):
    random = np.random.default_rng(11)
    items = benchmarks.preferences_items(random, 400)
    for item in items:
        item["source"] = "one"
    scored = [benchmarks.scores(random, 2) for _ in items]
    _, fields, _ = KINDS["preferences"]
    report = evaluate(tmp_path, "preferences", items, [i | fields(v) for i, v in zip(items, scored)])
    chosen, rejected = np.array(scored).T
    draws = random.integers(0, 400, (10_000, 400))
    for column, values in [("accuracy", (chosen > rejected) * 1.0), ("mean margin", chosen - rejected)]:
        expected = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
        found = report["tables"]["group"]["overall"][column]["interval"]
        # The standard error of such a percentile is 2.7 / 100 of the statistic's own, for 10,000 draws; both have it.
        error = values.std() / 400**0.5
        assert np.abs(found - expected).max() <= 0.2 * error, (column, found, expected)
