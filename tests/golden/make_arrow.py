"""Golden Arrow files, written by pyarrow with every type that is read, in streams and files.

Usage: python make_arrow.py [FOLDER (default: arrow next to this file)] [ROWS (default: 11)]

FOLDER/NAME.arrow, FOLDER/NAME.jsonl    rows as table_rows.py has them
Written with pyarrow 26.0.1. Values come from a fixed seed. With more rows and a folder elsewhere
the same script makes a larger set, which tests/unit/test_arrow.lua reads with folder=FOLDER.
"""
import os
import random
import sys

import pyarrow as pa

from table_rows import WORDS, write_rows

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "arrow")
ROWS = int(sys.argv[2]) if len(sys.argv) > 2 else 11
os.makedirs(OUT, exist_ok=True)
r = random.Random(5)


def integer(bits, signed):
    low = -2 ** (bits - 1) if signed else 0
    return lambda i: r.choice([0, low, low + 2 ** bits - 1, r.randint(low, low + 2 ** bits - 1)])


def columns(nulls):
    """One column for each type; `nulls` is the share of nulls at every level."""
    def column(make, kind):
        return pa.array([None if r.random() < nulls else make(i) for i in range(ROWS)], kind)

    def often(make, most):
        return [None if r.random() < nulls else make(i) for i in range(r.randrange(most))]

    def words(i):
        return r.choice(WORDS)

    struct = pa.struct([("x", pa.int32()), ("t", pa.list_(pa.string()))])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    out = {"none": pa.nulls(ROWS)}
    for bits in 8, 16, 32, 64:
        out[f"i{bits}"] = column(integer(bits, True), getattr(pa, f"int{bits}")())
        out[f"u{bits}"] = column(integer(bits, False), getattr(pa, f"uint{bits}")())
    floats = [0.0, -1.5, 1e-7, 65504.0, float("inf"), float("-inf"), float("nan")]
    out["f32"] = column(lambda i: r.choice(floats[:3]) or float(i), pa.float32())
    out["f64"] = column(lambda i: r.choice(floats + [r.random()]), pa.float64())
    out["f16"] = column(lambda i: r.choice([0.0, 1.5, -2.25, 6e-8, 65504.0, float("inf")]),
                        pa.float16())
    out["bool"] = column(lambda i: r.random() < .5, pa.bool_())
    out["text"] = column(words, pa.string())
    out["large_text"] = column(words, pa.large_string())
    out["bytes"] = column(lambda i: r.randbytes(r.randrange(9)), pa.binary())
    out["large_bytes"] = column(lambda i: r.randbytes(r.randrange(9)), pa.large_binary())
    out["fixed"] = column(lambda i: r.randbytes(5), pa.binary(5))
    out["list"] = column(lambda i: often(words, 4), pa.list_(pa.string()))
    out["large_list"] = column(lambda i: often(lambda k: k, 4), pa.large_list(pa.int16()))
    out["fixed_list"] = column(lambda i: [i, 2 * i, 3], pa.list_(pa.int64(), 3))
    out["mask"] = column(lambda i: [often(lambda k: r.random() < .5, 4) for _ in range(i % 3)],
                         pa.list_(pa.list_(pa.bool_())))
    out["struct"] = column(lambda i: {"x": i, "t": often(words, 3)}, struct)
    out["image"] = column(lambda i: {"bytes": r.randbytes(6), "path": r.choice([None, "a.png"])},
                          image)
    out["structs"] = column(lambda i: [{"x": k, "t": [words(k)]} for k in range(i % 4)],
                            pa.list_(struct))
    out["day"] = column(lambda i: i, pa.int32()).cast(pa.date32())
    out["when"] = column(lambda i: i * 10 ** 9, pa.int64()).cast(pa.timestamp("us"))
    out["long"] = column(lambda i: i, pa.int64()).cast(pa.duration("ms"))
    codes = column(words, pa.string()).dictionary_encode()
    out["words"] = codes
    out["small_words"] = codes.cast(pa.dictionary(pa.int8(), pa.string()))
    return out


STORED = {"day": pa.int32(), "when": pa.int64(), "long": pa.int64()}


def write(name, table, kind="stream", batch=None, **options):
    path = os.path.join(OUT, name + ".arrow")
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with make(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=batch)
    for column, stored in STORED.items():
        if column in table.column_names:
            at = table.column_names.index(column)
            table = table.set_column(at, column, table[column].cast(stored))
    write_rows(os.path.join(OUT, name + ".jsonl"), table.to_pylist())


full = pa.table(columns(.2))
plain = pa.table(columns(0))
few = pa.table({k: v for k, v in columns(.2).items() if k in
                ("i64", "text", "bool", "mask", "image", "words", "struct")})
write("stream", full, batch=4)
write("file", full, "file", batch=4)
write("no_nulls", plain)
write("lz4", few, batch=5, compression="lz4")
write("zstd", few, batch=5, compression="zstd")
write("old", few, use_legacy_format=True, metadata_version=pa.ipc.MetadataVersion.V4)
write("no_rows", full.slice(0, 0))
write("slice", full.slice(3, 5))

# Dictionaries that grow from batch to batch, and that are replaced.
parts = [pa.array(WORDS[:k]).dictionary_encode() for k in (2, 4, 6)]
grown = pa.table({"words": pa.chunked_array(parts)})
write("delta", grown, emit_dictionary_deltas=True)
write("replaced", pa.table({"words": pa.chunked_array(
    [pa.array(words).dictionary_encode() for words in (WORDS[:2], WORDS[3:], WORDS[1:3])])}))

# Views, of which some are stored inside and some in buffers.
texts = [r.choice(WORDS + [None, "y" * 12, "z" * 13]) for _ in range(3 * ROWS)]
views = pa.table({"view": pa.array(texts, pa.string_view()), "bytes": pa.array(
    [t and t.encode() for t in reversed(texts)], pa.binary_view()),
    "list": pa.array([texts[:k % 5] for k in range(3 * ROWS)], pa.list_(pa.string_view()))})
write("views", views, batch=9)
write("views_zstd", views, "file", batch=9, compression="zstd")

# What is not read.
number = pa.array([1, 2, 3])
UNREAD = {
    "Union": pa.UnionArray.from_sparse(pa.array([0, 0, 0], pa.int8()), [number]),
    "RunEndEncoded": pa.RunEndEncodedArray.from_arrays([3], number[:1]),
    "ListView": pa.array([[1], [2], []], pa.list_view(pa.int8())),
    "LargeListView": pa.array([[1], [2], []], pa.large_list_view(pa.int8())),
    "Interval": pa.array([(1, 2, 3)] * 3, pa.month_day_nano_interval()),
}
for kind, values in UNREAD.items():
    table = pa.table({"x": number, "odd": values})
    with pa.ipc.new_stream(os.path.join(OUT, f"unread_{kind}.arrow"), table.schema) as writer:
        writer.write_table(table)
