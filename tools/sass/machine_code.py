"""The machine code of a build's kernels, and the section of `kernels/README.md` about it."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import counts
import flow
import image

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "kernels/README.md"
# The section is the rest of the page.
BEGIN = "<!-- Read from machine code from here on: `make sass` -->\n"

# Architectures of the section: those whose tiers differ, and Hopper.
PAGE_ARCHS = (75, 80, 90)

# Columns of counts, and their names in `counts.counts`.
COLUMNS = {
    "LDSM": "ldsm",
    "EX2": "ex2",
    "LDGSTS": "ldgsts",
    "LDG": "ldg",
    "STG": "stg",
    "BAR": "bar",
    "f32": "f32",
    "integer": "integer",
    "branches": "branches",
}


@dataclass
class MachineCode:
    """The entries of a build, instructions and counts of them, each by architecture and name, and the
    releases of the tools.
    """

    entries: dict
    code: dict
    counts: dict
    assembler: str
    disassembler: str


def read(folder, archs):
    """Returns the machine code in a build's fatbins, disassembled for some of its architectures."""
    files = metadata.files("nvidia-cuda-nvdisasm")
    nvdisasm = next(file.locate() for file in files if file.name == "nvdisasm")
    found = MachineCode({}, {}, {}, "", "")
    for kernel in sorted((ROOT / "kernels").glob("*.cu")):
        for arch, cubin in image.cubins((Path(folder) / f"{kernel.stem}.fatbin").read_bytes()):
            entries = image.entries(arch, cubin)
            found.entries |= {(arch, name): entry for name, entry in entries.items()}
            if arch not in archs:
                continue
            listings, found.assembler, found.disassembler = flow.disassemble(nvdisasm, cubin)
            for name, entry in entries.items():
                code = flow.instructions(listings[name], entry.code)
                found.code[arch, name] = code
                found.counts[arch, name] = counts.counts(arch, entry, code)
    if missing := set(archs) - {arch for arch, _ in found.counts}:
        names = ", ".join(map(arch_name, sorted(missing)))
        raise SystemExit(f"error: the build has no machine code for {names}; KUDOS_CUDA_ARCHS limits it")
    return found


def arch_name(arch):
    """Returns an architecture's name: machine code for Hopper is for it alone (sm_90a)."""
    return f"sm_{arch}" + "a" * (arch == 90)


def section(code):
    """Returns the section's text."""
    text = f"""
## Machine code

Counts of instructions in the hot path of each entry: an iteration of the innermost loop with the most
matmuls, or, without matmuls, with the most loads from global memory; where no loop has half of those
loads, everything from beginning to end, past loops. Among paths it is the one with the most matmuls, then
copies (LDGSTS), powers of two (EX2), accesses to global memory, and the fewest instructions: of attention
a whole tile without a mask, of the norms the widest row with one delta. Columns `f32` (FFMA, FMUL and
FADD) and `integer` are sums. In flight are the most bytes of global loads that a thread, and a
multiprocessor full of such threads, has issued and not waited for, by the scoreboards that instructions
name; round trips are the waits for loads that were issued after the wait before. No entry has a stack
frame, or loads or stores local memory.

Machine code by the ptxas of nvcc V{code.assembler}, read by nvdisasm V{code.disassembler}. With another
nvcc `make test-sass` does not compare these tables.
"""
    for arch in sorted({arch for arch, _ in code.counts}):
        text += f"\n{table(code, arch)}"
    return text


def table(code, arch):
    heads = [arch_name(arch), "registers", "static shared", "instructions", "hot path", "matmuls", *COLUMNS]
    heads += ["in flight", "round trips"]
    rows = [heads, ["---"] * len(heads)]
    for (of, name), found in sorted(code.counts.items()):
        if of != arch:
            continue
        hot = f"{'loop, ' * found['is_loop']}{found['hot_instructions']:,}"
        matmuls = ", ".join(f"{count} {shape}" for shape, count in found["matmuls"].items()) or "0"
        is_memory_bound = found["thread_bytes_in_flight"] and not name.startswith("attention")
        flight = f"{found['thread_bytes_in_flight']}, {found['bytes_in_flight'] / 1024:g} KiB"
        rows.append(
            [
                f"`{name}`",
                *(f"{found[column]:,}" for column in ("registers", "shared_bytes", "instructions")),
                *(hot, matmuls),
                *(str(found[column]) for column in COLUMNS.values()),
                *((flight, str(found["round_trips"])) if is_memory_bound else "--"),
            ]
        )
    return "".join(f"|{'|'.join(row if row == rows[1] else map(' {} '.format, row))}|\n" for row in rows)
