"""Prints counts of the machine code of a build's kernels: `python tools/sass FOLDER`, in a venv with
requirements.txt, where FOLDER has the fatbins that build.rs wrote.

`make sass` writes them into kernels/README.md, with --write.
"""

import argparse
import json
import sys

import counts
import machine_code


def main():
    parser = argparse.ArgumentParser(prog="tools/sass", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("folder", metavar="FOLDER", help="the OUT_DIR of build.rs")
    parser.add_argument("--arch", type=int, action="append", help="such as 80, repeatable; by default all")
    parser.add_argument("--json", action="store_true", help="all counts")
    parser.add_argument("--write", action="store_true", help="write the section of kernels/README.md")
    options = parser.parse_args()
    archs = machine_code.PAGE_ARCHS if options.write else options.arch or counts.MULTIPROCESSORS
    code = machine_code.read(options.folder, archs)
    if options.json:
        rows = [{"arch": arch, "entry": name, **found} for (arch, name), found in code.counts.items()]
        json.dump(rows, sys.stdout, indent=1)
    elif options.write:
        page = machine_code.PAGE
        before = page.read_text().partition(machine_code.BEGIN)[0]
        page.write_text(before + machine_code.BEGIN + machine_code.section(code))
    else:
        print("\n".join(machine_code.table(code, arch) for arch in archs))


main()
