"""The counts of an entry's machine code."""

from collections import Counter

import flow

MATMULS = ("HMMA", "HGMMA")
F32 = ("FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2")
# A thread's own: those that are computed once for a warp (UIADD3) run beside them. Moves (IMAD.MOV)
# are left out.
INTEGER = ("FLO", "IABS", "IADD", "IADD3", "IDP", "IMAD", "IMNMX", "ISETP", "LEA", "LOP3", "POPC", "PRMT")
INTEGER += ("SEL", "SHF", "VIADD", "VIADDMNMX", "VIMNMX")
BRANCHES = ("BRA", "BRX", "CALL", "JMP")
LOCAL = ("LDL", "STL")

# Threads and blocks that a multiprocessor holds: the CUDA programming guide's table by compute
# capability.
MULTIPROCESSORS = {
    75: (1024, 16),
    80: (2048, 32),
    86: (1536, 16),
    89: (1536, 24),
    90: (2048, 32),
    100: (2048, 32),
    120: (1536, 24),
}
REGISTERS = 64 * 1024
LANES = 32


def is_matmul(step):
    return step.base in MATMULS


def is_load(step):
    return step.base == "LDG"


def is_exponential(step):
    return step.name.startswith("MUFU.EX2")


def worth(step):
    """Returns the tuple of which the counted path has the greatest sum: matmuls, copies to shared memory,
    powers of two, accesses to global memory; then it has the fewest instructions.
    """
    return is_matmul(step), step.base == "LDGSTS", is_exponential(step), step.base in ("LDG", "STG"), -1


def hot_path(code):
    """Returns the instructions that are counted, and whether they are an iteration of a loop: of the
    innermost one with the most matmuls, or else with the most global loads. Where no loop has half of the
    loads, they are those from beginning to end, past loops if these can be left out.
    """
    blocks = flow.Flow(code)
    loops = blocks.loops()

    def size(body):
        steps = [step for block in body for step in blocks.blocks[block]]
        return sum(map(is_matmul, steps)), sum(map(is_load, steps)), -len(steps)

    def is_around(body):
        return any(size(other)[0] > 0 and set(other) < set(body) for other in loops)

    everything = range(len(blocks.blocks))
    hottest = max((body for body in loops if not is_around(body)), key=size, default=())
    matmuls, loads, _ = size(hottest)
    if matmuls or loads and 2 * loads >= size(everything)[1]:
        return blocks.path(hottest, worth), True
    outside = sorted(set(everything).difference(*loops))
    return blocks.path(outside, worth) or blocks.path(everything, worth), False


def loads_in_flight(path):
    """Returns the most bytes of global loads that a thread has issued along a path and not waited for, and
    its round trips: the waits for loads that were issued after the wait before.
    """
    bytes_of = [0] * flow.SCOREBOARDS
    # The round trip that the last load of each scoreboard belongs to.
    trip_of = [0] * flow.SCOREBOARDS
    most = trips = 0
    for step in path:
        for board in step.waits:
            trips = max(trips, trip_of[board])
            bytes_of[board] = 0
        if is_load(step):
            bytes_of[step.signals] += step.bytes
            trip_of[step.signals] = trips + 1
            most = max(most, sum(bytes_of))
    return most, trips


def warps(arch, entry):
    """Returns the warps that a multiprocessor holds, by registers, threads and blocks. Registers are
    allocated 256 at a time, and warps four at a time.
    """
    threads, blocks = MULTIPROCESSORS[arch]
    block_warps = -(-entry.threads_max // LANES)
    warp_registers = -(-entry.registers * LANES // 256) * 256
    by_registers = REGISTERS // warp_registers // 4 * 4 // block_warps
    return block_warps * min(by_registers, threads // LANES // block_warps, blocks)


def padding(code):
    """Returns how many instructions at the end are there to fill a cache line."""
    return next(count for count, step in enumerate(reversed(code)) if step.name != "NOP")


def counts(arch, entry, code):
    """Returns the counts of an entry by name; those from `matmuls` on are of the hot path."""
    path, is_loop = hot_path(code)
    bases = Counter(step.base for step in path)
    thread_bytes, round_trips = loads_in_flight(path)
    if is_loop:
        # An iteration may wait for loads of the one before, or issue its own while those are in flight.
        thread_bytes, both_trips = loads_in_flight(path * 2)
        round_trips = both_trips - round_trips
    return {
        "threads_max": entry.threads_max,
        "registers": entry.registers,
        "warps": warps(arch, entry),
        "shared_bytes": entry.shared_bytes,
        "stack_bytes": entry.stack_bytes,
        "local_bytes": sum(step.bytes for step in code if step.base in LOCAL),
        "instructions": len(code) - padding(code),
        "is_loop": is_loop,
        "hot_instructions": len(path),
        "matmuls": dict(Counter(".".join(step.name.split(".")[:2]) for step in path if is_matmul(step))),
        "ldsm": bases["LDSM"],
        "ex2": sum(map(is_exponential, path)),
        "ldgsts": bases["LDGSTS"],
        "ldg": bases["LDG"],
        "stg": bases["STG"],
        "bar": bases["BAR"],
        "f32": sum(bases[base] for base in F32),
        "integer": sum(step.base in INTEGER and ".MOV" not in step.name for step in path),
        "branches": sum(bases[base] for base in BRANCHES),
        "thread_bytes_in_flight": thread_bytes,
        "round_trips": round_trips,
        "bytes_in_flight": thread_bytes * LANES * warps(arch, entry),
    }
