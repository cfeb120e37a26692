"""Fatbins as `build.rs` writes them (uncompressed), and the cubins in them: ELF files of machine code for
one architecture.
"""

import struct
from dataclasses import dataclass
from math import prod

FATBIN = 0xBA55ED50
ELF = b"\x7fELF"

# The kind of a fatbin's entry that is a cubin; 1 is PTX.
CUBIN = 2

# Attributes of all entries, in a cubin's `.nv.info`, and of one entry, in its `.nv.info.NAME`. SIZED is
# the one of their formats that has a value behind it.
REGISTERS = 0x2F
STACK_BYTES = 0x11
THREADS_MAX = 0x05
SIZED = 4

# Bytes of `.nv.shared` that are the system's own, from sm_90 on.
SYSTEM_SHARED_BYTES = 1024


@dataclass(frozen=True)
class Entry:
    """An entry's demands, and its code."""

    registers: int
    # Static: what a launch adds is not in the cubin.
    shared_bytes: int
    stack_bytes: int
    # Of a block, by the source's `__launch_bounds__`.
    threads_max: int
    code: bytes


def cubins(fatbin):
    """Yields the number of each architecture that there is machine code for, and its cubin."""
    magic, _, head, size = struct.unpack_from("<IHHQ", fatbin)
    if magic != FATBIN or head + size != len(fatbin):
        raise ValueError("not a fatbin")
    at = head
    while at < len(fatbin):
        kind, _, head, size = struct.unpack_from("<HHIQ", fatbin, at)
        arch = struct.unpack_from("<I", fatbin, at + 28)[0]
        content = fatbin[at + head : at + head + size]
        if kind == CUBIN:
            if not content.startswith(ELF):
                raise ValueError(f"the machine code for sm_{arch} is compressed")
            yield arch, content
        at += head + size


def entries(arch, cubin):
    """Returns the entries of a cubin, by name."""
    table = struct.unpack_from("<Q", cubin, 0x28)[0]
    width, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # Of each section: name, type, flags, address, offset, size, link, info, alignment, element size.
    heads = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + index * width) for index in range(count)]
    strings = content(cubin, heads[names])
    sections = {strings[head[0] : strings.index(b"\0", head[0])].decode(): head for head in heads}

    # Each value is the index of an entry's symbol, and a number.
    about = {REGISTERS: {}, STACK_BYTES: {}}
    for attribute, value in attributes(content(cubin, sections[".nv.info"])):
        if attribute in about:
            symbol, number = struct.unpack("<II", value)
            about[attribute][symbol] = number

    found = {}
    for section, head in sections.items():
        if not section.startswith(".text."):
            continue
        name = section.removeprefix(".text.")
        # A section without content: only its size counts.
        shared = sections.get(f".nv.shared.{name}")
        system = SYSTEM_SHARED_BYTES if arch >= 90 else 0
        threads = dict(attributes(content(cubin, sections[f".nv.info.{name}"])))[THREADS_MAX]
        symbol = head[7] & 0xFFFFFF
        found[name] = Entry(
            registers=about[REGISTERS][symbol],
            shared_bytes=shared[5] - system if shared else 0,
            stack_bytes=about[STACK_BYTES][symbol],
            threads_max=prod(struct.unpack("<III", threads)),
            code=content(cubin, head),
        )
    return found


def content(cubin, head):
    return cubin[head[4] : head[4] + head[5]]


def attributes(info):
    """Yields the attributes that have a value behind them."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == SIZED:
            yield attribute, info[at : at + size]
            at += size
