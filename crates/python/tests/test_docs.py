"""The Python samples of the README and of docs/python.md are run, and show what they show."""

import doctest
import re
from pathlib import Path

import pytest

import kudos

NUMBER = re.compile(r"-?\d+\.\d+")


class Near(doctest.OutputChecker):
    """Numbers may differ in the last digits of an f32: from one kind of CPU to another they do."""

    def check_output(self, want, got, flags):
        far = [abs(float(a) - float(b)) > 1e-4 for a, b in zip(NUMBER.findall(want), NUMBER.findall(got))]
        shape = lambda text: NUMBER.sub("number", " ".join(text.replace("[ ", "[").split()))
        return not any(far) and (shape(want) == shape(got) or super().check_output(want, got, flags))


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_every_sample_is_true(page, monkeypatch):
    # On the CPU, also on a machine with a GPU: the samples have its rewards.
    init = kudos.RewardModel.__init__
    monkeypatch.setattr(init, "__kwdefaults__", {**init.__kwdefaults__, "device": "cpu"})
    blocks = re.findall(r"```(pycon|python)\n(.*?)```", Path(page).read_text(), re.DOTALL)
    assert blocks
    names, flags = {}, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(Near(), verbose=False, optionflags=flags)
    for number, (kind, text) in enumerate(blocks):
        if kind == "python":
            exec(compile(text, f"{page}, block {number}", "exec"), {})
            continue
        test = doctest.DocTestParser().get_doctest(text, names, f"{page}, block {number}", page, 0)
        report = []
        runner.run(test, out=report.append, clear_globs=False)
        assert not any("Failed example" in line for line in report), "".join(report)
        names = test.globs
    assert runner.tries > 0
