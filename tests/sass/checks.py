"""The kernels' machine code: the tables of kernels/README.md, and the promises of the kernels' design.
run.sh runs it.
"""

import os
import re
import sys
import unittest
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/sass"))

import counts
import flow
import machine_code

PAGE = machine_code.PAGE.read_text()
CODE = machine_code.read(os.environ["KUDOS_FATBINS"], machine_code.PAGE_ARCHS)

# Choices of a compiler are compared for the one that the page is of.
IS_COMPARABLE = f"nvcc V{CODE.assembler}," in PAGE
OF_THE_PAGES_COMPILER = unittest.skipUnless(IS_COMPARABLE, "the page is of another nvcc")

# Attention on tensor cores: a tier's kernels, its matmul with its k, and the architectures that run it.
TIERS = {"attention_sm75_f16": ("HMMA.1688", 8, (75,)), "attention_sm80_bf16": ("HMMA.16816", 16, (80, 90))}
TILE_KEYS = 64
# Attention on Hopper's tensor cores: its files and widths.
HOPPER = [(stem, head_dim) for stem in ("attention_sm90a_simple", "attention_sm90a") for head_dim in (64, 128)]
HOPPER_TILE_KEYS = 128
# Of the kernel that takes boxes: dims of one.
BOX_DIMS = 64
# Registers of a thread that multiplies, and of the one that brings boxes; the most instructions for a tile.
HOPPER_REGISTERS = (232, 40)
HOPPER_INSTRUCTIONS = {64: 428, 128: 442}

# Bytes of the widest load, store or copy of a thread.
WORD = 16

# Of memory-bound kernels: the fewest bytes of loads that a thread has in flight, and the most round trips
# to memory. The norms' loads come in batches, among which ptxas sets further waits, most of them for Hopper.
IN_FLIGHT = {
    "add_branch_rms_norm_bf16": (128, 9),
    "add_branch_rms_norm_f16": (256, 16),
    "add_parts_bf16": (64, 1),
    "add_parts_f16": (64, 1),
    "add_rms_norm_bf16": (64, 10),
    "add_rms_norm_f16": (64, 22),
    "gate_mul_gelu_bf16": (32, 1),
    "gate_mul_gelu_f16": (32, 1),
    "gate_mul_silu_bf16": (32, 1),
    "gate_mul_silu_f16": (32, 1),
    "gather_rows": (64, 1),
    "rope_bf16": (64, 1),
    "rope_f16": (64, 1),
    "rope_norm_bf16": (48, 3),
    "rope_norm_f16": (48, 3),
    "score_bf16": (32, 4),
    "score_f16": (32, 2),
}
# Bytes in flight of a multiprocessor that keep memory busy (kernels/add_rms_norm.cu).
IN_FLIGHT_OF_ALL = 32 * 1024


class Tile:
    """The work of a warp of an attention kernel on a tile of keys, and the counts of its machine code."""

    def __init__(self, arch, name, matmul, matmul_k):
        self.case = {"entry": name, "arch": arch}
        self.counts = CODE.counts[arch, name]
        self.matmul = matmul
        # A matmul instruction is 16 x 8 x k.
        self.matmul_flops = 16 * 8 * matmul_k
        self.threads = self.counts["threads_max"]
        self.head_dim = int(re.search(r"_d(\d+)", name)[1])
        self.has_cap = name.endswith("_wc")
        # From the page's table of attention, in which the entries without window and cap are.
        block_rows = re.search(rf"^\| `{name.removesuffix('_wc')}` \| (\d+) \|", PAGE, re.MULTILINE)[1]
        self.rows = int(block_rows) // (self.threads // counts.LANES)
        # Words of K and V for each thread of the block.
        self.words = 2 * TILE_KEYS * self.head_dim * 2 // WORD // self.threads


def tiles(*archs):
    found = [
        Tile(arch, name, matmul, matmul_k)
        for stem, (matmul, matmul_k, of) in TIERS.items()
        for arch, name in CODE.counts
        if name.startswith(stem) and arch in of and arch in archs
    ]
    assert found
    return found


def step(name, operands="", predicate="", signals=None, waits=()):
    return flow.Instruction(name, predicate, tuple(operands.split(",")), signals, waits)


class Tool(unittest.TestCase):
    """The tool itself, on code that is made up."""

    def test_the_hot_path_is_an_iteration_of_the_loop_with_matmuls(self):
        code = [
            step("LDG.E.64", signals=0),
            step("HMMA.16816.F32.BF16"),
            step("BRA", "0x40", predicate="@P0"),
            step("HMMA.16816.F32.BF16"),
            step("BRA", "0x10", predicate="@P1"),
            step("FADD"),
            step("BRA", "0x50", predicate="@P2"),
            step("EXIT"),
        ]
        self.assertEqual(counts.hot_path(code), (code[1:5], True))

    def test_the_hot_path_is_of_the_innermost_loop(self):
        code = [
            step("HMMA.16816.F32.BF16"),
            step("HMMA.16816.F32.BF16"),
            step("BRA", "0x10", predicate="@P1"),
            step("BRA", "0x0", predicate="@P2"),
            step("EXIT"),
        ]
        self.assertEqual(counts.hot_path(code), (code[1:3], True))

    def test_the_hot_path_goes_past_a_loop_with_few_of_the_loads(self):
        code = [
            step("LDG.E.64", signals=0),
            step("LDG.E.64", signals=0),
            step("BRA", "0x50", predicate="@P0"),
            step("LDG.E.64", signals=0),
            step("BRA.U", "!UP0,0x30"),
            step("STG.E.64", waits=(0,)),
            step("EXIT"),
        ]
        self.assertEqual(counts.hot_path(code), ([*code[:3], *code[5:]], False))

    def test_a_round_trip_is_a_wait_for_loads_after_the_last(self):
        loads = [step("LDG.E.128", signals=0), step("LDG.E.U16", signals=1)]
        waits = [step("FADD", waits=(0,)), step("FADD", waits=(1,))]
        self.assertEqual(counts.loads_in_flight([*loads, *waits]), (18, 1))
        self.assertEqual(counts.loads_in_flight([loads[0], waits[0], loads[1], waits[1]]), (16, 2))
        self.assertEqual(counts.loads_in_flight([*loads, waits[0], loads[0], waits[1]]), (18, 1))


class Checks(unittest.TestCase):
    @OF_THE_PAGES_COMPILER
    def test_the_tables_of_the_page_are_those_of_the_build(self):
        written = PAGE.partition(machine_code.BEGIN)[2].splitlines()
        built = machine_code.section(CODE).splitlines()
        differs = next(((line, other) for line, other in zip_longest(written, built) if line != other), None)
        self.assertIsNone(differs, "as written and as built; `make sass` writes the page anew")

    @OF_THE_PAGES_COMPILER
    def test_registers_and_warps_are_those_of_the_compilers_report(self):
        table = PAGE.partition("## Registers and occupancy")[2].partition("\n## ")[0]
        heads, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
        archs = [int(re.sub(r"\D", "", head)) for head in heads[2:]]
        reported = {
            (arch, entry.strip("`")): (int(threads), *map(int, cell.split(", ")))
            for entry, threads, *cells in rows
            for arch, cell in zip(archs, cells)
            if cell != "-"
        }
        self.assertEqual(reported.keys(), CODE.entries.keys())
        for (arch, name), (threads, registers, warps) in reported.items():
            with self.subTest(entry=name, arch=arch):
                entry = CODE.entries[arch, name]
                self.assertEqual(registers, entry.registers)
                self.assertLessEqual(threads, entry.threads_max)
                # The shared memory of attention, which is given at launch, limits its warps.
                if threads == entry.threads_max and not name.startswith("attention"):
                    self.assertEqual(warps, counts.warps(arch, entry))

    def test_no_local_is_in_memory(self):
        for key, entry in CODE.entries.items():
            self.assertEqual(entry.stack_bytes, 0, key)
        for key, found in CODE.counts.items():
            self.assertEqual(found["local_bytes"], 0, key)

    def test_no_loaded_register_is_read_before_its_scoreboard(self):
        # Whether scoreboards are read from the right bits, on which the bytes in flight rest.
        checked = 0
        for key, code in CODE.code.items():
            pending = {}
            for issued in counts.hot_path(code)[0]:
                pending = {register: board for register, board in pending.items() if board not in issued.waits}
                registers = [int(number) for number in re.findall(r"\bR(\d+)", ",".join(issued.operands))]
                self.assertTrue(pending.keys().isdisjoint(registers), (key, issued))
                if counts.is_load(issued):
                    # The first is that of the result.
                    loaded = range(registers[0], registers[0] + -(-issued.bytes // 4))
                    pending |= dict.fromkeys(loaded, issued.signals)
                    checked += 1
        self.assertGreater(checked, 0)

    def test_attention_has_the_matmuls_of_a_tile(self):
        for tile in tiles(75, 80, 90):
            with self.subTest(**tile.case):
                # S = Q K^T and O += P V.
                flops = 2 * tile.rows * TILE_KEYS * tile.head_dim
                self.assertEqual(tile.counts["matmuls"], {tile.matmul: flops // tile.matmul_flops})

    def test_attention_reads_each_fragment_once_a_tile(self):
        for tile in tiles(75, 80, 90):
            with self.subTest(**tile.case):
                # Of Q, K and V; an LDSM brings 16 x 16 elements to a warp.
                elements = (tile.rows + 2 * TILE_KEYS) * tile.head_dim
                self.assertEqual(tile.counts["ldsm"], elements // (16 * 16))

    def test_attention_takes_one_power_of_two_a_score(self):
        for tile in tiles(75, 80, 90):
            with self.subTest(**tile.case):
                # A cap's tanh takes another. Four lanes share a row, and each takes the power that
                # rescales it.
                scores = tile.rows * TILE_KEYS // counts.LANES
                rescales = tile.rows * 4 // counts.LANES
                self.assertEqual(tile.counts["ex2"], scores * (1 + tile.has_cap) + rescales)

    def test_attention_on_sm80_copies_words_past_registers(self):
        for tile in tiles(80, 90):
            with self.subTest(**tile.case):
                self.assertEqual(tile.counts["ldgsts"], tile.words)
                # The row of a tile to come.
                self.assertEqual(tile.counts["ldg"], 1)

    def test_attention_on_sm75_loads_each_word_once(self):
        for tile in tiles(75):
            with self.subTest(**tile.case):
                self.assertEqual(tile.counts["ldg"], tile.words + 1)

    def test_attention_has_one_barrier_for_k_and_one_for_v(self):
        for tile in tiles(75, 80, 90):
            with self.subTest(**tile.case):
                self.assertEqual(tile.counts["bar"], 2)

    def test_attention_on_hopper_has_the_matmuls_and_copies_of_a_tile(self):
        for stem, head_dim in HOPPER:
            found = CODE.counts[90, f"{stem}_bf16_d{head_dim}"]
            with self.subTest(stem=stem, head_dim=head_dim):
                # Each of the steps of 16 along head_dim for scores, and along the keys for values.
                scores, values = head_dim // 16, HOPPER_TILE_KEYS // 16
                matmuls = {"HGMMA.64x128x16": scores + values}
                if head_dim < 128:
                    matmuls = {"HGMMA.64x128x16": scores, f"HGMMA.64x{head_dim}x16": values}
                self.assertEqual(found["matmuls"], matmuls)
                if stem == "attention_sm90a":
                    # Another thread brings the operands, and nothing but their barriers is waited for.
                    self.assertEqual((found["ldgsts"], found["ldg"], found["bar"]), (0, 0, 0))
                    continue
                words = 2 * HOPPER_TILE_KEYS * head_dim * 2 // WORD
                self.assertEqual((found["ldgsts"], found["bar"]), (words // found["threads_max"], 1))
                # The rows of a tile to come.
                self.assertEqual(found["ldg"], 2)

    def test_attention_on_hopper_has_boxes_registers_and_few_instructions(self):
        for head_dim, instructions in HOPPER_INSTRUCTIONS.items():
            name = f"attention_sm90a_bf16_d{head_dim}"
            code = CODE.code[90, name]
            with self.subTest(head_dim=head_dim):
                # Of queries; of two halves of keys, and of values.
                boxes = sum(issued.base == "UTMALDG" for issued in code)
                self.assertEqual(boxes, 5 * head_dim // BOX_DIMS)
                registers = [int(issued.operands[-1], 16) for issued in code if issued.base == "USETMAXREG"]
                self.assertEqual(sorted(registers, reverse=True), list(HOPPER_REGISTERS))
                self.assertLessEqual(CODE.counts[90, name]["hot_instructions"], instructions)

    def test_attention_on_hopper_takes_powers_of_two_beside_a_matmul(self):
        for stem, head_dim in HOPPER:
            with self.subTest(stem=stem, head_dim=head_dim):
                path, is_loop = counts.hot_path(CODE.code[90, f"{stem}_bf16_d{head_dim}"])
                self.assertTrue(is_loop)
                # Groups of matmuls that may be in flight; at the end of an iteration none is.
                in_flight, beside, alone = 0, 0, 0
                for issued in path:
                    if issued.name.startswith("HGMMA"):
                        in_flight = 2
                    elif issued.name.startswith("WARPGROUP.DEPBAR"):
                        in_flight = min(in_flight, int(issued.operands[-1], 16))
                    elif counts.is_exponential(issued):
                        beside, alone = beside + (in_flight > 0), alone + (in_flight == 0)
                # Two rows of a tile by four lanes, and what rescales each.
                self.assertEqual((beside, alone), (2 * HOPPER_TILE_KEYS // 4 + 2, 0))

    def test_gates_take_one_power_of_two_for_each_value(self):
        for (arch, name), found in CODE.counts.items():
            if name.startswith("gate_mul"):
                with self.subTest(entry=name, arch=arch):
                    # Two words of 8 values, of which one is replaced.
                    self.assertEqual((found["ex2"], found["ldg"], found["stg"]), (8, 2, 1))

    @OF_THE_PAGES_COMPILER
    def test_memory_bound_kernels_have_enough_loads_in_flight(self):
        self.assertLessEqual(IN_FLIGHT.keys(), {name for _, name in CODE.counts})
        for (arch, name), found in CODE.counts.items():
            if name in IN_FLIGHT:
                with self.subTest(entry=name, arch=arch):
                    thread_bytes, round_trips = IN_FLIGHT[name]
                    self.assertGreaterEqual(found["thread_bytes_in_flight"], thread_bytes)
                    self.assertGreaterEqual(found["bytes_in_flight"], IN_FLIGHT_OF_ALL)
                    self.assertLessEqual(found["round_trips"], round_trips)


if __name__ == "__main__":
    if not IS_COMPARABLE:
        print(f"not compared: the page's tables, which are of another nvcc than this build's, V{CODE.assembler}")
    unittest.main()
