"""Threads, tasks, signals, forks, and the progress line."""

import asyncio
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy
import pytest
from conftest import PAIR

import kudos
from kudos import RewardModel

ROWS = [{"prompt": f"What is {n}+{n + 1}?", "response": f"{n}+{n + 1}={2 * n + 1}"} for n in range(300)]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_threads_share_a_model_without_the_gil(model):
    expected, found, counted = model.score(ROWS).tolist(), [], 0
    threads = [threading.Thread(target=lambda: found.append(model.score(ROWS).tolist())) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        counted += 1
    assert found == [expected] * 4
    assert counted > 1000


def test_tasks_await_rewards(model):
    async def scores():
        one = model.ascore(PAIR)
        two = model.ascore(prompt="What is 1+1?", responses=["1+1=2", "1+1=3"])
        many = [model.ascore(row) for row in ROWS[:50]]
        return await asyncio.gather(one, two, model.ascore(ROWS), *many)

    one, two, all_rows, *many = asyncio.run(scores())
    assert one == model.score(PAIR) and two.shape == (2,)
    assert all_rows.tolist() == model.score(ROWS).tolist()
    assert many == all_rows[:50].tolist()


def test_a_task_gets_errors_as_a_thread_does(model):
    async def bad(errors):
        return await model.ascore([PAIR, {"prompt": "x"}], errors=errors)

    with pytest.raises(kudos.InvalidInputError) as caught:
        asyncio.run(bad("raise"))
    assert caught.value.index == 1
    with pytest.warns(kudos.KudosWarning):
        assert numpy.isnan(asyncio.run(bad("nan"))).tolist() == [False, True]


def test_the_loop_runs_while_a_task_waits(model):
    async def ticks():
        task, count = asyncio.ensure_future(model.ascore(ROWS * 3)), 0
        while not task.done():
            count += 1
            await asyncio.sleep(0.001)
        return count

    assert asyncio.run(ticks()) > 5


def test_a_cancelled_task_leaves_the_queue():
    with RewardModel("demo/model", device="cpu", batch_tokens=32, queue_tokens=100, sharing="nothing") as model:

        async def cancelled():
            task = asyncio.ensure_future(model.ascore(ROWS * 10))
            while model.stats()["queued_sequences"] == 0:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        wait_until(lambda: model.stats()["queued_sequences"] == 0)
        assert model.stats()["sequences"] < len(ROWS) * 10
        assert model.score(PAIR) > 0


def test_a_closed_loop_is_no_failure(capfd):
    with RewardModel("demo/model", device="cpu", batch_tokens=32, sharing="nothing") as model:
        loop = asyncio.new_event_loop()
        submission = model._engine.submission(ROWS)
        submission.prepare()
        submission.start(loop, loop.create_future())
        loop.close()
        wait_until(lambda: model.stats()["queued_sequences"] == 0)
        assert model.score(PAIR) > 0
        with pytest.raises(RuntimeError, match="not complete"):
            submission.result()
    assert "panicked" not in capfd.readouterr().err


def test_closing_completes_what_is_awaited():
    model = RewardModel("demo/model", device="cpu", batch_tokens=32)

    async def closed():
        task = asyncio.ensure_future(model.ascore(ROWS))
        while model.stats()["queued_sequences"] == 0:
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().run_in_executor(None, model.close)
        return await task

    assert len(asyncio.run(closed())) == len(ROWS)


def run(script):
    return subprocess.Popen([sys.executable, "-u", "-W", "ignore", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_interrupts_a_wait():
    script = f"""
import itertools, kudos
model = kudos.RewardModel("demo/model", device="cpu")
def rows():
    for n in itertools.count():
        if n == 500:
            print("scoring")
        yield {PAIR!r}
try:
    model.score(rows())
except KeyboardInterrupt:
    print("interrupted", model.score({PAIR!r}) > 0)
"""
    process = run(script)
    assert process.stdout.readline() == "scoring\n"
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "interrupted True\n"), err
    assert time.monotonic() - began < 20


def test_a_forked_child_needs_a_model_of_its_own():
    script = f"""
import os, kudos
model = kudos.RewardModel("demo/model", device="cpu")
reward = model.score({PAIR!r})
pid = os.fork()
if pid == 0:
    try:
        model.score({PAIR!r})
    except kudos.StoppedError as error:
        assert "was forked" in str(error) and "spawn" in error.hint
    else:
        os._exit(3)
    model.close()
    del model
    assert kudos.RewardModel("demo/model", device="cpu").score({PAIR!r}) == reward
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert model.score({PAIR!r}) == reward
print("parent")
"""
    out, err = run(script).communicate(timeout=60)
    assert out == "parent\n", err


def test_python_ends_with_a_model_open_and_a_task_waiting():
    script = f"""
import asyncio, kudos
model = kudos.RewardModel("demo/model", device="cpu", batch_tokens=32, sharing="nothing")
loop = asyncio.new_event_loop()
submission = model._engine.submission([{PAIR!r}] * 2000)
submission.prepare()
submission.start(loop, loop.create_future())
print("end")
"""
    process = run(script)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "end\n", "")


def test_the_progress_line_counts_and_goes_away(model, monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    model.score(ROWS, progress=True)
    text = stderr.getvalue()
    assert " of 300 scored, " in text and text.endswith(" \r")
    stderr.truncate(0)
    model.score(ROWS)
    model.score(ROWS, progress=False)
    assert stderr.getvalue() == ""
    stderr.isatty = lambda: True
    model.score(ROWS[:10])
    assert stderr.getvalue() == "", "it is drawn after two seconds only"
