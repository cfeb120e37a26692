"""Writes a Parquet file of a million rows, a prompt and a response each: python rows.py PATH [ROWS]

The words are pseudo-random, the same in every run; four neighbours share a prompt of 60 words, a response has 40. The rows of a group
are 10,000, compressed by zstd.
"""
import random
import sys

import pyarrow
import pyarrow.parquet

GROUP_ROWS, SHARED = 10_000, 4
WORDS = (
    "the of and to a in is you that it he was for on are as with his they at be this have from or one had by word but not what "
    "all were we when your can spoke there use an each which she do how their if will up other about out many then them these so "
    "some her would make like him into time has look two more write go see number no way could people my than first water been"
).split()


def text(generator, words):
    return " ".join(generator.choices(WORDS, k=words))


def main():
    path, rows = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    generator = random.Random(1)
    schema = pyarrow.schema([("id", pyarrow.int64()), ("prompt", pyarrow.string()), ("response", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, GROUP_ROWS):
            count = min(GROUP_ROWS, rows - start)
            prompts = [text(generator, 60) for _ in range(-(-count // SHARED))]
            columns = {
                "id": list(range(start, start + count)),
                "prompt": [prompts[row // SHARED] for row in range(count)],
                "response": [text(generator, 40) for _ in range(count)],
            }
            writer.write_table(pyarrow.table(columns, schema=schema))


if __name__ == "__main__":
    main()
