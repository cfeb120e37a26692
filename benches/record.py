#!/usr/bin/env python3
"""Adds a report of `bench ... -o json` to a record: python3 benches/record.py [FOLDER] < REPORT

Adds the report on standard input to FOLDER/DEVICE/DATE-COMMIT.json (FOLDER: benches/record) and prints that path. The file
is {"record": 2, "device", "commit", "date", "system", "load", "reports": [...]}; each report is as benches/schema.md has it, with its
own arguments, machine and samples. Files without "record" are of the first kind: the CPU against transformers, with
"summary" and "samples" by workload and side.
"""
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def commit_of(report):
    """The commit in the report, else that of this folder."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=9"]
    return report["commit"] or subprocess.run(describe, cwd=HERE, stdout=subprocess.PIPE, text=True).stdout.strip()


def device_of(report):
    """The name of the GPU that it ran on, else of the CPU."""
    # `bench kernels` has the GPU's name at the beginning, other reports in brackets.
    gpu = re.match(r"CUDA.*?\(([^,]+),|(.+?), compute capability", report.get("device") or "")
    return gpu.group(1) or gpu.group(2) if gpu else cpu_name(report)


def cpu_name(report):
    """The CPU's name, with family and model where this machine knows them: clouds give several CPUs one name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    name = report["cpu"] or platform.processor() or platform.machine()
    # The report may be of another machine.
    here = fields.get("model name") == report["cpu"] and "cpu family" in fields and "model" in fields
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if here else name


def slug(name):
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def add(report, folder):
    date, commit = datetime.date.fromtimestamp(report["unix_seconds"]).isoformat(), commit_of(report)
    device = device_of(report)
    path = folder / slug(device) / f"{date}-{commit}.json"
    if path.exists():
        record = json.loads(path.read_text())
    else:
        record = {"record": 2, "device": device, "commit": commit, "date": date, "system": platform.platform(), "reports": []}
    record["load"] = os.getloadavg()
    # Paths of this machine stay out of the record.
    if "arguments" in report:
        report["arguments"] = [os.path.basename(part) if os.path.isabs(part) else part for part in report["arguments"]]
    if "name" in (report.get("model") or {}):
        report["model"]["name"] = os.path.basename(report["model"]["name"])
    record["reports"].append(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


if __name__ == "__main__":
    print(add(json.load(sys.stdin), pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "record"))
