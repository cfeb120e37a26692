"""The common part of the baselines that `bench --compare NAME=PYTHON` measures in rounds.

    python3 NAME_worker.py REQUEST.json prepare
    python3 NAME_worker.py REQUEST.json run SETTINGS

REQUEST.json has `model` (a folder in Hugging Face layout), `exports` (a folder for forms that the model is converted into), `ids`
(sequences of one length), `shared_prefix` and `responses` (so many tokens are shared by so many consecutive sequences), `dtype`
(float32 or bfloat16) and `threads`. Each script hands `main` three functions:

    prepare(request) -> (settings, axes)    converts the model where its engine needs that. `settings` are those to begin with, and `axes`
                                            lists [name, values]: `bench` tries each other value of one setting at a time, in
                                            that order, and keeps the fastest. Raises Unsupported where the engine cannot score this
    environment(settings) -> {name: value}  variables that must be set before the process starts
    load(request, settings) -> engine       with `name`, `device`, `score()`, which returns the rewards, and `reset()`, which empties caches

Standard output has one JSON object per line: that of `prepare`; or {"engine", "device", "dtype"} once the model is loaded, and
{"seconds", "rewards"} for each line `run N` on standard input. What libraries print goes to standard error.
"""
import hashlib
import json
import os
import pathlib
import sys
import time


class Unsupported(Exception):
    """The engine cannot score this model in this arithmetic."""


class Engine:
    """An engine with its model loaded; see above."""

    name = ""
    device = ""

    def score(self):
        raise NotImplementedError

    def reset(self):
        pass


def values(*candidates):
    """Different values, in order."""
    return list(dict.fromkeys(candidates))


def batches(request):
    """Numbers of sequences that are worth trying as a batch."""
    return sorted({min(size, len(request["ids"])) for size in (1, 4, 16, len(request["ids"]))})


def threads(request):
    """Numbers of threads: all, and one for each of two, which may be one core's."""
    return values(request["threads"], max(1, request["threads"] // 2))


def groups(request):
    """[(the prefix that sequences share, the rest of each)] of all groups of sequences."""
    prefix, size = request["shared_prefix"], request["responses"]
    ids = request["ids"]
    return [(ids[first][:prefix], [row[prefix:] for row in ids[first:first + size]]) for first in range(0, len(ids), size)]


def parts(rows, size):
    """Consecutive rows, `size` at a time."""
    return [rows[first:first + size] for first in range(0, len(rows), size)]


def export_path(request, kind):
    """The path of the model in another form, which names the state of its files."""
    folder = pathlib.Path(request["model"])
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr((str(folder), state)).encode()).hexdigest()[:16]
    path = pathlib.Path(request["exports"]) / f"{kind}-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def exported(request, kind, export):
    """The folder of the model in another form, which `export(folder)` fills the first time."""
    path = export_path(request, kind)
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        unfinished.mkdir(exist_ok=True)
        export(unfinished)
        unfinished.rename(path)
    return path


def config_of(request):
    return json.loads((pathlib.Path(request["model"]) / "config.json").read_text())


def is_classifier(request):
    return config_of(request)["architectures"][0].endswith("ForSequenceClassification")


def respond(engine, request, say):
    say(engine=engine.name, device=engine.device, dtype=request["dtype"])
    for line in sys.stdin:
        seconds, rewards = [], []
        for _ in range(int(line.split()[1])):
            engine.reset()
            start = time.perf_counter()
            rewards = engine.score()
            seconds.append(time.perf_counter() - start)
        say(seconds=seconds, rewards=rewards)


def main(prepare, load, environment=lambda settings: {}):
    request = json.loads(pathlib.Path(sys.argv[1]).read_text())
    action, settings = sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    wanted = environment(settings) if action == "run" else {}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**object):
        output.write(json.dumps(object) + "\n")
        output.flush()

    if action == "run":
        respond(load(request, settings), request, say)
        return
    try:
        settings, axes = prepare(request)
        say(settings=settings, axes=axes)
    except Unsupported as reason:
        say(unsupported=str(reason))
