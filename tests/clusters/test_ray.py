"""Ray Data on a local cluster: actors on CPUs, one of which dies."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import MODEL, RESPONSES, assert_same_rows, conversations, rewards_in_one_process

from kudos import OptionsError

ray = pytest.importorskip("ray", reason="not run: Ray is not installed")
ray_data = pytest.importorskip("ray.data", reason="not run: Ray Data is not installed")
from kudos.integrations.ray import Scorer, _devices, _within, together  # noqa: E402

#: Rows of the job in which an actor dies.
ROWS = int(os.environ.get("KUDOS_TEST_ROWS", "100000"))


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of four actors' CPUs, one for reading and writing, and two GPUs, which are not there."""
    quiet = {"include_dashboard": False, "logging_level": "error", "log_to_driver": False}
    context = ray.init(num_cpus=5, num_gpus=2, object_store_memory=200_000_000, **quiet)
    ray_data.DataContext.get_current().enable_progress_bars = False
    yield context.address_info["gcs_address"]
    ray.shutdown()


def scored(dataset, scorer=Scorer, actors=4, model=MODEL, resources={"num_cpus": 1}, **arguments):
    options = {"batch_format": "pyarrow", "batch_size": 1000, "compute": ray_data.ActorPoolStrategy(size=actors)}
    return dataset.map_batches(scorer, fn_constructor_kwargs={"model": model, **arguments}, **options, **resources)


def table_of(dataset):
    return pyarrow.concat_tables(ray.get(dataset.to_arrow_refs()))


def test_a_job_has_each_row_once_although_an_actor_died(cluster, tmp_path, capsys):
    class Mortal(Scorer):
        """Ends its process in its third batch, unless another one has done so."""

        def __init__(self, model, folder):
            super().__init__(model)
            self.folder, self.batches = Path(folder), 0
            (self.folder / f"opened-{os.getpid()}").touch()

        def __call__(self, table):
            self.batches += 1
            (self.folder / f"scored-{os.getpid()}").touch()
            if self.batches == 3:
                try:
                    (self.folder / "died").touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    os._exit(1)
            return super().__call__(table)

    table = conversations(ROWS)
    start = time.monotonic()
    expected = rewards_in_one_process(table)
    alone = time.monotonic() - start
    dataset = ray_data.from_arrow([table.slice(row, 4000) for row in range(0, ROWS, 4000)])
    start = time.monotonic()
    found = table_of(scored(dataset, Mortal, folder=str(tmp_path)).materialize())
    seconds = time.monotonic() - start
    opened, used = (len(list(tmp_path.glob(f"{what}-*"))) for what in ("opened", "scored"))
    with capsys.disabled():
        print(f"{ROWS} rows: {seconds:.1f} s with 4 actors, of which one died; {alone:.1f} s in one process of one thread")
    assert (tmp_path / "died").exists() and opened >= 5 and used >= 2
    assert_same_rows(found, expected)


def test_together_has_the_rows_of_a_prompt_side_by_side(cluster):
    table = conversations(4000)
    dataset = ray_data.from_arrow([table.slice(row, 500) for row in range(0, 4000, 500)])
    partitioned = together(dataset, blocks=8)
    blocks = [block.column("prompt").to_pylist() for block in ray.get(partitioned.to_arrow_refs())]
    assert len(blocks) == 8
    changes = sum(sum(a != b for a, b in zip(block, block[1:])) + 1 for block in blocks if block)
    assert changes == 4000 // RESPONSES
    assert partitioned.schema().names == table.schema.names
    assert_same_rows(table_of(scored(partitioned).materialize()), rewards_in_one_process(table))


def test_together_reads_the_prompt_out_of_messages(cluster):
    turn = lambda role, content: {"role": role, "content": content}
    rows = [[turn("user", f"x{row % 10}"), turn("assistant", f"y{row}")] for row in range(100)]
    dataset = ray_data.from_arrow([pyarrow.table({"messages": rows[part::4]}) for part in range(4)])
    blocks = ray.get(together(dataset, blocks=3).to_arrow_refs())
    prompts = [[row[0]["content"] for row in block.column("messages").to_pylist()] for block in blocks]
    assert sum(sum(a != b for a, b in zip(block, block[1:])) + 1 for block in prompts if block) == 10
    with pytest.raises(Exception, match="columns `id`, expected `prompt` or `messages`"):
        together(ray_data.range(4), blocks=2)


def test_the_recipe_writes_every_row(cluster, recipe, files, tmp_path):
    table = conversations(2000)
    command = [sys.executable, recipe("ray.md", "python"), MODEL, files(table), str(tmp_path / "output")]
    run = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": cluster}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert_same_rows(pyarrow.parquet.read_table(tmp_path / "output"), rewards_in_one_process(table))


def test_errors_of_the_model_and_its_options_end_the_job(cluster, tmp_path):
    dataset = ray_data.from_arrow(conversations(10))
    with pytest.raises(Exception, match="FileError"):
        scored(dataset, actors=1, model=str(tmp_path / "missing")).materialize()
    with pytest.raises(Exception, match="`threads` is 2, and Ray assigned 1 CPUs"):
        scored(dataset, actors=1, threads=2).materialize()


def test_each_actor_has_the_gpus_that_ray_assigned(cluster):
    libraries = os.environ.get("KUDOS_TEST_SOFTGPU", "")
    if not Path(libraries, "libcuda.so").exists():
        pytest.skip("not run: KUDOS_TEST_SOFTGPU names no folder of the software GPU")
    environment = {"LD_LIBRARY_PATH": libraries, "SOFTGPU_CC": "80", "SOFTGPU_DEVICES": "2", "SOFTGPU_MEMORY_GIB": "2"}

    class Placed(Scorer):
        """Adds the GPUs of its actor, and the device of its model."""

        def __call__(self, table):
            place = f"{os.environ['CUDA_VISIBLE_DEVICES']} {self.source.options['devices']} {self.source.model().device[:5]}"
            return super().__call__(table).append_column("place", pyarrow.array([place] * len(table)))

    table = conversations(16)
    dataset = ray_data.from_arrow([table.slice(row, 2) for row in range(0, 16, 2)])
    found = {}
    for gpus, actors in ((1, 2), (2, 1)):
        resources = {"num_gpus": gpus, "runtime_env": {"env_vars": environment}}
        one = table_of(scored(dataset, Placed, actors=actors, resources=resources).materialize())
        found[gpus] = one.sort_by("id").drop_columns("place")
        places = {(1, 2): {"0 [0] CUDA,", "1 [0] CUDA,"}, (2, 1): {"0,1 [0, 1] CUDA,"}}[gpus, actors]
        assert set(one["place"].to_pylist()) <= places
    assert found[1].num_rows == 16 and found[1]["reward"].null_count == 0
    assert found[1].equals(found[2])
    with pytest.raises(Exception, match="assigned 0.5 GPUs to the actor, expected whole ones"):
        scored(dataset, actors=1, resources={"num_gpus": 0.5}).materialize()


def test_a_scorer_is_made_by_actors_alone():
    with pytest.raises(OptionsError, match="outside of an actor(.|\n)*give the class"):
        Scorer(MODEL)


def test_options_stay_within_the_actor_s_share():
    cpu, gpu = {"device": "cpu", "threads": 2}, {"device": "cuda", "devices": [0]}
    assert _within(cpu, {"device": "auto", "threads": None, "max_tokens": 8}) == {**cpu, "max_tokens": 8}
    assert _within(cpu, {"threads": 1})["threads"] == 1
    assert _within(gpu, {"device": "cuda", "replicas": "auto"}) == {**gpu, "replicas": "auto"}
    for share, options in ((cpu, {"threads": 3}), (cpu, {"device": "cuda"}), (gpu, {"device": "cpu"}), (gpu, {"devices": [1]})):
        with pytest.raises(OptionsError, match="hint: set `num_"):
            _within(share, options)


def test_devices_are_indices_among_the_visible_ones(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _devices(["2", "3"]) == [2, 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert _devices(["2", "3"]) == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert _devices(["GPU-b"]) == [1]
