"""The description in OpenAPI: its examples, and Schemathesis with requests that it allows and ones that it does not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import requests
from conftest import KEY

HERE = Path(__file__).parent.absolute()


def description_of(server):
    return requests.get(f"{server.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).json()


def operations(description):
    """Returns the paths of a description, with their methods and attributes."""
    return [(path, method, item) for path, items in description["paths"].items() for method, item in items.items()]


def schemathesis(server, folder, *options):
    """Runs Schemathesis on all paths."""
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "schemathesis.toml", "run"]
    command += [f"{server.url}/openapi.json", "--no-color", *options]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py")}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    count = len(operations(description_of(server)))
    assert re.search(rf"^ *Tested: {count}$", run.stdout, re.MULTILINE), run.stdout


def test_examples_of_requests_are_scored(server):
    count = 0
    for path, method, item in operations(description_of(server)):
        for content_type, content in item.get("requestBody", {}).get("content", {}).items():
            example = content["example"]
            body = example if isinstance(example, str) else json.dumps(example)
            headers = {"Content-Type": content_type}
            answer = requests.request(method, server.url + path, data=body, headers=headers, timeout=60)
            assert answer.status_code == 200 and "error" not in answer.text, f"{method} {path}: {answer.text}"
            count += 1
    assert count == 20


def test_all_paths_are_as_described(server, tmp_path):
    schemathesis(server, tmp_path, "--checks", "all")


def test_paths_need_the_key_where_the_description_says_so(serve, tmp_path):
    server = serve(key=KEY)
    # The other checks take the key's header for one that is not described.
    checks = "ignored_auth,not_a_server_error,status_code_conformance,response_schema_conformance"
    bounds = ["--phases", "examples,fuzzing", "--max-examples", "5"]
    schemathesis(server, tmp_path, "--header", f"Authorization: Bearer {KEY}", "--checks", checks, *bounds)
    for path, method, item in operations(description_of(server)):
        answer = requests.request(method, server.url + path, timeout=60)
        assert (answer.status_code == 401) == (item.get("security") != [{}]), f"{method} {path}"
