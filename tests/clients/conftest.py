"""A running server, and the rewards that `kudos score` has for the same conversations."""

import json
import os
import re
import signal
import struct
import subprocess
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

import pytest
import requests
from tokenizers import Tokenizer

os.chdir(Path(__file__).parents[2])
KUDOS = os.environ.get("KUDOS", "target/release/kudos")
MODEL = "demo/model"

# The server is on this machine, whatever proxy there is for others.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
# No client takes a key, or an address, from here.
for name in ("KUDOS_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "CO_API_KEY"):
    os.environ.pop(name, None)

KEY = "a-key-of-its-own"
PROMPT, RESPONSE = "What is 1+1?", "1+1=2"
RESPONSES = [RESPONSE, "1+1=3", "", "é ⏎ 𝄞 <b>"]
MESSAGES = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]


class Server:
    """`kudos serve` with the demo model."""

    def __init__(self, *options, key=None):
        command = [KUDOS, "serve", "--model", MODEL, "--device", "cpu", "--port", "0", *options]
        environment = os.environ | ({"KUDOS_API_KEY": key} if key else {})
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if address := re.fullmatch(r"listening on (http://\S+)\n", line):
                self.url = address[1]
                break
        else:
            pytest.fail("the server ended:\n" + "".join(self.log))
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.reader.start()

    def metric(self, name):
        text = requests.get(f"{self.url}/metrics", timeout=60).text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    def wait_until(self, what, is_so):
        end = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < end, f"after 60 s: {what}"
            time.sleep(0.01)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """Ends the server as a service manager does."""
        self.terminate()
        try:
            status = self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.reader.join()
        assert status == 0, "".join(self.log)
        assert not any("panicked" in line for line in self.log), "".join(self.log)


@pytest.fixture(scope="session")
def server():
    """A server for tests that need no options."""
    server = Server()
    yield server
    server.end()


@pytest.fixture
def serve():
    """Starts servers that end with the test."""
    servers = []

    def start(*options, key=None):
        servers.append(Server(*options, key=key))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def bits(values):
    """Returns the bits of values, as f32."""
    return [struct.pack("<f", value) for value in values]


@cache
def _of_command(command, lines):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(lines)
        file.flush()
        arguments = [KUDOS, command, "--model", MODEL, file.name]
        if command == "score":
            arguments += ["--device", "cpu"]
        # Its status is 1 also where a line has an error.
        return subprocess.run(arguments, stdout=subprocess.PIPE).stdout.decode()


def results_of(objects, command="score"):
    """Returns the results that the command writes for objects."""
    lines = _of_command(command, "".join(json.dumps(object) + "\n" for object in objects))
    results = [json.loads(line) for line in lines.splitlines()]
    assert len(results) == len(objects)
    return results


def expected(objects):
    """Returns the bits of the rewards that `kudos score` has for objects."""
    return bits(result["reward"] for result in results_of(objects))


def pairs(responses=RESPONSES, prompt=PROMPT):
    """Returns responses to one prompt, as objects."""
    return [{"prompt": prompt, "response": response} for response in responses]


def ranked(objects):
    """Returns the indices and the bits of the rewards of objects, the highest first."""
    rewards = [result["reward"] for result in results_of(objects)]
    order = sorted(range(len(rewards)), key=lambda index: -rewards[index])
    return [(index, *bits([rewards[index]])) for index in order]


@pytest.fixture(scope="session")
def rendered():
    """The rendered text and the token ids of `MESSAGES`."""
    [result] = results_of([{"messages": MESSAGES}], "render")
    return result["text"], result["input_ids"]


@pytest.fixture(scope="session")
def ids_of():
    """A function to the ids of a text with a beginning-of-text token, by Hugging Face's tokenizer."""
    tokenizer = Tokenizer.from_file(f"{MODEL}/tokenizer.json")
    return lambda text: tokenizer.encode(text).ids


def pytest_unconfigure(config):
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    outcomes = ("passed", "skipped", "failed", "error")
    counts = [f"{len(stats[outcome])} {outcome}" for outcome in outcomes if stats.get(outcome)]
    print("clients: " + ", ".join(counts or ["0 passed"]))
