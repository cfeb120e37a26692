#!/usr/bin/env python3
"""Records how transformers renders odd conversations under Meta's own templates, for `tests/real/prompts.rs`.

    KUDOS_TEST_DATA=DATA python tests/real/prompts.py OUT      # a Python with transformers 5.23 and jinja2

DATA holds build_llama3_tokenizer.py, chat_templates/*.jinja and llama3_chat_ids.json. OUT gets one model folder per
template (the Llama 3 tokenizer, rebuilt from a wheel once) and goldens.json. We may not redistribute any of it.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "prompt"
sys.path.insert(0, str(FIXTURES))

import corpus  # noqa: E402
import make  # noqa: E402


def main():
    data, out = pathlib.Path(os.environ["KUDOS_TEST_DATA"]), pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    base = out / "tokenizer"
    if not (base / "tokenizer.json").exists():
        subprocess.check_call([sys.executable, data / "build_llama3_tokenizer.py", "--out", base])
    make.chat.datetime = make.FixedClock
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    goldens = []
    for template in sorted((data / "chat_templates").glob("*.jinja")):
        folder = out / "models" / template.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "chat_template.jinja").write_bytes(template.read_bytes())
        os.link(base / "tokenizer.json", folder / "tokenizer.json")
        tokenizer = make.transformers.AutoTokenizer.from_pretrained(folder)
        for name, case in corpus.cases():
            row = {"model": template.stem, "name": name, "case": case, **make.golden(tokenizer, case)}
            if "ids" in row:
                row["sanitized"] = make.apply(tokenizer, case, sanitize_control_tokens=True)["input_ids"]
            goldens.append(row)
    (out / "goldens.json").write_text(json.dumps(goldens, ensure_ascii=False), encoding="utf-8")
    shutil.copy(data / "llama3_chat_ids.json", out / "llama3_chat_ids.json")
    refused = sum("refused" in row for row in goldens)
    print(f"{out}: {len(goldens)} conversations, {refused} of them refused, transformers {make.transformers.__version__}")


if __name__ == "__main__":
    main()
