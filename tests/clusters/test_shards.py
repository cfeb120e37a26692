"""The commands of Slurm's and Kubernetes's pages, with the variables that these set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MODEL, conversations

KUDOS = Path(sys.executable).with_name("kudos")
PATH = f"{KUDOS.parent}{os.pathsep}{os.environ['PATH']}"
SHARDS = 5


@pytest.fixture
def run(tmp_path):
    """Returns a function that runs the command of a shard."""
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(2003).to_pylist()))
    (tmp_path / "output").mkdir()
    paths = {"MODEL": MODEL, "INPUT": str(tmp_path / "input.jsonl"), "OUTPUT": str(tmp_path / "output"), "PATH": PATH}

    def run(command, **variables):
        done = subprocess.run(command, env={**os.environ, **paths, **variables}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    return run


def assert_the_shards_are_one_run(run, command, variables, folder):
    for shard in reversed(range(SHARDS)):
        run(command, **variables(shard))
    files = sorted((folder / "output").glob("*.jsonl"))
    assert [file.name for file in files] == [f"{shard:05}.jsonl" for shard in range(SHARDS)]
    assert len(list((folder / "output").iterdir())) == 2 * SHARDS, "each has its manifest, and nothing is left over"
    whole = subprocess.run([KUDOS, "score", "--model", MODEL, folder / "input.jsonl", "--device", "cpu"], capture_output=True)
    assert whole.returncode == 1 and b'"error"' in whole.stdout
    parts = b"".join(file.read_bytes() for file in files)
    assert parts == whole.stdout
    times = [file.stat().st_mtime_ns for file in files]
    run(command, **variables(2))
    assert [file.stat().st_mtime_ns for file in files] == times


def test_slurm_s_script_scores_a_shard_for_each_task(run, recipe, tmp_path):
    def variables(shard):
        return {"SLURM_ARRAY_TASK_ID": str(shard), "SLURM_ARRAY_TASK_COUNT": str(SHARDS), "SLURM_CPUS_PER_TASK": "1"}

    assert_the_shards_are_one_run(run, ["sh", recipe("slurm.md", "sh")], variables, tmp_path)


def test_kubernetes_s_pods_score_a_shard_for_each_index(run, recipe, tmp_path):
    yaml = pytest.importorskip("yaml", reason="not run: PyYAML is not installed")
    job = yaml.safe_load(Path(recipe("kubernetes.md", "yaml")).read_text())["spec"]
    container = job["template"]["spec"]["containers"][0]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert set(given) == {"COMPLETIONS", "MODEL", "INPUT", "OUTPUT"} and given["COMPLETIONS"] == str(job["completions"])

    def variables(shard):
        return {"JOB_COMPLETION_INDEX": str(shard), "COMPLETIONS": str(SHARDS)}

    assert_the_shards_are_one_run(run, container["command"], variables, tmp_path)


def test_kubernetes_s_job_fits_the_api(recipe):
    yaml = pytest.importorskip("yaml", reason="not run: PyYAML is not installed")
    validate = pytest.importorskip("kubernetes_validate", reason="not run: kubernetes-validate is not installed")
    job = yaml.safe_load(Path(recipe("kubernetes.md", "yaml")).read_text())
    validate.validate(job, "1.33", strict=True)
    job["spec"]["completionMode"] = 3
    with pytest.raises(validate.ValidationError):
        validate.validate(job, "1.33", strict=True)
