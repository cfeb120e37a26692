"""Opening and closing: options, the wheel, the command."""

import importlib.metadata
import inspect
import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
from conftest import PAIR

import kudos
from kudos import RewardModel, _kudos

SCORE_HELP = subprocess.run(
    [Path(sys.executable).with_name("kudos"), "score", "--help"], capture_output=True, text=True, check=True
).stdout


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(TypeError, match="`max_token` is no option .* device, ranks, replicas, max_tokens, "):
        RewardModel("demo/model", max_token=5)


def test_the_options_are_those_of_the_command():
    of_command = set(re.findall(r"--([a-z-]+)", SCORE_HELP.split("\nOptions:")[1]))
    of_lines = {"model", "prompt", "response", "output", "resume", "rows", "columns", "shard", "whole", "window", "json"}
    of_lines |= {"prefix", "help", "version", "template-var"}
    of_processes = {name for name in of_command if name in {"rank", "world-size"} or name.startswith("rendezvous")}
    named = {name for name in of_command if re.search(rf"^ +(-., )?--{name}\b", SCORE_HELP, re.MULTILINE)}
    options = {name.replace("-", "_") for name in named - of_lines - of_processes}
    assert options == set(_kudos.OPTIONS) - {"template_vars", "queue_tokens", "sharing"}
    parameters = inspect.signature(RewardModel).parameters
    assert [name for name in parameters if name in _kudos.OPTIONS] == list(_kudos.OPTIONS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"truncate": "right"}, kudos.OptionsError, "`truncate` is 'right', expected one of \"refuse\", \"left\""),
        ({"devices": [0]}, kudos.OptionsError, "`devices` is an option of GPUs"),
        ({"device": "cuda", "threads": 2}, kudos.OptionsError, "`threads` is an option of the CPU"),
        ({"threads": 0}, kudos.OptionsError, "thread"),
        ({"threads": "2"}, TypeError, "`threads` is '2'"),
        ({"threads": -1}, TypeError, "`threads` is -1"),
        ({"replicas": 0}, kudos.OptionsError, "`replicas`: expected a number from 1 on, or `auto`"),
        ({"replicas": "all"}, kudos.OptionsError, "`replicas`: expected a number"),
        ({"template_vars": [1]}, TypeError, "`template_vars` is of type list"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        RewardModel("demo/model", **{"device": "cpu", **options})


def test_wrong_options_of_gpus_are_refused():
    for options in ({"gpu_reserve_gib": -1.0}, {"peer_timeout": 0}):
        with pytest.raises(kudos.OptionsError):
            RewardModel("demo/model", **options)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(kudos.FileError, match="no model folder") as caught:
        RewardModel(tmp_path / "nothing")
    assert "`model`" in caught.value.hint
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(kudos.ConfigError) as caught:
        RewardModel(tmp_path, device="cpu")
    assert "config.json" in str(caught.value)


def test_options_reach_the_engine():
    with RewardModel(Path("demo/model"), device="cpu", threads=1, max_tokens=50, truncate="left", batch_tokens=77) as model:
        assert model.plan()["batch_tokens"] == 77 and "1 thread" in model.device
        assert model.render([{"role": "user", "content": "x" * 500}, PAIR[1]])["truncated"]
    with RewardModel("demo/model", device="cpu", template_vars={"date_string": "5 May 2020"}) as model:
        assert "5 May 2020" in model.render(PAIR)["text"]
    with RewardModel("demo/model", device="cpu", template_vars={"tools": 1}) as model:
        # Token ids need no template.
        assert model.score_tokens([1, 2, 3]) != 0.0
        with pytest.raises(kudos.InvalidInputError, match="`tools` is an argument"):
            model.score(PAIR)


def test_replicas_change_no_bit(model, pairs):
    with RewardModel("demo/model", device="cpu", threads=2, replicas=2) as two:
        assert two.plan()["replicas"] == 2
        for one, other in zip(model.score(pairs), two.score(pairs), strict=True):
            assert numpy.array_equal(one, other)


def test_a_closed_model_says_so():
    with RewardModel("demo/model", device="cpu") as model:
        pass
    model.close()
    for call in (lambda: model.score(PAIR), model.plan, lambda: model.render(PAIR)):
        with pytest.raises(kudos.StoppedError, match="the model was closed"):
            call()


def test_the_log_has_the_device(caplog):
    with caplog.at_level(logging.INFO, "kudos"):
        RewardModel("demo/model", device="cpu").close()
    assert [record.message[:14] for record in caplog.records] == ["running on CPU"]


def test_the_wheel_needs_numpy_alone_and_serves_all_versions():
    wheel = Path(os.environ["KUDOS_TEST_WHEEL"])
    assert re.fullmatch(r"kudos_rm-[^-]+-cp310-abi3-(many)?linux_\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("kudos/py.typed", "kudos/_kudos.pyi", "kudos/_kudos.abi3.so", "kudos/integrations/__init__.py"):
        assert name in names
    assert importlib.metadata.requires("kudos-rm") == ["numpy>=1.22"]
    assert importlib.metadata.version("kudos-rm") == kudos.__version__


def test_importing_loads_neither_numpy_nor_a_trainer():
    script = "import kudos.integrations, sys; print([n for n in ('numpy', 'torch', 'transformers') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_command_is_that_of_rust():
    kudos_path = Path(sys.executable).with_name("kudos")
    run = subprocess.run([kudos_path, "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()[0]) == (0, "kudos")
    run = subprocess.run([kudos_path, "score", "--model", "nothing", "x.jsonl"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.startswith("error: there is no model folder `nothing`")
    run = subprocess.run([kudos_path, "score", "--model", "demo/model", "-"], input='{"prompt": 1}\n', capture_output=True, text=True)
    assert run.returncode == 1


def test_an_interrupt_ends_the_command():
    script = "import signal, kudos._command as c; c._kudos.main = lambda _: signal.raise_signal(signal.SIGINT); c.main()"
    assert subprocess.run([sys.executable, "-c", script]).returncode == -2


def test_a_subinterpreter_is_refused():
    script = """
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
one = interpreters.create()
code = "import kudos._kudos"
try:
    failure = interpreters.run_string(one, code)
except interpreters.RunFailedError as error:
    failure = error
print(failure, flush=True)
"""
    # Some releases of CPython 3.12 abort at the end of a subinterpreter that imported asyncio, whatever else it did.
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert "ImportError" in run.stdout and "subinterpreters" in run.stdout
