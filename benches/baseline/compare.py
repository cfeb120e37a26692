#!/usr/bin/env python3
"""Times the engine and Hugging Face transformers in turn on this machine, on the same ids, and writes down both.

    python3 compare.py MODEL --bench PROGRAM [--out FOLDER] [--rounds N] [--runs N]       # torch, transformers

MODEL is a folder in Hugging Face layout, PROGRAM what `cargo bench --bench cpu_engine --no-run` built. Two workloads of
seeded random ids: `conversations`, 16 of 512 tokens that share nothing, and `responses`, a prompt of 512 tokens with 8
responses of 64. Each side runs in a process of its own, in turn, N rounds; the fastest run counts, for on a shared machine
the others measure the neighbours; there the processes' CPU time is the steadier measure, and both are kept. --out gets MACHINE/DATE-COMMIT.json with every sample.
"""
import argparse
import datetime
import json
import pathlib
import platform
import random
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
KUDOS, HF = ("f32", "bf16"), ("float32", "bfloat16")


def workloads():
    ids = random.Random(20)

    def take(count):
        return [ids.randrange(100, 49_000) for _ in range(count)]

    prompt = take(512)
    return {"conversations": [take(512) for _ in range(16)], "responses": [prompt + take(64) for _ in range(8)]}


def run(*command):
    said = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(said.splitlines()[-1])


def output(*command):
    return subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True).stdout.strip()


def cpu_name():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    facts = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    if not facts:
        return platform.processor() or platform.machine()
    return f"{facts.get('model name', 'unknown')} (family {facts.get('cpu family')}, model {facts.get('model')})"


def measure(model, bench, options):
    """{workload: {side and arithmetic: [what its process said, round by round]}}"""
    samples = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, sequences in workloads().items():
            file = pathlib.Path(scratch) / f"{name}.json"
            file.write_text(json.dumps({"sequences": sequences}))
            sides = samples[name] = {}
            for round_index in range(options.rounds):
                for math in KUDOS:
                    said = run(bench, model, file, math, options.runs)
                    sides.setdefault(f"kudos {math}", []).append(said)
                # The workload of responses is held against a float32 batch alone.
                for math in HF if name == "conversations" else HF[:1]:
                    said = run(sys.executable, HERE / "transformers.py", model, file, math, options.runs)
                    sides.setdefault(f"transformers {math}", []).append(said)
                print(f"{name}: round {round_index + 1} of {options.rounds}", file=sys.stderr)
    return samples


def summary(samples):
    rows = []
    for name, sides in samples.items():
        best = {side: max(said["best_tokens_per_second"] for said in rounds) for side, rounds in sides.items()}
        least = {side: min(min(said["cpu_seconds"]) for said in rounds) for side, rounds in sides.items()}
        exact = sides["kudos f32"][0]["rewards"]
        for side, rounds in sides.items():
            moved = [abs(a - b) for a, b in zip(rounds[0]["rewards"], exact, strict=True)]
            rows.append({
                "workload": name, "side": side, "tokens_per_second": round(best[side], 1),
                "times_transformers_float32": round(best[side] / best["transformers float32"], 3),
                "cpu_seconds": round(least[side], 3),
                "transformers_float32_cpu_seconds_over_these": round(least["transformers float32"] / least[side], 3),
                "peak_rss_mib": round(max(said["peak_rss_bytes"] for said in rounds) / 2**20),
                "rewards_moved_mean": sum(moved) / len(moved), "rewards_moved_max": max(moved),
            })
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--bench", type=pathlib.Path, required=True, help="the built cpu_engine bench")
    parser.add_argument("--out", type=pathlib.Path, help="where records are kept, such as benches/record")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    samples = measure(options.model, options.bench.resolve(), options)
    rows = summary(samples)
    for row in rows:
        print(f"{row['workload']:14} {row['side']:22} {row['tokens_per_second']:8.1f} tokens/s"
              f" {row['times_transformers_float32']:6.2f} x transformers float32"
              f" (by CPU time {row['transformers_float32_cpu_seconds_over_these']:5.2f} x) {row['peak_rss_mib']:6} MiB"
              f"   rewards moved {row['rewards_moved_mean']:.1e} mean, {row['rewards_moved_max']:.1e} max")
    if options.out:
        date, commit = datetime.date.today().isoformat(), output("git", "describe", "--always", "--dirty", "--abbrev=9")
        slug = "-".join("".join(c if c.isalnum() else " " for c in cpu_name().lower()).split())
        file = options.out / slug / f"{date}-{commit}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({
            "commit": commit, "date": date, "cpu": cpu_name(), "system": platform.platform(), "load": output("uptime"),
            "command": f"compare.py {options.model.name} --rounds {options.rounds} --runs {options.runs}",
            "summary": rows, "samples": samples,
        }, indent=1))
        print(file)


if __name__ == "__main__":
    main()
