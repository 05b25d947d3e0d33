"""Golden tables of writers other than pyarrow: Parquet by duckdb, polars and fastparquet, Arrow by polars.

Usage: python make_other_tables.py [FOLDER (default: next to this file)] [ROWS (default: 19)]

FOLDER/parquet/NAME.parquet, FOLDER/arrow/NAME.arrow and NAME.jsonl    rows as table_rows.py has them
Written with duckdb 2.0.1, polars 2.1.0, fastparquet 2026.9.0, pyarrow 26.0.1, pandas 3.1.1. Values come from a fixed seed.
"""
import math
import os
import random
import sys

import duckdb
import fastparquet
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from table_rows import WORDS, write_rows

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
ROWS = int(sys.argv[2]) if len(sys.argv) > 2 else 19
r = random.Random(7)


def column(make, kind, nulls=.25):
    return pa.array([None if r.random() < nulls else make(i) for i in range(ROWS)], kind)


image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
table = pa.table({
    "b": column(lambda i: r.random() < .5, pa.bool_()),
    "i8": column(lambda i: r.randint(-128, 127), pa.int8()),
    "i64": column(lambda i: r.choice([i, r.randint(-2 ** 63, 2 ** 63 - 1)]), pa.int64()),
    "u64": column(lambda i: r.randint(0, 2 ** 64 - 1), pa.uint64()),
    "d": column(lambda i: r.choice([r.random(), math.nan, -math.inf]), pa.float64()),
    "s": column(lambda i: r.choice(WORDS) + str(i % 7), pa.string()),
    "li": column(lambda i: [None if r.random() < .2 else j for j in range(r.randrange(5))], pa.list_(pa.int64())),
    "image": column(lambda i: {"bytes": r.randbytes(20), "path": r.choice([None, "a.png"])}, image),
    "mask": column(lambda i: [[r.random() < .5 for _ in range(3)] for _ in range(r.randrange(4))],
                   pa.list_(pa.list_(pa.bool_()))),
})


def rows_of(name, rows):
    write_rows(os.path.join(OUT, name + ".jsonl"), rows)


def place(name):
    os.makedirs(os.path.dirname(os.path.join(OUT, name)), exist_ok=True)
    return os.path.join(OUT, name)


# Parquet. Without an index of rows, polars writes plain pages where pyarrow has dictionaries.
frame = pl.from_arrow(table)
for codec in "zstd", "brotli":
    frame.write_parquet(place(f"parquet/polars_{codec}.parquet"), compression=codec, row_group_size=7)
    rows_of(f"parquet/polars_{codec}", table.to_pylist())
duckdb.register("t", table)
for codec, version in ("snappy", "V1"), ("zstd", "V2"), ("lz4_raw", "V2"):
    name = f"parquet/duckdb_{codec}_{version.lower()}"
    path = place(name + ".parquet")
    duckdb.execute(f"copy t to '{path}' (format parquet, compression '{codec}', parquet_version '{version}')")
    rows_of(name, table.to_pylist())
# fastparquet writes NaN as null, so its rows are what pyarrow reads.
flat = table.select(["b", "i64", "d", "s"])
frame = flat.filter(flat["b"].is_valid()).filter(flat.filter(flat["b"].is_valid())["i64"].is_valid()).to_pandas()
fastparquet.write(place("parquet/fastparquet.parquet"), frame, compression="GZIP", row_group_offsets=5)
rows_of("parquet/fastparquet", pq.read_table(place("parquet/fastparquet.parquet")).to_pylist())

# Arrow. polars' files have a first message that only their footer explains.
frame = pl.from_arrow(table)
for level in "newest", "oldest":
    name = f"arrow/polars_{level}"
    compat = getattr(pl.CompatLevel, level)()
    frame.write_ipc(place(name + ".arrow"), compression="lz4", compat_level=compat, record_batch_size=8)
    rows_of(name, table.to_pylist())
