"""Golden Parquet files, written by pyarrow with every codec, encoding and page version.

Usage: python make_parquet.py [FOLDER (default: parquet next to this file)] [ROWS (default: 23)]

FOLDER/NAME.parquet    small files
FOLDER/NAME.jsonl      their rows, as table_rows.py has them
Written with pyarrow 25.0.0, image_lists* and half with 26.0.1. Values come from a fixed seed. With more rows and a folder elsewhere the same script makes a
larger set, which tests/unit/test_parquet.lua reads with folder=FOLDER.
"""
import math
import os
import random
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from table_rows import WORDS, write_rows

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "parquet")
ROWS = int(sys.argv[2]) if len(sys.argv) > 2 else 23
os.makedirs(OUT, exist_ok=True)
r = random.Random(3)


def some_bytes(n):
    return bytes(r.randrange(256) for _ in range(n))


def table(nulls):
    """One column for each type; `nulls` is the share of nulls at every level."""
    def column(make, kind):
        return pa.array([None if r.random() < nulls else make(i) for i in range(ROWS)], kind)

    def often(make, n):
        return [None if r.random() < nulls else make(i) for i in range(n)]

    inner = pa.struct([("x", pa.int32()), ("t", pa.list_(pa.string()))])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    deep = pa.struct([("a", pa.struct([("b", pa.struct([("c", pa.int64())]))]))])
    return pa.table({
        "b": column(lambda i: r.random() < .5, pa.bool_()),
        "i32": column(lambda i: r.randint(-2 ** 31, 2 ** 31 - 1), pa.int32()),
        "i64": column(lambda i: r.choice([i, r.randint(-2 ** 63, 2 ** 63 - 1)]), pa.int64()),
        "u32": column(lambda i: r.randint(0, 2 ** 32 - 1), pa.uint32()),
        "u64": column(lambda i: r.randint(0, 2 ** 64 - 1), pa.uint64()),
        "f": column(lambda i: r.choice([r.randint(-99, 99) / 8, math.inf, math.nan]), pa.float32()),
        "d": column(lambda i: r.choice([r.random(), -math.inf, math.nan]), pa.float64()),
        "s": column(lambda i: r.choice(WORDS) + str(i % 7), pa.string()),
        "bin": column(lambda i: some_bytes(r.randrange(30)), pa.binary()),
        "fix": column(lambda i: some_bytes(5), pa.binary(5)),
        "img": column(lambda i: {"bytes": some_bytes(20), "path": r.choice([None, "a.png"])}, image),
        "li": column(lambda i: often(lambda j: j, r.randrange(6)), pa.list_(pa.int64())),
        "mask": column(lambda i: [[r.random() < .5 for _ in range(3)] for _ in range(r.randrange(4))],
                       pa.list_(pa.list_(pa.bool_()))),
        "los": column(lambda i: [{"x": j, "t": [WORDS[j % 6]] * (j % 3)} for j in range(r.randrange(4))],
                      pa.list_(inner)),
        "ll": column(lambda i: often(lambda j: [[1] * k for k in range(j)], r.randrange(3)),
                     pa.list_(pa.list_(pa.list_(pa.int32())))),
        "deep": column(lambda i: {"a": {"b": {"c": i}}}, deep),
    })


def write(name, t, **options):
    options.setdefault("write_statistics", False)
    pq.write_table(t, os.path.join(OUT, name + ".parquet"), **options)
    write_rows(os.path.join(OUT, name + ".jsonl"), t.to_pylist())


full, holes, empty = table(0), table(.3), table(1)
DELTA = {"i32": "DELTA_BINARY_PACKED", "i64": "DELTA_BINARY_PACKED", "s": "DELTA_BYTE_ARRAY",
         "bin": "DELTA_LENGTH_BYTE_ARRAY", "f": "BYTE_STREAM_SPLIT", "d": "BYTE_STREAM_SPLIT",
         "fix": "DELTA_BYTE_ARRAY", "b": "RLE"}
plain = dict(use_dictionary=False)
write("snappy_dictionary", holes, compression="SNAPPY", row_group_size=9, data_page_size=40)
write("zstd_v2", holes, compression="ZSTD", data_page_version="2.0", data_page_size=60)
write("none_v2_plain", holes, compression="NONE", data_page_version="2.0", **plain)
write("none_sums", full, compression="NONE", write_page_checksum=True, data_page_size=50, **plain)
write("gzip", full.select(["i64", "s", "li"]), compression="GZIP")
write("brotli", full.select(["i64", "s", "li"]), compression="BROTLI")
write("lz4", full.select(["i64", "s", "li"]), compression="LZ4")
write("delta", holes, compression="NONE", column_encoding=DELTA, data_page_size=80, **plain)
write("delta_v2", full, compression="SNAPPY", column_encoding=DELTA, data_page_version="2.0", **plain)
write("all_null", empty, compression="SNAPPY")
write("page_index", holes.select(["s", "mask"]), write_page_index=True, data_page_size=30)
write("old_lists", holes.select(["li", "los"]), use_compliant_nested_type=False)
write("no_rows", full.slice(0, 0))

# Lists of images, on several pages: rows that go on in the next page, and a page index.
lists = holes.select(["s"]).append_column("images", pa.array(
    [None if r.random() < .2 else [{"bytes": some_bytes(r.randrange(60)), "path": None} for _ in range(r.randrange(4))]
     for _ in range(ROWS)], pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))))
pages = dict(data_page_size=100, write_batch_size=2)
write("image_lists", lists, compression="SNAPPY", **pages)
write("image_lists_plain", lists, compression="GZIP", use_dictionary=False, write_page_checksum=True, **pages)
write("image_lists_index", lists, compression="ZSTD", write_page_index=True, **pages)
write("image_lists_v2", lists, compression="BROTLI", data_page_version="2.0", use_dictionary=False, **pages)
write("image_lists_chunks", lists, compression="LZ4", use_content_defined_chunking={
    "min_chunk_size": 100, "max_chunk_size": 300, "norm_level": 0})

# Halves, which other columns of 2 bytes are not.
def halves(i):
    return None if i % 5 == 4 else np.float16((0.1, -2.25, 6e-8, math.inf, 0, math.nan, -0.0)[i % 7])


write("half", pa.table({
    "h": pa.array([halves(i) for i in range(ROWS)], pa.float16()),
    "lh": pa.array([[halves(i), halves(i + 1)][:i % 3] for i in range(ROWS)],
                   pa.list_(pa.float16())),
    "two": pa.array([some_bytes(2) for _ in range(ROWS)], pa.binary(2))}), compression="NONE")
