"""`kudos eval` against the functions of the package rewardbench 0.1.4.

The package imports what runs models (torch, transformers, fastchat, datasets); the functions that compute numbers use none
of it but `Dataset` as a container, so stand-ins are imported in their place.
"""

import importlib.util
import sys
import types
from unittest import mock

import numpy as np
import pandas
import pytest

import benchmarks
from test_numbers import ITEMS, KINDS, TOLERANCE, evaluate


class Dataset:
    """A container with the methods that the functions call."""

    def __init__(self, frame):
        self.frame = frame

    from_pandas = classmethod(lambda cls, frame: cls(frame))
    from_dict = classmethod(lambda cls, columns: cls(columns))

    def to_pandas(self):
        return self.frame


@pytest.fixture(scope="module")
def package():
    """The modules `utils` and `constants` of the package, without the rest of it."""
    folder = importlib.util.find_spec("rewardbench").submodule_search_locations[0]
    names = ["torch", "datasets", "fastchat", "fastchat.conversation", "huggingface_hub", "transformers"]
    stands_in = {name: mock.MagicMock() for name in [*names, "rewardbench.models"]}
    stands_in["datasets"].Dataset = Dataset
    # Its own __init__ imports all that runs models.
    stands_in["rewardbench"] = types.ModuleType("rewardbench")
    modules = {}
    with mock.patch.dict(sys.modules, stands_in):
        for name in ["utils", "constants"]:
            spec = importlib.util.spec_from_file_location(f"rewardbench.{name}", f"{folder}/{name}.py")
            modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[name])
    return types.SimpleNamespace(**modules)


def test_the_package_s_sections_and_weights_are_ours(package, tmp_path):
    constants = package.constants
    weights = {
        section: {subset: constants.EXAMPLE_COUNTS[subset] for subset in subsets}
        for section, subsets in constants.SUBSET_MAPPING.items()
    }
    assert weights == benchmarks.SECTIONS
    random = np.random.default_rng(21)
    items = benchmarks.rewardbench_items(random, 3 * ITEMS)
    scored = [benchmarks.scores(random, 2) for _ in items]
    results = [item | KINDS["rewardbench"][1](values) for item, values in zip(items, scored)]
    report = evaluate(tmp_path, "rewardbench", items, results)
    right = {}
    for item, (chosen, rejected) in zip(items, scored):
        right.setdefault(item["subset"], []).append(1 if chosen > rejected else 0)
    accuracies = {subset: sum(found) / len(found) for subset, found in right.items()}
    sections = package.utils.calculate_scores_per_section(
        constants.EXAMPLE_COUNTS, constants.SUBSET_MAPPING, accuracies
    )
    for section, value in sections.items():
        assert abs(report["tables"]["section"][section]["accuracy"]["value"] - value) <= TOLERANCE


@pytest.mark.parametrize("seed", range(5))
def test_the_package_s_scores_of_rewardbench_2_are_ours(package, tmp_path, seed):
    random = np.random.default_rng(seed)
    items = benchmarks.rewardbench2_items(random, ITEMS)
    scored = [benchmarks.scores(random, item["total_completions"]) for item in items]
    results = [item | {"scores": values} for item, values in zip(items, scored)]
    table = evaluate(tmp_path, "rewardbench2", items, results, "--skip-zero-spread")["tables"]["subset"]
    ties = [result for result in results if result["subset"] == "Ties"]
    _, value = package.utils.process_single_model(ties)
    assert abs(table["Ties"]["score"]["value"] - value) <= TOLERANCE
    # One row per response, which the function gathers again.
    others = [result for result in results if result["subset"] != "Ties"]
    rows = [
        {"text": index, "scores": score, "id": result["id"], "subset": result["subset"]}
        for result in others
        for index, score in enumerate(result["scores"])
    ]
    counts = [result["total_completions"] for result in others]
    gathered = package.utils.reroll_and_score_dataset(Dataset(pandas.DataFrame(rows)), counts).frame
    for subset, value in gathered.groupby("subset")["results"].mean().items():
        assert abs(table[subset]["score"]["value"] - value) <= TOLERANCE
