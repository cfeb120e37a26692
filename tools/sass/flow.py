"""An entry's instructions, its basic blocks and loops, and the path through them that does the most."""

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass

# Bytes of an instruction.
WIDTH = 16

# Scoreboards of a warp: counters of instructions that have issued and are not complete.
SCOREBOARDS = 6

# Instructions that end a basic block. A call does not: it returns, from a slow path of a quotient or a
# square root, which lies behind the entry's own code and is in no path.
JUMPS = ("BRA", "BRX", "JMP", "EXIT", "RET")


@dataclass(frozen=True)
class Instruction:
    """An instruction, the scoreboard that counts it until its result is there, and those it waits for."""

    name: str
    predicate: str
    operands: tuple
    signals: int | None
    waits: tuple

    @property
    def base(self):
        """The name without its modifiers."""
        return self.name.partition(".")[0]

    @property
    def bytes(self):
        """Bytes that a thread loads or stores with it."""
        width = re.search(r"\.[US]?(8|16|64|128|256)\b", self.name)
        return int(width[1]) // 8 if width else 4

    @property
    def target(self):
        """The index of the instruction that a jump leads to, if it leads to one within the entry."""
        return int(self.operands[-1], 16) // WIDTH if self.base in ("BRA", "JMP") else None

    @property
    def falls_through(self):
        """Whether the next instruction may follow. A jump's condition is before its name or its target."""
        return self.base not in JUMPS or self.predicate != "" or self.base == "BRA" and len(self.operands) > 1


def disassemble(nvdisasm, cubin):
    """Returns the lines of each entry of a cubin, by name, and the releases of the assembler and of the
    disassembler.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([nvdisasm, "--emit-json", file.name], capture_output=True, text=True, check=True)
    about, functions = json.loads(run.stdout)
    lines = {function["function-name"]: function["sass-instructions"] for function in functions}
    # Cubins of old assemblers might not name them.
    made = about.get(".note.nv.tkinfo", {}).get("tki_toolVersion", "")
    return lines, release(made), release(about["Producer"])


def release(text):
    """Returns the release in a line such as `release 13.0, V13.0.88`."""
    found = re.search(r"\bV([\d.]+)", text)
    return found[1] if found else "unknown"


def instructions(lines, code):
    """Returns an entry's instructions, of which the disassembler leaves out the scoreboards."""
    if len(lines) * WIDTH != len(code):
        raise ValueError("the disassembler lists another number of instructions than the entry has")
    return [instruction(line, code[index * WIDTH :][:WIDTH]) for index, line in enumerate(lines)]


def instruction(line, word):
    # From bit 105 on: cycles to stall (4 bits), whether to yield (1), the scoreboard of the result (3, none
    # is 7), that of the operands (3), the scoreboards to wait for (6).
    control = int.from_bytes(word, "little") >> 105
    signals, waits = control >> 5 & 7, control >> 11 & 63
    return Instruction(
        name=line["opcode"],
        predicate=line.get("predicate", ""),
        operands=tuple(line.get("operands", "").split(",")),
        signals=signals if signals < SCOREBOARDS else None,
        waits=tuple(board for board in range(SCOREBOARDS) if waits >> board & 1),
    )


class Flow:
    """Basic blocks, which are lists of instructions, in an order in which only loops lead back."""

    def __init__(self, code):
        starts = {0}
        for index, step in enumerate(code):
            if step.base in JUMPS:
                starts |= {index + 1, step.target or 0}
        starts = sorted(starts - {len(code)})
        ends = dict(zip(starts, [*starts[1:], len(code)]))

        def follows(start):
            last = code[ends[start] - 1]
            return [at for at in (last.target, ends[start] if last.falls_through else None) if at is not None]

        order, seen = [], set()

        def visit(start):
            seen.add(start)
            for at in follows(start):
                if at not in seen:
                    visit(at)
            order.append(start)

        visit(0)
        order.reverse()
        number = {start: index for index, start in enumerate(order)}
        self.blocks = [code[start : ends[start]] for start in order]
        self.next = [[number[at] for at in follows(start)] for start in order]

    def loops(self):
        """Returns the blocks of each loop, in order: it begins with the first."""
        before = [[] for _ in self.blocks]
        for block, following in enumerate(self.next):
            for at in following:
                before[at].append(block)
        bodies = {}
        for block, following in enumerate(self.next):
            for head in (at for at in following if at <= block):
                body = bodies.setdefault(head, {head})
                todo = [block]
                while todo:
                    if (at := todo.pop()) not in body:
                        body.add(at)
                        todo += before[at]
        if any(min(body) < head for head, body in bodies.items()):
            raise ValueError("a loop has two beginnings")
        return [sorted(body) for _, body in sorted(bodies.items())]

    def path(self, blocks, worth):
        """Returns the instructions of the path through some blocks whose sum of `worth`, a tuple for each
        instruction, is the greatest: from the first block to one that leads to it again or ends the entry,
        loops within once. Returns none where there is no path.
        """
        head, best = blocks[0], {}
        for block in reversed(blocks):
            rest = [best[at] for at in self.next[block] if at > block and at in best]
            if not self.next[block] or head in self.next[block]:
                rest.append(((), []))
            if rest:
                sums, path = max(rest)
                own = [worth(step) for step in self.blocks[block]]
                best[block] = tuple(map(sum, zip(*own, *([sums] if sums else [])))), [block, *path]
        _, path = best.get(head, ((), []))
        return [step for block in path for step in self.blocks[block]]
